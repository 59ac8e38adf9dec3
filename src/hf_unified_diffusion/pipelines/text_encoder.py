"""Texts as vectors, by the score network's own causal path."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.text_codec import TextCodec, pad_right
from ..contracts import Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .context_denoiser import evaluating
from .text_inputs import as_texts

TEXTS_AT_ONCE = 16


@torch.no_grad()
def encode_texts(
    model: UnifiedDiffusionModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], modality: str = "text"
) -> Float[Tensor, "texts width"]:
    """Unit vectors, float32 on the CPU: the mean of each text's final features. They do not depend on the batch.

    Raises:
        ValueError: no strings, an empty one, or one longer than the context.

    Usage: `encode_texts(model, tokenizer, ["a cat", "a dog"]) @ encode_texts(model, tokenizer, ["a kitten"]).T`
    """
    texts = as_texts("texts", list(texts))
    if "" in texts:
        raise ValueError("texts must not be empty, got ''")
    rows, most = TextCodec(tokenizer).encode(texts), model.config.max_position_embeddings
    longest = max(map(len, rows))
    if longest > most:
        raise ValueError(f"texts must fit the context of {most} tokens, got one of {longest}")
    vectors = []
    with evaluating(model):
        for first in range(0, len(rows), TEXTS_AT_ONCE):
            tokens, mask = pad_right(rows[first : first + TEXTS_AT_ONCE], 0, model.device)
            (hidden,), _ = model.features([Segment(modality, tokens, mask=mask)])
            real = torch.ones_like(tokens) if mask is None else mask
            mean = (hidden.float() * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).cpu())
    return torch.cat(vectors)
