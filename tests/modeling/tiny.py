"""A tiny score network in which nothing is zero, so that every part has its say."""

from functools import cache

import torch
from torch import Generator, Tensor

from hf_unified_diffusion.contracts import Condition, Segment
from hf_unified_diffusion.modeling.configuration_unified_diffusion import UnifiedDiffusionConfig
from hf_unified_diffusion.modeling.modeling_unified_diffusion import UnifiedDiffusionModel

VOCAB_SIZE, MASK = 48, 47
CONDITION_SIZE = 12
MODALITIES = {
    "text": {"kind": "token"},
    "code": {"kind": "token"},
    "audio": {"kind": "continuous", "width": 6},
    "image": {"kind": "continuous", "width": 4},
}


def tiny_config(**changes) -> UnifiedDiffusionConfig:
    """Two layers of width 32, four query heads over two key heads; the second layer attends to conditions."""
    values = {
        "vocab_size": VOCAB_SIZE,
        "mask_token_id": MASK,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "cross_attention_every": 2,
        "condition_size": CONDITION_SIZE,
        "time_embedding_size": 16,
        "head_rank": 4,
        "modalities": MODALITIES,
    }
    return UnifiedDiffusionConfig(**{**values, **changes})


def fresh_model(**changes) -> UnifiedDiffusionModel:
    """As it is before training: time, gates and heads start at zero."""
    torch.manual_seed(0)
    return UnifiedDiffusionModel(tiny_config(**changes)).eval()


def open_model(**changes) -> UnifiedDiffusionModel:
    """As after training: every parameter is moved, so that every path carries something."""
    model = fresh_model(**changes)
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@cache
def shared_model() -> UnifiedDiffusionModel:
    """An open model for tests that only read it."""
    return open_model().requires_grad_(False)


@cache
def double_model() -> UnifiedDiffusionModel:
    """The same in float64, where a leak and a rounding error cannot be confused."""
    return open_model().double().requires_grad_(False)


def random_ids(batch: int, length: int, seed: int = 0) -> Tensor:
    """Tokens that are not the mask token."""
    return torch.randint(0, MASK, (batch, length), generator=Generator().manual_seed(seed))


def noised(ids: Tensor, seed: int = 0) -> Tensor:
    """About half of the tokens hidden."""
    return ids.masked_fill(torch.rand(ids.shape, generator=Generator().manual_seed(seed)) < 0.5, MASK)


def random_condition(batch: int, length: int = 3, seed: int = 0) -> Condition:
    """All of its tokens are real."""
    tokens = torch.randn(batch, length, CONDITION_SIZE, generator=Generator().manual_seed(seed))
    return Condition(tokens, torch.ones(batch, length, dtype=torch.bool))


def places(start: int, stop: int, batch: int = 1) -> Tensor:
    """Positions start..stop of every row."""
    return torch.arange(start, stop, dtype=torch.float32).expand(batch, -1)


def canvas(ids: Tensor, time: float | Tensor = 0.5, **given) -> Segment:
    """A text canvas at one time for all rows."""
    return Segment("text", ids, time=torch.full((len(ids),), time) if isinstance(time, float) else time, **given)


def assert_same(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    """Equal to float tolerance; the mask token's -inf must be in both."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)
