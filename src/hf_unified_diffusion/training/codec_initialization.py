"""Start an image codec as the best linear one: principal components of patches, level by level.

The encoder that comes out is the one that is kept: training the decoder alone leaves the latents what they are, so that
latents cached today and networks trained on them stay good when the decoder gets better. Everything nonlinear in the
decoder starts at zero, as in residual networks whose branches do.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import AutoencoderDC
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

# A constant channel before the last normalization, large beside the pixels' 12 values: dividing by their root mean
# square is then nearly dividing by a constant, and colours survive it.
CONSTANT = 24.0
CONSTANT_CHANNEL = 12
# Pixels less white lie in [-2, 0]: shifted by this they pass a ReLU.
SHIFT = 2.5
RIDGE = 3e-4  # of the mean square of a decoder's inputs
PATCHES_AT_ONCE = 16_384
MAX_PATCHES = 131_072  # that a convolution is fitted to

Maps = list[Float[Tensor, "batch channels height width"]]


def principal_components(moment: Float[Tensor, "inputs inputs"], count: int) -> Float[Tensor, "inputs count"]:
    """Orthonormal directions of the largest second moments, largest first."""
    return torch.linalg.eigh(moment.double()).eigenvectors.flip(1)[:, :count].float()


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


def second_moment(maps: Maps) -> Float[Tensor, "channels channels"]:
    """Mean of x x^T over all places, float64."""
    rows = sum(len(rows_of(features)) for features in maps)
    return sum(rows_of(features).double().T @ rows_of(features).double() for features in maps) / rows


@torch.no_grad()
def initialize_linear(vae: AutoencoderDC, pixels: Sequence[Float[Tensor, "batch 3 height width"]]) -> None:
    """Set the weights so that the autoencoder projects patches on their principal components, in place.

    Its latents have mean 0, and on average variance 1 in every channel (a Hadamard rotation shares the components'
    energy out), so an error of a latent is the same error of the picture whatever its channel. The decoder's
    convolutions are the least-squares answers from 3 x 3 latents, level by level, so that patches see their neighbours.

    Args:
        pixels: in [-1, 1]; batches of some hundred pictures whose sides the codec's compression divides.

    Raises:
        ValueError: for an autoencoder of another build: it must be one of `convolutional_autoencoder`, more than 12
            wide at half resolution, with a power of 2 of latent channels.

    Usage: `initialize_linear(vae, [views.batch(1600, 128), views.batch(200, 256)])`
    """
    config = vae.config
    widths = config.encoder_block_out_channels
    if config.encoder_out_shortcut or config.decoder_in_shortcut or config.downsample_block_type != "conv":
        raise ValueError("a linear start needs strided convolutions and no shortcuts at the latents")
    if widths != config.decoder_block_out_channels or widths[1] <= CONSTANT_CHANNEL:
        raise ValueError(
            f"a linear start needs equal widths, above {CONSTANT_CHANNEL} at half resolution, got {widths}"
        )
    silence_branches(vae)
    levels = [start_pixels(vae, pixels)]
    for block, width in zip(vae.encoder.down_blocks[1:-1], widths[2:], strict=True):
        children = [F.pixel_unshuffle(features, 2) for features in levels[-1]]
        basis = principal_components(second_moment(children), min(width, children[0].shape[1]))
        set_down(block[-1].conv, basis.T / 2, levels[-1][0].shape[1])
        levels.append([torch.einsum("bchw,cd->bdhw", each, basis / 2) for each in children])
    set_latents(vae, levels[-1])
    decoded = fit(vae.decoder.conv_in, [vae.encoder.conv_out(each) for each in levels[-1]], levels[-1])
    for features in levels[0]:
        features[:, CONSTANT_CHANNEL] = CONSTANT
    for block, wanted in zip(reversed(vae.decoder.up_blocks[1:-1]), reversed(levels[:-1]), strict=True):
        up = block[0]
        repeated = [each.repeat_interleave(up.repeats, dim=1) for each in decoded]
        rest = [F.pixel_unshuffle(w, 2) - r for w, r in zip(wanted, repeated, strict=True)]
        fitted = fit(up.conv, decoded, rest)
        decoded = [F.pixel_shuffle(f + r, 2) for f, r in zip(fitted, repeated, strict=True)]


def silence_branches(vae: AutoencoderDC) -> None:
    """Every residual branch gives zero: its last scale in the decoder, which learns, all of it in the encoder."""
    for name, parameter in vae.named_parameters():
        if "_blocks." in name and (".norm." in name or name.startswith("encoder.")):
            parameter.zero_()


def start_pixels(vae: AutoencoderDC, pixels: Sequence[Float[Tensor, "batch 3 height width"]]) -> Maps:
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
    return [F.pad(F.pixel_unshuffle(each - 1, 2), (0, 0, 0, 0, 0, width - 12)) for each in pixels]


def set_down(conv, projection: Float[Tensor, "outputs inputs4"], inputs: int) -> None:
    """A strided convolution that is `projection` of 2x2 places, less the average that the block adds to it."""
    outputs = conv.weight.shape[0]
    group = 4 * inputs // outputs
    whole = F.pad(projection, (0, 0, 0, outputs - len(projection)))
    whole = whole - torch.eye(outputs).repeat_interleave(group, dim=1) / group
    conv.weight.zero_()
    conv.weight[:, :, 1:, 1:] = whole.unflatten(1, (inputs, 2, 2))
    conv.bias.zero_()


def set_latents(vae: AutoencoderDC, features: Maps) -> None:
    """The convolution to the latents: principal components, rotated and scaled to variance 1."""
    rows = torch.cat([rows_of(each) for each in features])
    mean, width = rows.mean(0), vae.config.latent_channels
    basis = principal_components((rows - mean).T.double() @ (rows - mean).double(), width) @ hadamard(width)
    scale = ((rows - mean) @ basis).square().mean().sqrt()
    conv = vae.encoder.conv_out
    conv.weight.zero_()
    conv.weight[:, :, 1, 1] = basis.T / scale
    conv.bias.copy_(-(basis.T @ mean) / scale)


def fit(conv, given: Maps, wanted: Maps) -> Maps:
    """Give a 3x3 convolution the weights of least squares, a small ridge added; returns what it makes of `given`."""
    channels = given[0].shape[1]
    left = torch.zeros(9 * channels + 1, 9 * channels + 1, dtype=torch.float64)
    right = torch.zeros(9 * channels + 1, wanted[0].shape[1], dtype=torch.float64)
    for x, y in zip(given, wanted, strict=True):
        places = x.shape[2] * x.shape[3]
        at_once = max(1, PATCHES_AT_ONCE // places)
        most = max(1, MAX_PATCHES // len(given) // places)
        for part_x, part_y in zip(x[:most].split(at_once), y[:most].split(at_once), strict=True):
            patches = F.unfold(part_x, 3, padding=1).transpose(1, 2).flatten(0, 1)
            patches = F.pad(patches, (0, 1), value=1.0)
            left += patches.T @ patches
            right += patches.T @ rows_of(part_y)
    ridge = RIDGE * left.diagonal()[:-1].mean()
    left.diagonal()[:-1] += ridge
    weights = torch.linalg.solve(left, right).float()
    conv.weight.copy_(weights[:-1].T.unflatten(1, (channels, 3, 3)))
    conv.bias.copy_(weights[-1])
    return [conv(each) for each in given]
