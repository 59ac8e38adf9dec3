"""SmolLM2-135M as a judge: how likely a trained autoregressive model finds a text. It is the source of our network."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from hf_unified_diffusion.codecs.text_codec import pad_right
from hf_unified_diffusion.modeling.vocabulary import split_digits

DOCUMENT_START = "<|endoftext|>"  # what stood before a document in its training; its bos token opens a chat instead


class Judge:
    """Scores texts by an autoregressive model, in nats.

    Usage:
        judge = Judge.from_gguf(source_model_path())
        nats, tokens = judge.score([("Once upon a", " time.")])
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int = 10):
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @classmethod
    def from_gguf(cls, path: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "Judge":
        """From the file that `make data` unpacks; ValueError where it is not there."""
        if not path.is_file():
            raise ValueError(f"the judge's weights must be in the data cache (run `make data`), got no {path.name}")
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        split_digits(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=dtype
        )
        return cls(model.to(device), tokenizer)

    def score(self, rows: Sequence[Sequence[str]]) -> tuple[Float[Tensor, "rows parts"], Int[Tensor, "rows parts"]]:
        """Nats of each part of a text after all before it, float64, and the tokens they are summed over.

        The first part of a row is given and gets no score. A token belongs to the part that it ends in.

        Usage: `nats, tokens = judge.score([("Once upon", " a time", " there was"), ("One, ", "two, ", "three")])`
        """
        order = sorted(range(len(rows)), key=lambda i: len("".join(rows[i])))  # little padding
        nats, counts = [], []
        for start in tqdm(range(0, len(rows), self.batch_size), desc="judge", leave=False):
            found, asked = self._score_batch([rows[i] for i in order[start : start + self.batch_size]])
            nats.append(found)
            counts.append(asked)
        back = torch.tensor(order).argsort()
        return torch.cat(nats)[back], torch.cat(counts)[back]

    @torch.no_grad()
    def _score_batch(self, rows: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
        options = {"return_offsets_mapping": True, "add_special_tokens": False, "split_special_tokens": True}
        encoded = [self.tokenizer("".join(row), **options) for row in rows]
        first = self.tokenizer.convert_tokens_to_ids(DOCUMENT_START)
        device = self.model.device
        ids, real = pad_right([[first, *row["input_ids"]] for row in encoded], first, device)
        parts, _ = pad_right(
            [part_of_tokens(row["offset_mapping"], parts) for row, parts in zip(encoded, rows, strict=True)], 0, device
        )
        hidden = self.model.base_model(ids, attention_mask=None if real is None else real.long()).last_hidden_state
        asked = parts > 0  # what is given needs no logits
        logits = self.model.get_output_embeddings()(hidden[:, :-1][asked]).float()
        nats = torch.zeros(parts.shape, dtype=torch.float64, device=device)
        nats[asked] = F.cross_entropy(logits, ids[:, 1:][asked], reduction="none").double()
        each = F.one_hot(parts, len(rows[0]))[..., 1:]
        return (nats[..., None] * each).sum(dim=1).cpu(), each.sum(dim=1).cpu()


def part_of_tokens(offsets: Sequence[tuple[int, int]], parts: Sequence[str]) -> list[int]:
    """Which part of a text each token ends in, from the (start, end) characters of tokens.

    Usage: `part_of_tokens([(0, 2), (2, 4)], ("abc", "d"))  # [0, 1]`
    """
    ends = list(accumulate(map(len, parts)))
    return [bisect_left(ends, end) for _, end in offsets]
