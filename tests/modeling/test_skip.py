"""Laws of the skip past the trunk: the Wiener filter of what a network leaves over, kept with the checkpoint."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Generator

from hf_unified_diffusion import ArrowQuantConfig, UnifiedDiffusionConfig, UnifiedDiffusionModel
from hf_unified_diffusion.contracts import Segment
from hf_unified_diffusion.modeling.heads import WienerSkip
from hf_unified_diffusion.processes import GaussianFlow
from hf_unified_diffusion.quantization import quantize_model
from hf_unified_diffusion.training.flow_evaluation import flow_errors
from hf_unified_diffusion.training.latent_data import CaptionedLatents
from hf_unified_diffusion.training.skip_fitting import fitted_skip
from tests.tiny import tiny_tokenizer
from tests.training.tiny_latents import WIDTH, blobs
from tests.training.tiny_training import lively_model

WIDE, AXES = 6, 3


def some_skip(num_axes: int = AXES) -> WienerSkip:
    generator = Generator().manual_seed(0)
    skip = WienerSkip(WIDE, num_axes)
    skip.axes.copy_(torch.linalg.qr(torch.randn(WIDE, WIDE, generator=generator)).Q[:, :num_axes])
    skip.variances.copy_(torch.tensor([1.0, 0.1, 0.01])[:num_axes])
    return skip


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_it_is_the_posterior_mean_of_what_is_left_over(t):
    """Of Gaussian residuals no linear estimate has a smaller error: the one with any other gain has a larger one."""
    skip, generator = some_skip(), Generator().manual_seed(1)
    estimate = torch.randn(20_000, 1, WIDE, generator=generator)
    scales = skip.variances.sqrt()
    x_0 = estimate + (torch.randn(20_000, 1, AXES, generator=generator) * scales) @ skip.axes.T
    time = torch.full((20_000,), t)
    x_t = GaussianFlow().corrupt(x_0, time, generator)
    error = (skip(estimate, x_t, time) - x_0).square().sum(dim=-1).mean()
    expected = (skip.variances * t**2 / ((1 - t) ** 2 * skip.variances + t**2)).sum()
    assert error == pytest.approx(float(expected), rel=0.05)
    for factor in (0.5, 2.0):
        other = some_skip()
        other.variances *= factor
        assert (other(estimate, x_t, time) - x_0).square().sum(dim=-1).mean() > error


def test_noise_alone_adds_nothing_and_clean_tokens_come_out_as_they_are():
    skip, generator = some_skip(), Generator().manual_seed(1)
    estimate, x_t = torch.randn(2, 2, 4, WIDE, generator=generator)
    assert torch.equal(skip(estimate, x_t, torch.ones(2)), estimate)
    clean = skip(estimate, x_t, torch.zeros(2))
    torch.testing.assert_close(clean @ skip.axes, x_t @ skip.axes)
    others = torch.eye(WIDE) - skip.axes @ skip.axes.T
    torch.testing.assert_close(clean @ others, estimate @ others)
    each = skip(estimate, x_t, torch.tensor([[0.0, 0.3, 0.7, 1.0]] * 2))
    for place, t in enumerate((0.0, 0.3, 0.7, 1.0)):
        torch.testing.assert_close(each[:, place], skip(estimate, x_t, torch.full((2,), t))[:, place])


def fitted(tmp_path):
    """A network, a copy with a skip fitted to it, and batches."""
    source = CaptionedLatents(blobs(tmp_path, {(2, 2): 60}), tiny_tokenizer(), 64)
    batches = [source.batch(turn, seed=0) for turn in range(3)]
    modalities = {"text": {"kind": "token"}, "image": {"kind": "continuous", "width": WIDTH}}
    model, corrected = (lively_model(258, modalities=modalities) for _ in range(2))
    corrected.load_state_dict(model.state_dict())
    corrected.add_skip("image", *fitted_skip(corrected, batches, WIDTH))
    return model, corrected, batches


def test_what_is_nearly_seen_is_no_longer_forgotten(tmp_path):
    model, corrected, batches = fitted(tmp_path)
    times = (0.1, 1.0)
    before, after = (flow_errors(network.eval(), batches, times) for network in (model, corrected))
    assert after["t0.1"] < 1.5 * 0.1**2 < 0.5 * before["t0.1"]  # near the noise itself
    assert after["t1"] == before["t1"]
    context = Segment("text", batches[0].context, mask=batches[0].context_mask)
    with torch.no_grad():
        texts = [network(segments=[context]).predictions[0] for network in (model, corrected)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("bits", [None, 4])
def test_it_is_saved_and_loaded_with_the_weights(tmp_path, bits):
    _, model, batches = fitted(tmp_path)
    if bits:
        quantize_model(model, ArrowQuantConfig(bits, 16, modules_to_not_convert=[]))
    model.eval().save_pretrained(tmp_path / "saved")
    again = UnifiedDiffusionModel.from_pretrained(tmp_path / "saved")
    assert again.config.modalities["image"]["skip_axes"] == WIDTH
    assert flow_errors(again, batches) == flow_errors(model, batches)
    with pytest.raises(ValueError, match="fitted to a network without one"):
        fitted_skip(again, batches, WIDTH)


def test_what_does_not_fit_is_refused(tmp_path):
    model, _, batches = fitted(tmp_path)
    with pytest.raises(ValueError, match="name must be a continuous modality"):
        model.add_skip("text", torch.eye(2), torch.ones(2))
    with pytest.raises(ValueError, match=rf"axes must be \({WIDTH}, n\) with n variances"):
        model.add_skip("image", torch.eye(WIDTH + 1), torch.ones(WIDTH + 1))
    with pytest.raises(ValueError, match=f"num_axes must be from 1 to {WIDTH}, got {WIDTH + 1}"):
        fitted_skip(model, batches, WIDTH + 1)
    with pytest.raises(ValueError, match="at least one batch"):
        fitted_skip(model, [], 1)
    wrong = {"image": {"kind": "continuous", "width": 4, "skip_axes": 5}}
    with pytest.raises(StrictDataclassError, match="must have skip_axes from 1 to its width"):
        UnifiedDiffusionConfig(modalities=wrong)
