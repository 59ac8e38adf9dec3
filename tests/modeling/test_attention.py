"""Laws of attention: however it is computed, it is softmax(q k / sqrt d) v over what the mask shows."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hf_unified_diffusion.modeling.shared_transformer import (
    FEWEST_QUERIES,
    MOST_SCORES,
    MOST_SCORES_AT_ONCE,
    attend,
    attend_by_matmuls,
    faster_by_matmuls,
)

QUERIES, KEYS, WIDTH = 6, 9, 8


def heads(count: int, length: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(2, count, length, WIDTH, generator=Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_()


def masks() -> dict[str, Tensor | None]:
    shown = torch.rand(2, 1, QUERIES, KEYS, generator=Generator().manual_seed(0)) < 0.6
    shown[..., 0] = True  # an empty row has no softmax
    numbers = torch.zeros(shown.shape).masked_fill_(~shown, float("-inf"))
    return {"nothing hidden": None, "bool": shown, "numbers": numbers}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", masks())
def test_matmuls_are_the_kernel_gradients_included(groups: int, name: str) -> None:
    query, key, value = heads(4, QUERIES, 1), heads(groups, KEYS, 2), heads(groups, KEYS, 3)
    mask = masks()[name]
    by_kernel = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    by_matmuls = attend_by_matmuls(query, key, value, mask, is_causal=False)
    torch.testing.assert_close(by_matmuls, by_kernel)
    expected = torch.autograd.grad(by_kernel.square().sum(), (query, key, value))
    torch.testing.assert_close(torch.autograd.grad(by_matmuls.square().sum(), (query, key, value)), expected)


def test_causal_matmuls_see_no_future() -> None:
    query, key, value = heads(4, KEYS, 1), heads(2, KEYS, 2), heads(2, KEYS, 3)
    by_kernel = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(attend_by_matmuls(query, key, value, None, is_causal=True), by_kernel)


@pytest.mark.parametrize("name", masks())
def test_training_in_bfloat16_is_close_to_float32(name: str) -> None:
    mask = masks()[name]
    exact = attend(*(heads(h, n, s) for h, n, s in ((4, QUERIES, 1), (2, KEYS, 2), (2, KEYS, 3))), mask)
    inputs = [heads(h, n, s, torch.bfloat16) for h, n, s in ((4, QUERIES, 1), (2, KEYS, 2), (2, KEYS, 3))]
    trained = attend(*inputs, mask if mask is None or mask.dtype is torch.bool else mask.bfloat16())
    assert trained.dtype is torch.bfloat16
    torch.testing.assert_close(trained.float(), exact, atol=0.05, rtol=0.05)


def test_long_sequences_never_hold_their_scores() -> None:
    length = int(MOST_SCORES**0.5) + 1
    query = torch.zeros(1, 1, length, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    assert "Flash" in type(attend(query, query, query, None).grad_fn).__name__
    short = query[:, :, :16].detach().requires_grad_()
    assert "Flash" not in type(attend(short, short, short, None).grad_fn).__name__


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, FEWEST_QUERIES - 1, FEWEST_QUERIES, 33])
def test_reading_in_bfloat16_is_close_to_float32(queries: int) -> None:
    inputs = [heads(h, n, s) for h, n, s in ((4, queries, 1), (2, 40, 2), (2, 40, 3))]
    read = attend(*(x.bfloat16() for x in inputs), None)
    torch.testing.assert_close(read.float(), attend(*inputs, None), atol=0.03, rtol=0.03)


@torch.no_grad()
def test_reading_holds_few_scores_at_once() -> None:
    length = int((MOST_SCORES_AT_ONCE // 8) ** 0.5)
    query = torch.empty(2, 4, length, WIDTH, dtype=torch.bfloat16)
    assert faster_by_matmuls(query, query)
    assert not faster_by_matmuls(query.repeat(2, 1, 1, 1), query)
    assert not faster_by_matmuls(query.float(), query.float())
