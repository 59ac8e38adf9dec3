"""A picture of a thing in another colour."""

import torch
from jaxtyping import Float
from torch import Tensor

# What people call so: medians of the XKCD colour survey (xkcd.com/color/rgb, CC0).
COLOURS = {
    "red": 0xE50000,
    "orange": 0xF97306,
    "yellow": 0xFFFF14,
    "green": 0x15B01A,
    "blue": 0x0343DF,
    "turquoise": 0x06C2AC,
    "cyan": 0x00FFFF,
    "purple": 0x7E1E9C,
    "violet": 0x9A0EEA,
    "pink": 0xFF81C0,
    "brown": 0x653700,
    "black": 0x000000,
    "white": 0xFFFFFF,
    "gray": 0x929591,
    "grey": 0x929591,
}
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
EDGE = 0.25  # difference from the background, in [0, 1], from which a pixel is wholly of the thing
DARKEST, LIGHTEST = 0.55, 0.45  # of black, of white in the shades at both ends
LEAST_CONTRAST = 0.25  # between the middle and either end of a thing's luminance, to be drawn as that of its shades


def in_shades_of(pixels: Float[Tensor, "3 height width"], colour: str) -> Float[Tensor, "3 height width"]:
    """The thing on a picture in shades of one colour: its middle luminance becomes the colour, what is darker and
    lighter its shades and tints. The background, which is the colour of the edges, stays.

    Args:
        pixels: in [-1, 1].
        colour: a name of `COLOURS`.

    Raises:
        ValueError: for another name.

    Usage: `blue = in_shades_of(pixels, "blue")`
    """
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {sorted(COLOURS)}, got {colour!r}")
    seen = ((pixels + 1) / 2).clamp(0, 1)
    thing = _thing(seen)
    light = torch.einsum("c,chw->hw", torch.tensor(LUMINANCE).to(seen), seen)
    inside = light[thing > 0.5]
    if not len(inside):
        return pixels
    low, middle, high = inside.quantile(torch.tensor([0.02, 0.5, 0.98]).to(inside))
    dark = ((middle - light) / (middle - low).clamp(min=LEAST_CONTRAST)).clamp(0, 1)
    bright = ((light - middle) / (high - middle).clamp(min=LEAST_CONTRAST)).clamp(0, 1)
    code = COLOURS[colour]
    wanted = torch.tensor([code >> 16, code >> 8 & 255, code & 255]).to(seen)[:, None, None] / 255
    shades = wanted * (1 - DARKEST * dark)
    shades = shades + LIGHTEST * bright * (1 - shades)
    return (seen + thing * (shades - seen)) * 2 - 1


def _thing(seen: Float[Tensor, "3 height width"]) -> Float[Tensor, "height width"]:
    """How far each pixel, in [0, 1], is not of the colour of the edges: 1 is wholly of the thing."""
    edges = torch.cat([seen[:, 0], seen[:, -1], seen[:, :, 0], seen[:, :, -1]], dim=1).median(dim=1).values
    return ((seen - edges[:, None, None]).abs().amax(dim=0) / EDGE).clamp(max=1)
