"""What holds for every way of uncovering a canvas."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from hf_unified_diffusion.processes import spawn_generators
from hf_unified_diffusion.schedulers import MaskedDiffusionScheduler
from tests.chi_square import fits

VOCAB, MASK = 11, 10
WAYS = {
    "greedy": {"temperature": 0.0},
    "confidence": {},
    "margin": {"ordering": "margin"},
    "entropy": {"ordering": "entropy", "temperature": 0.7},
    "random": {"ordering": "random"},
    "cosine": {"schedule": "cosine", "top_k": 3},
    "tabulated": {"schedule": [[0, 0], [0.3, 0.8], [1, 1]], "top_p": 0.8},
    "quadratic": {"spacing": "quadratic"},
    "entropy bound": {"entropy_bound": 0.5},
    "threshold": {"confidence_threshold": 0.4},
    "remasking": {"remask_rate": 0.3},
    "random remasking": {"remask_rate": 0.5, "ordering": "random", "schedule": "log_linear"},
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
RANDOM_WAYS = {name: way for name, way in WAYS.items() if way.get("temperature") != 0}
every_random_way = pytest.mark.parametrize("way", RANDOM_WAYS.values(), ids=RANDOM_WAYS)


def denoiser(sample):
    """Logits that depend on the whole row and on nothing else."""
    position = torch.arange(sample.shape[1])[:, None] + 1
    token = torch.arange(VOCAB)[None] + 1
    visible = (sample * (sample != MASK)).sum(1).float()[:, None, None]
    return 2.5 * torch.sin(position * token * 0.7 + visible)


def run(scheduler, sample, generator, canvas_mask=None, num_steps=6):
    """All steps; returns the clean sample and the outputs."""
    canvas_mask = torch.ones_like(sample, dtype=torch.bool) if canvas_mask is None else canvas_mask
    scheduler.set_timesteps(num_steps)
    confidence, outputs = None, []
    for t in scheduler.timesteps:
        output = scheduler.step(
            denoiser(sample), t, sample, canvas_mask=canvas_mask, confidence=confidence, generator=generator
        )
        sample, confidence = output.prev_sample, output.confidence
        outputs.append(output)
    return sample, outputs


def masks(*shape):
    return torch.full(shape, MASK)


@every_way
@pytest.mark.parametrize("num_steps", [1, 3, 16, 40])
def test_no_mask_is_left_after_the_last_step(way, num_steps):
    scheduler = MaskedDiffusionScheduler(MASK, **way)
    sample, _ = run(scheduler, masks(3, 16), Generator().manual_seed(0), num_steps=num_steps)
    assert (sample != MASK).all()
    assert scheduler.all_committed


@every_way
@given(length=st.integers(1, 20), num_steps=st.integers(1, 25), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_given_tokens_are_never_touched(way, length, num_steps, seed):
    """Visible tokens are carried over; outside the canvas even masks stay."""
    generator = Generator().manual_seed(seed)
    start = torch.randint(0, VOCAB, (2, length), generator=generator)
    canvas = torch.rand(2, length, generator=generator) < 0.6
    start = torch.where(canvas, MASK, start)
    sample, _ = run(MaskedDiffusionScheduler(MASK, **way), start, generator, canvas, num_steps)
    assert torch.equal(sample[~canvas], start[~canvas])
    assert (sample[canvas] != MASK).all()


@every_way
def test_only_remasking_takes_back_what_is_visible(way):
    generator = Generator().manual_seed(1)
    before = torch.where(torch.rand(3, 16, generator=generator) < 0.5, MASK, 4)
    _, outputs = run(MaskedDiffusionScheduler(MASK, **way), before, generator)
    for output in outputs:
        changed = output.prev_sample != before
        assert torch.equal(changed, output.committed | output.remasked)
        assert (before[output.committed] == MASK).all()
        assert (before[output.remasked] != MASK).all()
        assert (output.prev_sample[output.remasked] == MASK).all()
        assert way.get("remask_rate") or not output.remasked.any()
        before = output.prev_sample


@every_way
def test_a_row_does_not_depend_on_its_batch_or_padding(way):
    """Batch of 1 equals batch of 8 equals padded, bit by bit, when each row has its generator."""
    eight, _ = run(MaskedDiffusionScheduler(MASK, **way), masks(8, 12), spawn_generators(5, 8))
    padded = torch.cat([masks(8, 12), torch.zeros(8, 4, dtype=torch.int64)], dim=1)
    real = torch.arange(16).expand(8, 16) < 12
    wide, _ = run(MaskedDiffusionScheduler(MASK, **way), padded, spawn_generators(5, 8), real)
    assert torch.equal(wide[:, :12], eight)
    for i in range(8):
        one, _ = run(MaskedDiffusionScheduler(MASK, **way), masks(1, 12), spawn_generators(5, 1, first=i))
        assert torch.equal(one[0], eight[i])


@every_random_way
def test_rows_differ_and_seeds_repeat(way):
    first, _ = run(MaskedDiffusionScheduler(MASK, **way), masks(8, 12), spawn_generators(5, 8))
    again, _ = run(MaskedDiffusionScheduler(MASK, **way), masks(8, 12), spawn_generators(5, 8))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) > 1


@every_way
def test_save_and_load_round_trip(way, tmp_path):
    scheduler = MaskedDiffusionScheduler(MASK, **way)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskedDiffusionScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in way} == way
    first, _ = run(scheduler, masks(2, 12), spawn_generators(0, 2))
    second, _ = run(loaded, masks(2, 12), spawn_generators(0, 2))
    assert torch.equal(first, second)


@every_way
def test_outputs_are_in_their_ranges(way):
    start = masks(3, 16)
    _, outputs = run(MaskedDiffusionScheduler(MASK, **way), start, Generator().manual_seed(2))
    for output in outputs:
        assert (output.pred_original_sample != MASK).all()
        assert ((output.confidence >= 0) & (output.confidence <= 1 + 1e-6)).all()
        assert ((output.uncertainty >= 0) & (output.uncertainty <= 1 + 1e-6)).all()
        assert (output.entropy >= 0).all()
        filled = torch.where(output.committed, output.pred_original_sample, output.prev_sample)
        assert torch.equal(filled, output.prev_sample)


def test_a_tuple_holds_the_same_fields():
    scheduler, sample = MaskedDiffusionScheduler(MASK, temperature=0.0), masks(2, 8)
    output = scheduler.step(denoiser(sample), 1.0, sample)
    fields = scheduler.step(denoiser(sample), 1.0, sample, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(output.to_tuple(), fields, strict=True))
    assert torch.equal(fields[0], output.prev_sample)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype, logits_dtype):
    sample = masks(2, 8).to(dtype)
    output = MaskedDiffusionScheduler(MASK).step(denoiser(sample).to(logits_dtype), 1.0, sample)
    assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
    assert output.pred_logits.dtype == logits_dtype


def test_inputs_are_left_as_they_were():
    sample = masks(2, 8)
    logits = denoiser(sample)
    kept = logits.clone(), sample.clone()
    MaskedDiffusionScheduler(MASK).step(logits, 1.0, sample, generator=Generator().manual_seed(0))
    assert torch.equal(logits, kept[0])
    assert torch.equal(sample, kept[1])


@pytest.mark.parametrize("shape", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}], ids=str)
def test_tokens_are_drawn_from_pred_logits(shape):
    """One step commits everything: tokens have the distribution that the output says they have."""
    scheduler = MaskedDiffusionScheduler(MASK, num_inference_steps=1, **shape)
    logits = torch.linspace(-2, 2, VOCAB).expand(1, 20_000, -1)
    output = scheduler.step(logits, 1.0, masks(1, 20_000), generator=Generator().manual_seed(3))
    assert fits(output.prev_sample, output.pred_logits[0, 0].softmax(-1))
    kept = output.pred_logits[0, 0].isfinite().sum().item()
    assert kept == {"top_k": 3, "top_p": 3}.get(next(iter(shape), ""), VOCAB - 1)


def test_settings_of_a_step_override_the_config():
    sample, scheduler = masks(1, 400), MaskedDiffusionScheduler(MASK, num_inference_steps=1, temperature=1.0)
    logits = denoiser(sample)
    greedy = scheduler.step(logits, 1.0, sample, temperature=0.0)
    one = scheduler.step(logits, 1.0, sample, top_k=1)
    sharp = scheduler.step(logits, 1.0, sample, top_p=1e-6)
    best = logits[..., :MASK].argmax(-1)
    for output in (greedy, one, sharp):
        assert torch.equal(output.prev_sample, best)
    assert not torch.equal(scheduler.step(logits, 1.0, sample).prev_sample, best)


def test_uncertainty_is_1_for_a_guess_and_0_for_knowledge():
    sample = masks(2, 8)
    logits = torch.zeros(2, 8, VOCAB)
    logits[1, :, 3] = 1e4
    uncertainty = MaskedDiffusionScheduler(MASK).step(logits, 1.0, sample).uncertainty
    torch.testing.assert_close(uncertainty, torch.tensor([1.0, 0.0]))


def test_mask_fraction_counts_the_canvas_only():
    sample = torch.tensor([[MASK, MASK, 1, MASK], [1, 2, 3, MASK]])
    canvas = torch.tensor([[True, True, True, False], [False, False, False, False]])
    scheduler = MaskedDiffusionScheduler(MASK)
    torch.testing.assert_close(scheduler.mask_fraction(sample), torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(scheduler.mask_fraction(sample, canvas), torch.tensor([2 / 3, 0.0]))


def test_a_canvas_without_masks_is_a_step_without_change():
    sample = torch.arange(6).reshape(2, 3)
    scheduler = MaskedDiffusionScheduler(MASK)
    output = scheduler.step(torch.zeros(2, 3, VOCAB), 1.0, sample, generator=spawn_generators(0, 2))
    assert torch.equal(output.prev_sample, sample)
    assert torch.equal(output.uncertainty, torch.zeros(2))
    assert scheduler.all_committed
