"""The image codec's objective, and the normalization of its latents."""

import pytest
import torch
from diffusers import AutoencoderDC

from hf_unified_diffusion.training.codec_objective import (
    CodecLossConfig,
    CodecObjective,
    edge_loss,
    fold_normalization,
    psnr_db,
)


def tiny_autoencoder(shortcut: bool) -> AutoencoderDC:
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_out_shortcut=shortcut,
    )


@pytest.mark.parametrize("shortcut", [True, False])
def test_folded_latents_are_the_normalized_ones(shortcut):
    vae, pixels = tiny_autoencoder(shortcut).eval(), torch.rand(6, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encoder(pixels)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        found = fold_normalization(vae, mean, std).encoder(pixels)
    expected = (latents - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_edges_ignore_a_shift_of_all_pixels_and_see_a_blur():
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(edge_loss(x, x + 0.3), torch.zeros(()), atol=1e-6, rtol=0)
    assert edge_loss(x, torch.nn.functional.avg_pool2d(x, 3, 1, 1)) > 0.05


@pytest.mark.parametrize(("error", "db"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_constant_error(error, db):
    x = torch.full((2, 3, 8, 8), -1.0)
    torch.testing.assert_close(psnr_db(x, x + error), torch.full((2,), db), atol=1e-3, rtol=0)


def test_training_lowers_the_loss():
    objective = CodecObjective(tiny_autoencoder(True), CodecLossConfig(latent_noise=0.0))
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).round() * 2 - 1
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(pixels)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
