"""Laws of the Hopfield readout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from hf_unified_diffusion.memory import hopfield_readout
from hf_unified_diffusion.memory.hopfield import hopfield_energy

seeds = st.integers(0, 2**31)
betas = st.floats(0.01, 50)


def patterns(seed: int, count: int = 9, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = normalize(torch.randn(count + 1, width, generator=generator, dtype=torch.float64), dim=-1)
    return drawn[0], drawn[1:]


@given(seeds, betas)
@settings(max_examples=50, deadline=None)
def test_a_readout_never_raises_the_energy(seed, beta):
    query, keys = patterns(seed)
    readout, weights = hopfield_readout(query, keys, keys, beta)
    assert hopfield_energy(readout, keys, beta) <= hopfield_energy(query, keys, beta) + 1e-12
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_beta_goes_from_the_mean_to_the_nearest(seed):
    query, keys = patterns(seed)
    torch.testing.assert_close(hopfield_readout(query, keys, keys, 0.0)[0], keys.mean(0))
    nearest = keys[(keys @ query).argmax()]
    torch.testing.assert_close(hopfield_readout(query, keys, keys, 1e6)[0], nearest)


@given(seeds, betas)
@settings(max_examples=30, deadline=None)
def test_the_top_k_differ_from_all_by_the_weight_they_leave_out(seed, beta):
    query, keys = patterns(seed)
    whole, weights = hopfield_readout(query, keys, keys, beta)
    best = weights.topk(4).indices
    part, _ = hopfield_readout(query, keys[best], keys[best], beta)
    assert (part - whole).norm() <= 2 * (1 - weights[best].sum()) + 1e-12


def test_masked_keys_and_batches_change_nothing():
    query, keys = patterns(0)
    alone, weights = hopfield_readout(query, keys, keys, 3.0)
    padded = torch.cat([keys, torch.full_like(keys[:2], 1e3)])
    mask = torch.arange(len(padded)) < len(keys)
    batch, batch_weights = hopfield_readout(
        torch.stack([query, query]), torch.stack([padded] * 2), torch.stack([padded] * 2), 3.0,
        torch.stack([mask, torch.zeros_like(mask)]),
    )  # fmt: skip
    torch.testing.assert_close(batch[0], alone)
    torch.testing.assert_close(batch_weights[0, : len(keys)], weights)
    assert not batch[1].any()
    empty, none = hopfield_readout(query, keys[:0], keys[:0], 3.0)
    assert not empty.any()
    assert none.shape == (0,)


def test_gradients_reach_query_and_values():
    query, keys = patterns(0)
    assert torch.autograd.gradcheck(
        lambda q, k: hopfield_readout(q, k, k, 2.0)[0], (query.requires_grad_(), keys.requires_grad_())
    )


@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf"), True, "1"])
def test_beta_is_checked(beta):
    query, keys = patterns(0)
    with pytest.raises(ValueError, match="beta"):
        hopfield_readout(query, keys, keys, beta)
