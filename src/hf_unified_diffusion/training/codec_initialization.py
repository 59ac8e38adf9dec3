"""Start an image codec as the best linear one: principal components of patches, level by level.

Training then begins at the quality of a linear transform code, where the same network with random weights would need
most of a short run to get there. Everything nonlinear starts at zero, as in residual networks whose branches do.
"""

import math

import torch
from diffusers import AutoencoderDC
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# A constant channel before the last normalization, large beside the pixels' 12 values: dividing by their root mean
# square is then nearly dividing by a constant, and colours survive it.
CONSTANT = 24.0
# Pixels less white lie in [-2, 0]: shifted by this they pass a ReLU.
SHIFT = 2.5


def principal_components(features: Float[Tensor, "rows inputs"], count: int) -> Float[Tensor, "inputs count"]:
    """Orthonormal directions of the largest second moments, largest first."""
    moment = features.double().T @ features.double()
    return torch.linalg.eigh(moment).eigenvectors.flip(1)[:, :count].float()


def hadamard(size: int) -> Float[Tensor, "size size"]:
    """Orthonormal matrix whose entries are all 1/sqrt(size) in size. Raises ValueError unless size is a power of 2."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"latent channels must be a power of 2, got {size}")
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(size)


def rows_of(features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "rows channels"]:
    """One row a place."""
    return features.flatten(2).transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def initialize_linear(vae: AutoencoderDC, pixels: Float[Tensor, "batch 3 height width"]) -> None:
    """Set the weights so that the autoencoder projects patches on their principal components, in place.

    Its latents have mean 0 and variance 1 in every channel (a Hadamard rotation shares the components' energy out), so
    an error of a latent is the same error of the picture whatever its channel. The widths must be (c_0, c_1, ...) with
    no layer at c_0, c_1 above 12, `downsample_block_type="conv"`, and no shortcut at the latents.

    Args:
        pixels: in [-1, 1]; some hundred pictures whose sides the codec's compression divides.

    Raises ValueError for an autoencoder of another build.
    """
    config = vae.config
    widths = config.encoder_block_out_channels
    if config.encoder_out_shortcut or config.decoder_in_shortcut or config.downsample_block_type != "conv":
        raise ValueError("a linear start needs strided convolutions and no shortcuts at the latents")
    if widths != config.decoder_block_out_channels or widths[1] <= 12 or config.encoder_layers_per_block[0] > 0:
        raise ValueError(f"a linear start needs equal widths, more than 12 at half resolution, got {widths}")
    silence_branches(vae)
    encoder_downs = [block[-1].conv for block in vae.encoder.down_blocks[1:-1]]
    decoder_ups = [block[0] for block in vae.decoder.up_blocks[1:-1]]
    features = start_pixels(vae, pixels)
    for down, up, width in zip(encoder_downs, decoder_ups, widths[2:], strict=True):
        children = F.pixel_unshuffle(features, 2)
        basis = principal_components(rows_of(children), min(width, children.shape[1]))
        set_down(down, basis.T / 2, features.shape[1])
        set_up(up, 2 * basis)
        features = torch.einsum("bchw,cd->bdhw", children, basis / 2)
    # after the levels: they set biases to zero
    constant = slice(12 * 4, 13 * 4)
    decoder_ups[0].conv.bias[constant] = CONSTANT
    set_latents(vae, rows_of(features))


def silence_branches(vae: AutoencoderDC) -> None:
    """Every residual branch gives zero: the scale of its last normalization is zero."""
    for name, parameter in vae.named_parameters():
        if "_blocks." in name and ".norm." in name:
            parameter.zero_()


def start_pixels(vae: AutoencoderDC, pixels: Float[Tensor, "batch 3 height width"]) -> Tensor:
    """First and last convolution: the 12 numbers of 2x2 pixels less white; returns them, padded to the width."""
    width = vae.config.encoder_block_out_channels[1]
    first = vae.encoder.conv_in.conv
    first.weight.zero_()
    first.bias.zero_()
    first.bias[:12] = -1
    for i in range(12):
        colour, row, column = i // 4, i // 2 % 2, i % 2
        first.weight[i, colour, 1 + row, 1 + column] = 1
    norm, last = vae.decoder.norm_out, vae.decoder.conv_out.conv
    norm.weight.fill_(CONSTANT / math.sqrt(width))
    norm.bias.zero_()
    norm.bias[:12] = SHIFT
    last.weight.zero_()
    last.weight[:12, :12, 1, 1] = torch.eye(12)
    last.bias.fill_(1 - SHIFT)
    return F.pad(F.pixel_unshuffle(pixels - 1, 2), (0, 0, 0, 0, 0, width - 12))


def set_down(conv, projection: Float[Tensor, "outputs inputs4"], inputs: int) -> None:
    """A strided convolution that is `projection` of 2x2 places, less the average that the block adds to it."""
    outputs = conv.weight.shape[0]
    group = 4 * inputs // outputs
    whole = F.pad(projection, (0, 0, 0, outputs - len(projection)))
    whole = whole - torch.eye(outputs).repeat_interleave(group, dim=1) / group
    conv.weight.zero_()
    conv.weight[:, :, 1:, 1:] = whole.unflatten(1, (inputs, 2, 2))
    conv.bias.zero_()


def set_up(block, expansion: Float[Tensor, "outputs4 inputs"]) -> None:
    """A convolution that is `expansion` to 2x2 places, less the repetition that the block adds to it."""
    conv = block.conv
    outputs, inputs = conv.weight.shape[:2]
    whole = F.pad(expansion, (0, inputs - expansion.shape[1]))
    conv.weight.zero_()
    conv.weight[:, :, 1, 1] = whole - torch.eye(inputs).repeat_interleave(outputs // inputs, dim=0)
    conv.bias.zero_()


def set_latents(vae: AutoencoderDC, features: Float[Tensor, "rows channels"]) -> None:
    """The convolutions at the latents: principal components, rotated and scaled to variance 1, and back."""
    mean = features.mean(0)
    basis = principal_components(features - mean, vae.config.latent_channels) @ hadamard(vae.config.latent_channels)
    scale = ((features - mean) @ basis).square().mean().sqrt()
    for conv, matrix in ((vae.encoder.conv_out, basis.T / scale), (vae.decoder.conv_in, basis * scale)):
        conv.weight.zero_()
        conv.weight[:, :, 1, 1] = matrix
    vae.encoder.conv_out.bias.copy_(-(basis.T @ mean) / scale)
    vae.decoder.conv_in.bias.copy_(mean)
