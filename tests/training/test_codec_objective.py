"""The image codec's linear start and its objective."""

import copy

import pytest
import torch
from diffusers import AutoencoderDC

from hf_unified_diffusion.training.codec_initialization import initialize_linear
from hf_unified_diffusion.training.codec_objective import (
    CodecLossConfig,
    CodecObjective,
    convolutional_autoencoder,
    decoder_parameters,
    edge_loss,
    psnr_db,
)


def tiny_autoencoder() -> AutoencoderDC:
    torch.manual_seed(0)
    return convolutional_autoencoder(4, (16, 16, 32), (0, 1, 0), (0, 1, 1))


def patchwork(count: int, seed: int) -> torch.Tensor:
    """Pictures whose squares of 4 x 4 pixels have one colour each: all that a patch can be is a point in 3 numbers."""
    colours = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return colours.repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def started() -> AutoencoderDC:
    vae = tiny_autoencoder()
    initialize_linear(vae, [patchwork(60, seed=0), patchwork(4, seed=1).repeat(1, 1, 2, 2)])
    return vae.eval()


@torch.no_grad()
def test_a_linear_start_restores_all_that_its_components_span(started):
    pixels = patchwork(8, seed=2)
    assert psnr_db(started.decoder(started.encoder(pixels)), pixels).min() > 35


@torch.no_grad()
def test_latents_of_the_start_have_mean_0_and_variance_1(started):
    latents = started.encoder(patchwork(400, seed=3))
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert abs(latents.square().mean() - 1) < 0.05


def test_a_linear_start_refuses_other_builds():
    pixels = [patchwork(8, seed=0)]
    with pytest.raises(ValueError, match="power of 2, got 6"):
        initialize_linear(convolutional_autoencoder(6, (16, 16, 32), (0, 1, 0), (0, 1, 1)), pixels)
    with pytest.raises(ValueError, match="above 12 at half resolution"):
        initialize_linear(convolutional_autoencoder(4, (8, 8, 16), (0, 1, 0), (0, 1, 1)), pixels)
    with pytest.raises(ValueError, match="no shortcuts at the latents"):
        initialize_linear(
            AutoencoderDC.from_config({**tiny_autoencoder().config, "encoder_out_shortcut": True}), pixels
        )


def test_edges_ignore_a_shift_of_all_pixels_and_see_a_blur():
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(edge_loss(x, x + 0.3), torch.zeros(()), atol=1e-6, rtol=0)
    assert edge_loss(x, torch.nn.functional.avg_pool2d(x, 3, 1, 1)) > 0.05


@pytest.mark.parametrize(("error", "db"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(error, db):
    x = torch.full((2, 3, 8, 8), -1.0)
    torch.testing.assert_close(psnr_db(x, x + error), torch.full((2,), db), atol=1e-3, rtol=0)


def test_training_lowers_the_loss_and_leaves_the_encoder_alone(started):
    vae = copy.deepcopy(started)
    objective = CodecObjective(vae, CodecLossConfig(latent_noise=0.0))
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).round() * 2 - 1
    branches, linear = decoder_parameters(vae)
    assert len(branches) + len(linear) == len(list(vae.decoder.parameters()))
    optimizer = torch.optim.Adam([{"params": branches}, {"params": linear}], 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(pixels)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, weight in started.encoder.state_dict().items():
        assert torch.equal(vae.encoder.state_dict()[name], weight), name
