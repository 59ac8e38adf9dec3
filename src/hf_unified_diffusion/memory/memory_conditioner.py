"""MemoryConditioner: what a store recalls for a prompt, to be read before it, attended to, or drawn after."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.text_codec import TextCodec, pad_right
from ..contracts import Condition, Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .arrow_storage import ArrowStorage, Recall
from .records import Memory

ITEM, TEXT = "memory_item", "memory_text"  # names of the network's condition sources
MAX_STRENGTH = 10.0
SHARPNESS, SAME = 8.0, 1e-3  # of what is recalled: see `likely`; scores that differ less are one
TEXT_MODALITIES, IMAGE = ("text", "code"), "image"


def source_widths(hidden_size: int) -> dict[str, int]:
    """The condition sources of a memory: a vector an item, and two for each token of an item that is read."""
    return {ITEM: hidden_size, TEXT: 2 * hidden_size}


def unit_rms(x: Float[Tensor, "*shape width"]) -> Float[Tensor, "*shape width"]:
    """Scaled to a mean square of 1, in float32; zeros stay zeros."""
    return F.normalize(x.float(), dim=-1) * math.sqrt(x.shape[-1])


@torch.no_grad()
def read_texts(
    model: UnifiedDiffusionModel, ids: Int[Tensor, "texts length"], mask: Bool[Tensor, "texts length"] | None = None
) -> tuple[Float[Tensor, "texts width"], Float[Tensor, "texts length features"]]:
    """Texts as the network itself reads them: their mean feature (as `engine.encode`), and features of every token.

    A token's features are what the network expected before it and what it is: attention that looks for the first and
    takes the second continues a text as the memory does (kNN-LM, arXiv:1911.00172).
    """
    ((hidden,), _) = model.features([Segment("text", ids, mask=mask)])
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    mean = (hidden.float() * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
    expected = F.pad(hidden[:, :-1], (0, 0, 1, 0))
    return unit_rms(mean), torch.cat([unit_rms(expected), unit_rms(model.token_embedding(ids))], dim=-1)


def memory_condition(
    model: UnifiedDiffusionModel,
    items: Float[Tensor, "batch items width"],
    item_mask: Bool[Tensor, "batch items"],
    texts: Float[Tensor, "batch tokens features"],
    text_mask: Bool[Tensor, "batch tokens"],
) -> Condition:
    """Features through the network's projections; before them a zero token, that attention may rest on."""
    dtype = model.shared_transformer.norm.weight.dtype
    tokens = [
        model.condition_projections[name](features.to(dtype)) for name, features in ((ITEM, items), (TEXT, texts))
    ]
    rest = torch.zeros_like(tokens[0][:, :1]) if tokens[0].shape[1] else torch.zeros_like(tokens[1][:, :1])
    given = torch.cat([item_mask, text_mask], dim=1)
    return Condition(torch.cat([rest, *tokens], dim=1), torch.cat([given.any(dim=1, keepdim=True), given], dim=1))


