"""Small networks whose every weight matters, and small token data."""

import torch
from datasets import Dataset
from torch import Generator

from hf_unified_diffusion import UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.training.layouts import TokenBatch

TINY_SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "cross_attention_every": 0,
    "time_embedding_size": 8,
    "head_rank": 4,
    "modalities": {"text": {"kind": "token"}, "code": {"kind": "token"}},
}


def lively_model(vocab_size: int = 12, **changes) -> UnifiedDiffusionModel:
    """Random weights everywhere, also where training starts from zero; the mask token is the last."""
    config = UnifiedDiffusionConfig(vocab_size=vocab_size, mask_token_id=vocab_size - 1, **{**TINY_SHAPE, **changes})
    model = UnifiedDiffusionModel(config).eval()
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            parameter.copy_(centre + 0.4 * torch.randn(parameter.shape, generator=generator))
    return model


def ignorant_model(vocab_size: int = 12) -> UnifiedDiffusionModel:
    """All tokens but the mask are equally likely."""
    model = lively_model(vocab_size)
    torch.nn.init.zeros_(model.token_embedding.weight)
    return model


def random_batch(rows: int, length: int, documents: list[int] | None = None) -> TokenBatch:
    """Random tokens 0..10, the same each time; the same documents in each row, one by default."""
    tokens = torch.randint(0, 11, (rows, length), generator=Generator().manual_seed(0))
    whose = torch.tensor([0] * length if documents is None else documents)
    return TokenBatch(tokens, whose.expand(rows, length), "text")


def write_shard(path, texts: list[str], modality: str = "text") -> None:
    """A Parquet shard as the data script writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("document_id", "source", "licence")
    rows = [dict.fromkeys(names, "x") | {"modality": modality, "prompt": "", "text": text} for text in texts]
    Dataset.from_list(rows).to_parquet(str(path))
