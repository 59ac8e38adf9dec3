"""Embeddings of texts from the score network itself: the mean of its causal hidden states."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..codecs.text_codec import TextCodec, pad_right
from ..contracts import Segment
from ..modeling.embedded import EMBEDDED_CHECKPOINT
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel

WEIGHT_FILES = ("*.parquet", "*.safetensors")
MAX_TOKENS = 512
BATCH_SIZE = 8


class ScoreNetworkEncoder:
    """An `Encoder` on a score network: texts are read as clean context, and what the heads would read is averaged.

    Args:
        name: stands for these weights wherever embeddings are stored; other weights need another name.
        max_tokens: the rest of a longer text is not read.

    Usage: `ScoreNetworkEncoder.from_pretrained()(["green tea"])  # float32 (1, hidden_size)`
    """

    def __init__(
        self, model: UnifiedDiffusionModel, tokenizer: PreTrainedTokenizerFast, name: str, max_tokens: int = MAX_TOKENS
    ):
        self.model, self.codec, self.name, self.max_tokens = model, TextCodec(tokenizer), name, max_tokens

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str] = EMBEDDED_CHECKPOINT) -> "ScoreNetworkEncoder":
        """The encoder of a checkpoint folder, named after it and its weights' SHA-256; default: the embedded one."""
        path = Path(folder)
        model = UnifiedDiffusionModel.from_pretrained(path).eval()
        return cls(model, AutoTokenizer.from_pretrained(path), encoder_name(path))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """One embedding a text, whatever others are encoded beside it.

        Raises ValueError for a text without a token.
        """
        rows = [ids[: self.max_tokens] for ids in self.codec.encode(texts)] if texts else []
        if not all(rows):
            raise ValueError("texts must have at least one token, got an empty one")
        embeddings = np.empty((len(rows), self.model.config.hidden_size), np.float32)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
        for start in range(0, len(rows), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            ids, real = pad_right([rows[i] for i in batch], self.model.config.pad_token_id or 0, self.model.device)
            ((hidden,), _) = self.model.features([Segment("text", ids, mask=real)])
            for i, row in zip(batch, hidden.float(), strict=True):
                embeddings[i] = row[: len(rows[i])].mean(dim=0).cpu().numpy()
        return embeddings


def encoder_name(folder: str | os.PathLike[str]) -> str:
    """The name of a checkpoint folder's embeddings: the folder's own and the start of its weights' SHA-256.

    Usage: `encoder_name(EMBEDDED_CHECKPOINT)  # "unified-diffusion-edge@..."`
    """
    path, digest = Path(folder), hashlib.sha256()
    for file in sorted(file for pattern in WEIGHT_FILES for file in path.glob(pattern)):
        digest.update(file.read_bytes())
    return f"{path.name}@{digest.hexdigest()[:12]}"
