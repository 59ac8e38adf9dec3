"""Pixels and tokens are the autoencoder's own, in rows, normalized as its config says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_unified_diffusion.codecs.image_codec import ImageCodec
from hf_unified_diffusion.codecs.picture_positions import image_positions
from tests.codecs.vaes import tiny_dc, tiny_kl, tiny_taesd

PICTURES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("vae", "downsampling", "width"), [(tiny_dc(), 32, 8), (tiny_taesd(), 8, 4), (tiny_kl(), 2, 4)]
)
@torch.no_grad()
def test_tokens_are_the_latents_in_rows(vae, downsampling, width):
    codec = ImageCodec(vae)
    assert (codec.downsampling, codec.width) == (downsampling, width)
    latents = vae.encode(PICTURES, return_dict=False)[0]
    latents = latents.mode() if isinstance(vae, type(tiny_kl())) else latents
    rows, columns = codec.grid(64, 96)
    tokens = codec.encode(PICTURES)
    assert tokens.shape == (2, rows * columns, width)
    scale = vae.config.scaling_factor
    torch.testing.assert_close(tokens[:, columns + 1], latents[:, :, 1, 1] * scale)  # the second row, second column
    pixels = codec.decode(tokens, 64, 96)
    torch.testing.assert_close(pixels, vae.decode(latents).sample.clamp(-1, 1))
    assert pixels.shape == PICTURES.shape


@pytest.mark.parametrize("make", [tiny_taesd, tiny_kl])
@torch.no_grad()
def test_the_normalization_of_a_config_goes_in_and_out(make):
    plain = ImageCodec(make(scaling_factor=1.0))
    scaled = ImageCodec(make(scaling_factor=0.5, shift_factor=0.25))
    tokens = plain.encode(PICTURES)
    torch.testing.assert_close(scaled.encode(PICTURES), (tokens - 0.25) * 0.5)
    torch.testing.assert_close(scaled.decode(scaled.encode(PICTURES), 64, 96), plain.decode(tokens, 64, 96))


@torch.no_grad()
def test_mean_and_deviation_of_each_channel_go_in_and_out():
    mean, std = [0.0, 0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0]
    plain = ImageCodec(tiny_kl(scaling_factor=1.0))
    scaled = ImageCodec(tiny_kl(scaling_factor=1.0, latents_mean=mean, latents_std=std))
    tokens = plain.encode(PICTURES)
    torch.testing.assert_close(scaled.encode(PICTURES), (tokens - torch.tensor(mean)) / torch.tensor(std))
    torch.testing.assert_close(scaled.decode(scaled.encode(PICTURES), 64, 96), plain.decode(tokens, 64, 96))


@torch.no_grad()
def test_pixels_stay_in_range():
    pixels = ImageCodec(tiny_dc()).decode(torch.full((1, 1, 8), 1e4), 32, 32)
    assert pixels.abs().max() <= 1


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), start=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_positions_count_rows_and_columns_from_the_start(rows, columns, start):
    places = image_positions(rows, columns, start)
    assert places.shape == (rows * columns, 3)
    for index, place in enumerate(places.tolist()):
        assert place == [start, start + index // columns, start + index % columns]


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(33, 32, "height must be a positive multiple of 32, got 33"), (32, 0, "width must .* got 0"), (32.0, 32, "32.0")],
)
def test_sizes_that_do_not_divide_are_refused(height, width, message):
    with pytest.raises(ValueError, match=message):
        ImageCodec(tiny_dc()).decode(torch.zeros(1, 1, 8), height, width)


def test_other_shapes_dtypes_and_autoencoders_are_refused():
    codec = ImageCodec(tiny_dc())
    with pytest.raises(ValueError, match=r"got torch.uint8 \(1, 3, 32, 32\)"):
        codec.encode(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="height must be a positive multiple of 32, got 48"):
        codec.encode(torch.zeros(1, 3, 48, 32))
    with pytest.raises(ValueError, match=r"must be float \(batch, 2, 8\), got torch.float32 \(1, 3, 8\)"):
        codec.decode(torch.zeros(1, 3, 8), 64, 32)
    with pytest.raises(ValueError, match="got AutoencoderTiny with in_channels=1"):
        ImageCodec(tiny_taesd(in_channels=1))
