"""Pictures as they come, by Pillow, numpy, torch or from a file, to pixels that a codec reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

Picture: TypeAlias = Image.Image | np.ndarray | Tensor | str | Path
Pictures: TypeAlias = Picture | Sequence[Picture]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # others start programs (EPS) or are hardly tested


def read_pictures(name: str, given: Pictures) -> list[Float[Tensor, "3 height width"]]:
    """One or several pictures as float32 pixels in [-1, 1], each in its own size.

    Args:
        name: of the argument, for errors.
        given: pictures of Pillow (what is transparent becomes white), paths, arrays (height, width, 3) or tensors
            (3, height, width), uint8 or float in [0, 1]; a list of them, or an array or tensor with a batch axis first.

    Raises:
        ValueError: for another kind, shape, dtype or range, a file that cannot be read, or a file or picture of Pillow
            with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, which is not decoded.

    Usage: `pixels = read_pictures("image", "cat.png")[0]`
    """
    return [read_one(name, picture, channels=3) * 2 - 1 for picture in each_of(name, given)]


def read_masks(name: str, given: Pictures) -> list[Bool[Tensor, "1 height width"]]:
    """One or several masks, True where a picture is to be drawn anew: at half of white and above.

    Masks are given as pictures are, with one channel; arrays and tensors of one mask may leave it out, and be bool.

    Raises:
        ValueError: as `read_pictures` does.

    Usage: `mask = read_masks("mask_image", "mask.png")[0]`
    """
    return [read_one(name, mask, channels=1) >= 0.5 for mask in each_of(name, given)]


def each_of(name: str, given: Pictures) -> list[Any]:
    """The pictures of an argument, one by one."""
    pictures: list[Any] = [given]
    if isinstance(given, list | tuple) or (isinstance(given, np.ndarray | Tensor) and given.ndim == 4):
        pictures = list(given)
    if not pictures:
        raise ValueError(f"{name} must hold at least one picture, got none")
    return pictures


def read_one(name: str, picture: Any, channels: int) -> Float[Tensor, "channels height width"]:
    """One picture as float32 pixels in [0, 1]."""
    if isinstance(picture, str | Path):
        picture = from_file(name, Path(picture), channels)
    elif isinstance(picture, Image.Image):
        picture = from_pillow(name, picture, channels)
    if isinstance(picture, np.ndarray) and (picture.dtype == np.uint8 or picture.dtype.kind in "fb"):
        is_bytes = picture.dtype == np.uint8
        values = torch.from_numpy(np.array(picture, dtype=np.uint8 if is_bytes else np.float32))
        values = values.permute(2, 0, 1) if values.ndim == 3 else values
    elif isinstance(picture, Tensor) and (picture.is_floating_point() or picture.dtype in (torch.uint8, torch.bool)):
        values = picture.detach().cpu()
    else:
        got = f"dtype {picture.dtype}" if isinstance(picture, np.ndarray | Tensor) else type(picture).__name__
        raise ValueError(
            f"{name} must be a picture of Pillow, a path, or an array or tensor of uint8 or of floats in [0, 1], "
            f"got {got}"
        )
    if channels == 1 and values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] != channels or not values.numel():
        raise ValueError(
            f"{name} must be an array (height, width, {channels}) or a tensor ({channels}, height, width), "
            f"got {tuple(picture.shape)}"
        )
    values = values / 255 if values.dtype == torch.uint8 else values.float()
    if not bool(((values >= 0) & (values <= 1)).all()):  # also false for NaN
        raise ValueError(f"floats of {name} must be in [0, 1], got values from {values.min():g} to {values.max():g}")
    return values


def from_file(name: str, path: Path, channels: int) -> np.ndarray:
    """A picture file as uint8 (height, width, channels)."""
    if not path.is_file():
        raise ValueError(f"{name} must be a picture file, got {str(path)!r}, which is none")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return from_pillow(name, picture, channels)
    except Exception as error:  # Pillow's readers raise whatever they trip over in a broken file
        raise ValueError(f"{name} must be a picture that can be read, got {path.name!r}: {error}") from error


def from_pillow(name: str, picture: Image.Image, channels: int) -> np.ndarray:
    """A picture of Pillow as uint8 (height, width, channels), turned as its EXIF says, white where transparent."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and picture.width * picture.height > most:
        raise ValueError(f"{name} must have at most {most} pixels, got {picture.width} x {picture.height}")
    try:
        picture = ImageOps.exif_transpose(picture)
    except OSError as error:
        raise ValueError(f"{name} must be a picture that can be read, got {error}") from error
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    pixels = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
    return pixels if channels == 3 else pixels[..., None]
