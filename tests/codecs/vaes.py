"""Tiny random autoencoders of each family."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny


def tiny_dc(latent_channels: int = 8, resolutions: int = 6) -> AutoencoderDC:
    """32 pixels a token; the same weights each time."""
    torch.manual_seed(0)
    channels = (8,) * resolutions
    sizes = {"encoder_block_out_channels": channels, "decoder_block_out_channels": channels}
    layers = {"encoder_layers_per_block": (1,) * resolutions, "decoder_layers_per_block": (1,) * resolutions}
    scales = {"encoder_qkv_multiscales": ((),) * resolutions, "decoder_qkv_multiscales": ((),) * resolutions}
    plain = {"encoder_out_shortcut": latent_channels <= 8, "decoder_in_shortcut": latent_channels <= 8}
    shape = {**sizes, **layers, **scales, **plain}
    return AutoencoderDC(latent_channels=latent_channels, attention_head_dim=8, **shape).eval()


def tiny_taesd(**config) -> AutoencoderTiny:
    """8 pixels a token."""
    torch.manual_seed(0)
    channels = (8, 8, 8, 8)
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    sizes = {"encoder_block_out_channels": channels, "decoder_block_out_channels": channels}
    return AutoencoderTiny(**sizes, **blocks, **config).eval()


def tiny_kl(**config) -> AutoencoderKL:
    """2 pixels a token."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks, **config).eval()