class MemoryConditioner:
    """Asks a store for what is nearest to a prompt, and lets it steer what is written.

    A network with trained condition sources (`examples/train_memory_conditioner.py`) attends to a `Condition`: of all
    that is recalled the vectors enter (where the store's encoder is the network itself), of the nearest texts every
    token too. Any other reads the nearest texts before the prompt. Pictures lead what is drawn, with any network.

    Args:
        model: what writes.
        encoder: the name of the network's own embeddings in stores.
        num_read: how many of the recalled texts are read token by token.
        max_tokens: of a text that is read; the rest of a longer one is not.

    Usage:
        conditioner = MemoryConditioner(model, tokenizer, storage, encoder="edge@1234")
        recalls = conditioner.recall("anna", ["What does Anna drink?"], k=16)
        pipe("What does Anna drink?", **conditioner.options(recalls, strength=1.0))
    """

    def __init__(
        self,
        model: UnifiedDiffusionModel,
        tokenizer: PreTrainedTokenizerFast,
        storage: ArrowStorage,
        encoder: str | None = None,
        num_read: int = 4,
        max_tokens: int = 64,
    ):
        self.model, self.codec, self.storage, self.encoder = model, TextCodec(tokenizer), storage, encoder
        self.num_read, self.max_tokens = num_read, max_tokens

    def recall(
        self, namespace: str, prompts: Sequence[str], k: int = 16, beta: float = 16.0, modality: str | None = None
    ) -> list[Recall]:
        """The k nearest active memories of each prompt; raises ValueError as `ArrowStorage.recall` does."""
        return [self.storage.recall(namespace, prompt, k, beta, modality) for prompt in prompts]

    def options(self, recalls: Sequence[Recall], strength: float = 1.0) -> dict[str, Any]:
        """What a text pipeline is told of what was recalled, one row a recall; nothing where it has no strength.

        Args:
            strength: 0 is no memory, 1 as it was trained, or as a text that was read; up to 10.

        Raises ValueError for a strength out of range.
        """
        if has_sources(self.model):
            return {"condition": self.condition(recalls, strength)}
        check_strength(strength)
        contexts = [self.context(recall.memories) for recall in recalls]
        if strength == 0 or not any(contexts):
            return {}
        return {"context": contexts, "context_scale": strength}

    def picture_options(self, recalls: Sequence[Recall], strength: float = 1.0) -> dict[str, Any]:
        """What an image pipeline is told of the pictures that were recalled, a list a recall, and how likely each is.

        Args:
            strength: 0 is no memory, up to 10; see `UnifiedDiffusionImagePipeline`.

        Raises ValueError for a strength out of range.
        """
        check_strength(strength)
        pictures, weights = [], []
        for recall in recalls:
            kept = [memory for memory in recall.memories if memory.modality == IMAGE]
            pictures.append([memory.payload for memory in kept])
            weights.append(likely([memory.score or 0.0 for memory in kept]))
        return {"memory_images": pictures, "memory_weights": weights, "memory_strength": strength}

    def context(self, memories: Sequence[Memory]) -> str:
        """The nearest texts to read before a prompt, the nearest one last; "" where there is none."""
        texts = [self.codec.decode(self._ids(memory)).strip() for memory in reversed(self._read(memories))]
        return "".join(f"{text}\n\n" for text in texts if text)

    def condition(self, recalls: Sequence[Recall], strength: float = 1.0) -> Condition | None:
        """What was recalled as condition tokens, one row a recall; None where nothing was, or where it has no strength.

        Args:
            strength: 0 is no memory, 1 as it was trained, up to 10.

        Raises ValueError for a strength out of range, and for a network without trained condition sources.
        """
        check_strength(strength)
        rows = [recall.memories for recall in recalls]
        if strength == 0 or not any(rows):
            return None
        condition = self.of_memories(rows)
        return Condition(condition.tokens, condition.mask, torch.full_like(condition.tokens[..., 0], strength))

    def of_memories(self, rows: Sequence[Sequence[Memory]]) -> Condition:
        """Memories as condition tokens, nearest first; a row without any gets none.

        Raises ValueError for a network without trained condition sources.
        """
        check_sources(self.model)
        width, device = self.model.config.hidden_size, self.model.device
        ids = [[self._ids(memory) for memory in self._read(row)] for row in rows]
        flat = [text for row in ids for text in row]
        means, features = torch.zeros(0, width, device=device), torch.zeros(0, 1, 2 * width, device=device)
        if flat:
            padded, mask = pad_right(flat, self.model.config.pad_token_id or 0, device)
            means, features = read_texts(self.model, padded, mask)
        items, texts, start = [], [], 0
        for row, own in zip(rows, ids, strict=True):
            read = range(start, start + len(own))
            vectors = self._stored(row)
            items.append(means[list(read)] if vectors is None else vectors)
            parts = [features[place, : len(flat[place])] for place in read]
            texts.append(torch.cat(parts) if parts else features.new_zeros(0, 2 * width))
            start += len(own)
        return memory_condition(self.model, *padded_rows(items), *padded_rows(texts))

    def _read(self, memories: Sequence[Memory]) -> list[Memory]:
        return [memory for memory in memories if memory.modality in TEXT_MODALITIES][: self.num_read]

    def _ids(self, memory: Memory) -> list[int]:
        return self.codec.encode([str(memory.payload)])[0][: self.max_tokens]

    def _stored(self, memories: Sequence[Memory]) -> Tensor | None:
        """Stored embeddings, None where they are not of this network."""
        if self.storage.encoder != self.encoder:
            return None
        width = self.model.config.hidden_size
        vectors = [torch.from_numpy(memory.embedding) for memory in memories]
        stacked = torch.stack(vectors) if vectors else torch.zeros(0, width)
        return unit_rms(stacked.to(self.model.device))


def padded_rows(
    rows: Sequence[Float[Tensor, "count width"]],
) -> tuple[Float[Tensor, "batch most width"], Bool[Tensor, "batch most"]]:
    """Rows of several lengths as one tensor, zeros at the end, and which entries are real."""
    counts = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, torch.arange(padded.shape[1], device=counts.device) < counts[:, None]


def likely(scores: Sequence[float]) -> list[float]:
    """Softmax of scores over their range times 8: the worst counts e^-8 of the best, equal ones count the same.

    By their range, because encoders differ in how near all their vectors are: between captions of unlike things the
    network's own cosine is 0.8, MiniLM's 0.2, and no one temperature suits both.
    """
    if not scores:
        return []
    values = torch.tensor(scores)
    span = (values.max() - values.min()).clamp_min(SAME)
    return (SHARPNESS * (values - values.max()) / span).softmax(dim=0).tolist()


def has_sources(model: UnifiedDiffusionModel) -> bool:
    """Whether the network has the condition sources of a memory."""
    return source_widths(model.config.hidden_size).items() <= model.config.condition_sources.items()


def check_sources(model: UnifiedDiffusionModel) -> None:
    """Raise ValueError unless the network has the condition sources of a memory."""
    if not has_sources(model):
        raise ValueError(
            "the network must attend to memories, got one that has no trained memory conditioner (condition sources "
            f"{source_widths(model.config.hidden_size)}), but {dict(model.config.condition_sources)}"
        )


def check_strength(strength: float) -> None:
    """Raise ValueError unless it is a number in 0..10."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= MAX_STRENGTH:
        raise ValueError(f"memory_strength must be in [0, {MAX_STRENGTH:g}], got {strength!r}")
