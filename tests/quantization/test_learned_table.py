"""A learned table is never worse than the fixed one, finds vectors that repeat, and opens by the same dequantizer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.quantization import dequantize, learn_table, quantize


def errors(weight: torch.Tensor, group_size: int) -> tuple[float, float]:
    """Squared error through the fixed and the learned table."""
    packed, scale, table = learn_table(weight, group_size)
    learned = dequantize(packed, scale, 2, table=table)
    return tuple(
        (found - weight).square().sum().item() for found in (dequantize(*quantize(weight, 2, group_size), 2), learned)
    )


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 24), groups=st.integers(1, 3), seed=st.integers(0, 999), tail=st.sampled_from([0.3, 1.0, 3.0])
)
def test_never_worse_than_the_fixed_table(rows: int, groups: int, seed: int, tail: float) -> None:
    weight = torch.randn(rows, 16 * groups, generator=Generator().manual_seed(seed))
    fixed, learned = errors(weight.sign() * weight.abs() ** tail, 16)
    assert learned <= fixed * (1 + 1e-6)


def test_much_better_where_fours_repeat() -> None:
    generator = Generator().manual_seed(0)
    book = torch.randn(32, 4, generator=generator)
    weight = book[torch.randint(0, 32, (64, 16), generator=generator)].view(64, 64)
    fixed, learned = errors(weight, 64)
    assert learned < 0.5 * fixed


def test_better_on_gaussian_weights() -> None:
    fixed, learned = errors(torch.randn(128, 256, generator=Generator().manual_seed(0)), 64)
    assert learned < 0.9 * fixed


def test_rounds_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="num_rounds must be at least 1, got 0"):
        learn_table(torch.zeros(4, 16), 16, num_rounds=0)
