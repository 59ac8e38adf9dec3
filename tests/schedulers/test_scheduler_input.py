"""Timesteps, added noise, and refusals that state the rule and the value."""

import pytest
import torch
from torch import Generator

from hf_unified_diffusion.processes import spawn_generators
from hf_unified_diffusion.schedulers import MaskedDiffusionScheduler

VOCAB, MASK = 9, 8
NAN = float("nan")
IDS = torch.full((2, 4), MASK)
LOGITS = torch.zeros(2, 4, VOCAB)
HALF = torch.full((2,), 0.5)


@pytest.fixture
def scheduler():
    return MaskedDiffusionScheduler(MASK, num_inference_steps=4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log_linear", [[0, 0], [0.5, 0.2], [1, 1]]], ids=str)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 5, 128])
def test_timesteps_fall_within_0_and_1(schedule, spacing, num_steps):
    scheduler = MaskedDiffusionScheduler(MASK, schedule=schedule, spacing=spacing)
    scheduler.set_timesteps(num_steps, device="cpu")
    assert scheduler.timesteps.shape == (num_steps,)
    assert scheduler.timesteps[0] == pytest.approx(1, abs=1.001e-3)
    assert scheduler.timesteps[-1] > 0
    assert (scheduler.timesteps.diff() < 0).all()


def test_own_timesteps_are_followed(scheduler):
    scheduler.set_timesteps(timesteps=[1.0, 0.5])
    sample = torch.full((1, 8), MASK)
    logits = torch.zeros(1, 8, VOCAB)
    sample = scheduler.step(logits, scheduler.timesteps[0], sample).prev_sample
    assert (sample == MASK).sum() == 4
    assert (scheduler.step(logits, 0.5, sample).prev_sample != MASK).all()


def test_noise_hides_the_share_asked_for(scheduler):
    ids = torch.zeros(3, 20_000, dtype=torch.int64)
    t = torch.tensor([0.1, 0.5, 1.0])
    canvas = torch.arange(20_000).expand(3, -1) < 10_000
    noisy = scheduler.add_noise(ids, Generator().manual_seed(0), t, canvas)
    torch.testing.assert_close((noisy[:, :10_000] == MASK).float().mean(1), t, atol=0.02, rtol=0)
    assert torch.equal(noisy[:, 10_000:], ids[:, 10_000:])


def test_noise_may_be_given(scheduler):
    ids = torch.zeros(2, 3, dtype=torch.int64)
    noise = torch.tensor([[0.1, 0.4, 0.6], [0.9, 0.2, 0.5]])
    hidden = scheduler.add_noise(ids, noise, HALF) == MASK
    assert torch.equal(hidden, noise < 0.5)


def test_noise_of_a_row_does_not_depend_on_the_batch(scheduler):
    ids = torch.zeros(4, 30, dtype=torch.int64)
    batch = scheduler.add_noise(ids, spawn_generators(3, 4), torch.full((4,), 0.5))
    row = scheduler.add_noise(ids[:1], spawn_generators(3, 1, first=2), HALF[:1])
    assert torch.equal(batch[2], row[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_token_id": -1}, "mask_token_id must be an integer of at least 0, got -1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1, got 0"),
        ({"schedule": "sigmoid"}, "schedule must be one of .* got 'sigmoid'"),
        ({"spacing": "karras"}, "spacing must be one of .* got 'karras'"),
        ({"ordering": "left to right"}, "ordering must be one of .* got 'left to right'"),
        ({"temperature": NAN}, "temperature must be finite and at least 0, got nan"),
        ({"temperature": -0.1}, "temperature must be finite and at least 0, got -0.1"),
        ({"top_k": -1}, "top_k must be an integer of at least 0, got -1"),
        ({"top_k": 2.5}, "top_k must be an integer of at least 0, got 2.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"top_p": NAN}, r"top_p must be in \(0, 1\], got nan"),
        ({"entropy_bound": -1.0}, "entropy_bound must be None or finite nats of at least 0, got -1.0"),
        ({"confidence_threshold": 1.5}, r"confidence_threshold must be None or in \[0, 1\], got 1.5"),
        ({"entropy_bound": 0.1, "confidence_threshold": 0.9}, "must not be set together, got entropy_bound=0.1"),
        ({"remask_rate": 2.0}, r"remask_rate must be in \[0, 1\], got 2.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionScheduler(**{"mask_token_id": MASK, **settings})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": -3}, "num_inference_steps must be an integer of at least 1, got -3"),
        ({"num_inference_steps": 2.0}, "num_inference_steps must be an integer of at least 1, got 2.0"),
        ({}, "num_inference_steps must be an integer of at least 1, got None"),
        ({"timesteps": []}, r"timesteps must fall strictly within \(0, 1\], got \[\]"),
        ({"timesteps": [0.5, 0.5]}, r"timesteps must fall strictly within \(0, 1\], got \[0.5, 0.5\]"),
        ({"timesteps": [1.0, 0.0]}, r"timesteps must fall strictly within \(0, 1\]"),
        ({"timesteps": [1.2, 0.5]}, r"timesteps must fall strictly within \(0, 1\]"),
        ({"num_inference_steps": 1, "timesteps": [1.0]}, "num_inference_steps must be None when timesteps are given"),
    ],
)
def test_bad_timesteps_are_refused(scheduler, arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timestep": 0.0}, r"timestep must be in \(0, 1\], got 0.0"),
        ({"timestep": 1.5}, r"timestep must be in \(0, 1\], got 1.5"),
        ({"timestep": NAN}, r"timestep must be in \(0, 1\], got nan"),
        ({"timestep": 0.6}, r"timestep must be one of scheduler.timesteps \[1.0, 0.75, 0.5, 0.25\], got 0.6"),
        ({"sample": IDS.float()}, "sample must be int64 or int32 .*, got torch.float32"),
        ({"sample": IDS[0]}, r"sample must be int64 or int32 \(batch, length\), got torch.int64 \(4,\)"),
        ({"model_output": LOGITS.long()}, "model_output must be floating point, got torch.int64"),
        ({"model_output": LOGITS[:, :3]}, r"must have the shape \(2, 4\) \+ \(vocab,\), got \(2, 3, 9\)"),
        ({"model_output": LOGITS[..., :8]}, "mask_token_id must be below the vocabulary of 8, got 8"),
        ({"model_output": LOGITS * NAN}, "must have a finite logit and neither NaN nor inf"),
        ({"model_output": LOGITS + torch.inf}, "must have a finite logit and neither NaN nor inf"),
        ({"model_output": LOGITS - torch.inf}, "must have a finite logit and neither NaN nor inf"),
        ({"canvas_mask": IDS}, r"canvas_mask must be bool \(2, 4\), got torch.int64"),
        ({"canvas_mask": torch.ones(2, 3, dtype=torch.bool)}, r"canvas_mask must be bool \(2, 4\), got .* \(2, 3\)"),
        ({"confidence": torch.ones(2, 3)}, r"confidence must be float \(2, 4\), got torch.float32 \(2, 3\)"),
        ({"generator": spawn_generators(0, 3)}, r"one per row \(2\), got 3"),
        ({"temperature": NAN}, "temperature must be finite and at least 0, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_k": -2}, "top_k must be an integer of at least 0, got -2"),
    ],
)
def test_bad_steps_are_refused(scheduler, arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduler.step(**{"model_output": LOGITS, "timestep": 1.0, "sample": IDS, **arguments})


def test_remasking_without_a_canvas_is_refused():
    scheduler = MaskedDiffusionScheduler(MASK, remask_rate=0.1)
    with pytest.raises(ValueError, match="canvas_mask must say which tokens are not given when remask_rate is 0.1"):
        scheduler.step(LOGITS, 1.0, IDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timesteps": HALF * 0}, r"timesteps must be in \(0, 1\], got \[0.0, 0.0\]"),
        ({"timesteps": HALF * NAN}, r"timesteps must be in \(0, 1\], got \[nan, nan\]"),
        ({"timesteps": HALF[:1]}, r"timesteps must be float \(batch,\), got torch.float32 \(1,\)"),
        ({"timesteps": torch.ones(2, dtype=torch.int64)}, r"timesteps must be float \(batch,\), got torch.int64"),
        ({"noise": torch.rand(2, 3)}, r"noise must be float \(2, 4\), got torch.float32 \(2, 3\)"),
        ({"original_samples": LOGITS[..., 0]}, "sample must be int64 or int32"),
    ],
)
def test_bad_noise_is_refused(scheduler, arguments, message):
    with pytest.raises(ValueError, match=message):
        scheduler.add_noise(**{"original_samples": IDS, "noise": Generator(), "timesteps": HALF, **arguments})
