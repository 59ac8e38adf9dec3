"""How many tokens a step commits, and which."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.processes import spawn_generators, time_grid
from hf_unified_diffusion.schedulers import MaskedDiffusionScheduler
from hf_unified_diffusion.schedulers.commit import draw_remasked, entropy_bounded_count, planned_masks, ranks

VOCAB, MASK = 9, 8


def logits_like(sample, seed=0, spread=2.0):
    return torch.randn(*sample.shape, VOCAB, generator=Generator().manual_seed(seed)) * spread


@given(masks=st.integers(0, 300), num_steps=st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_the_plan_is_even_and_ends_at_none(masks, num_steps):
    """On a linear grid each step commits the floor or the ceiling of an equal share."""
    left = torch.tensor([masks])
    for i in range(num_steps):
        after = planned_masks(left, 1 - i / num_steps, 1 - (i + 1) / num_steps)
        assert abs((left - after).item() - masks / num_steps) <= 1
        left = after
    assert left == 0


@given(length=st.integers(1, 40), num_steps=st.integers(1, 50), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_exactly_the_planned_number_is_committed(length, num_steps, seed):
    sample = torch.full((2, length), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=num_steps)
    levels = time_grid(num_steps).tolist()
    for i, t in enumerate(scheduler.timesteps):
        left = (sample == MASK).sum(1)
        output = scheduler.step(logits_like(sample, seed), t, sample, generator=spawn_generators(seed, 2))
        planned = left - planned_masks(left, levels[i], levels[i + 1])
        assert torch.equal(output.committed.sum(1), torch.minimum(planned.clamp_min(1), left))
        sample = output.prev_sample


def test_as_many_steps_as_masks_commit_one_each():
    sample = torch.full((1, 24), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=24)
    for t in scheduler.timesteps:
        output = scheduler.step(logits_like(sample), t, sample)
        assert output.committed.sum() == 1
        sample = output.prev_sample


def test_fewer_masks_than_steps_stop_early():
    sample = torch.full((2, 3), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=30)
    taken = 0
    for t in scheduler.timesteps:
        sample, taken = scheduler.step(logits_like(sample), t, sample).prev_sample, taken + 1
        if scheduler.all_committed:
            break
    assert taken == 3
    scheduler.set_timesteps(30)
    assert not scheduler.all_committed


@pytest.mark.parametrize("ordering", ["confidence", "margin", "entropy"])
def test_the_surest_masks_come_first(ordering):
    sample = torch.full((4, 20), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=4, ordering=ordering, temperature=0.0)
    logits = logits_like(sample)
    output = scheduler.step(logits, 1.0, sample)
    probs = logits[..., :MASK].softmax(-1)
    best = probs.topk(2, dim=-1).values
    sureness = {
        "confidence": best[..., 0],
        "margin": best[..., 0] - best[..., 1],
        "entropy": -torch.special.entr(probs).sum(-1),
    }[ordering]
    for row in range(4):
        committed = output.committed[row]
        assert committed.sum() == 5
        assert sureness[row][committed].min() >= sureness[row][~committed].max()


def test_random_order_is_uniform():
    sample = torch.full((4000, 6), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=6, ordering="random")
    output = scheduler.step(logits_like(sample), 1.0, sample, generator=Generator().manual_seed(0))
    counts = output.committed.sum(0).float()
    assert counts.sum() == 4000
    assert ((counts - 4000 / 6).abs() < 4 * math.sqrt(4000 * 5 / 36)).all()


@given(bound=st.floats(0, 6), ordering=st.sampled_from(["confidence", "margin", "entropy"]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_entropy_bound_holds_and_is_used(bound, ordering, seed):
    """Committed together: sum(H) - max(H) <= bound, and one more in the order would break it (arXiv:2505.24857)."""
    sample = torch.full((3, 18), MASK)
    scheduler = MaskedDiffusionScheduler(
        MASK, num_inference_steps=18, ordering=ordering, entropy_bound=bound, temperature=0.0
    )
    for t in scheduler.timesteps:
        output = scheduler.step(logits_like(sample, seed), t, sample)
        for row in range(3):
            together = output.entropy[row][output.committed[row]].double()
            if len(together):
                assert together.sum() - together.max() <= bound + 1e-6
            waiting = output.entropy[row][(sample[row] == MASK) & ~output.committed[row]].double()
            if ordering == "entropy" and len(waiting):
                assert together.sum() + waiting.min() - torch.maximum(waiting.min(), together.max()) > bound - 1e-6
        sample = output.prev_sample
    assert (sample != MASK).all()


def test_a_higher_entropy_bound_never_commits_fewer():
    entropy = torch.rand(5, 12, generator=Generator().manual_seed(0))
    masked = torch.ones(5, 12, dtype=torch.bool)
    counts = [entropy_bounded_count(entropy, ranks(-entropy), masked, bound) for bound in (0.0, 0.3, 1.0, 3.0, 100.0)]
    assert (torch.stack(counts).diff(dim=0) >= 0).all()
    assert (counts[0] >= 1).all()
    assert (counts[-1] == 12).all()


def test_threshold_commits_every_sure_token_beside_the_plan():
    sample = torch.full((4, 20), MASK)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=20, confidence_threshold=0.6, temperature=0.0)
    output = scheduler.step(logits_like(sample), 1.0, sample)
    sure = output.confidence > 0.6
    assert sure.sum() > 4
    assert output.committed[sure].all()
    assert ((output.committed & ~sure).sum(1) <= 1).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [4, 16, 64])
def test_remasking_keeps_the_plan_for_the_number_of_masks(rate, num_steps):
    """ReMDM changes which tokens are masked at each time, not how many (arXiv:2503.00307)."""
    sample = torch.full((3, 32), MASK)
    canvas = torch.ones_like(sample, dtype=torch.bool)
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=num_steps, remask_rate=rate)
    levels, confidence, taken_back = time_grid(num_steps).tolist(), None, 0
    for i, t in enumerate(scheduler.timesteps):
        left = (sample == MASK).sum(1)
        output = scheduler.step(
            logits_like(sample, i),
            t,
            sample,
            canvas_mask=canvas,
            confidence=confidence,
            generator=spawn_generators(i, 3),
        )
        sample, confidence = output.prev_sample, output.confidence
        taken_back += output.remasked.sum().item()
        assert torch.equal((sample == MASK).sum(1), planned_masks(left, levels[i], levels[i + 1]))
    assert taken_back > 0


def test_remasking_prefers_what_was_least_sure():
    visible = torch.ones(4000, 4, dtype=torch.bool)
    confidence = torch.tensor([0.0, 1.0, 1.0, 1.0]).expand(4000, 4)
    taken = draw_remasked(visible, confidence, 1.0, torch.ones(4000, dtype=torch.int64), Generator().manual_seed(0))
    assert (taken.sum(1) == 1).all()
    expected = 1 / (1 + 3 * math.exp(-1))
    assert taken[:, 0].float().mean() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 4000))


def test_remasking_takes_the_rate_of_what_is_visible():
    visible = torch.rand(2000, 20, generator=Generator().manual_seed(1)) < 0.5
    taken = draw_remasked(visible, torch.ones(2000, 20), 0.2, torch.full((2000,), 20), Generator().manual_seed(0))
    assert not (taken & ~visible).any()
    assert taken.sum() / visible.sum() == pytest.approx(0.2, abs=0.02)


def test_ranks_break_ties_by_position():
    assert ranks(torch.tensor([[1.0, 3.0, 1.0, 3.0]])).tolist() == [[2, 0, 3, 1]]
