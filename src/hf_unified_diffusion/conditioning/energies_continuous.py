"""Ready energies of pictures and sounds."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .energy import check_scale


@dataclass(frozen=True)
class KeepPixels:
    """Keep given pixels: half the squared distance to them.

    Args:
        target: float (3, H, W) or whatever shape a sample has.
        mask: bool, broadcast to it, True where kept.
        tolerance: root mean squared error of the kept pixels that a finished picture may have.

    Raises:
        ValueError: for a mask that keeps nothing, or shapes that do not match.

    Usage: `KeepPixels(picture, mask, weight=1.0)`
    """

    target: Float[Tensor, "*shape"]
    mask: Bool[Tensor, "*mask"]
    tolerance: float = 0.05
    weight: float = 1.0
    name: str = "keep pixels"

    def __post_init__(self) -> None:
        check_scale("tolerance", self.tolerance)
        if self.mask.dtype != torch.bool or not bool(self.mask.any()):
            raise ValueError(f"mask must be bool and keep a pixel, got {self.mask.dtype} without")
        sizes = zip(reversed(self.mask.shape), reversed(self.target.shape), strict=False)
        if self.mask.ndim > self.target.ndim or any(size not in (1, whole) for size, whole in sizes):
            raise ValueError(f"mask must fit {tuple(self.target.shape)}, got {tuple(self.mask.shape)}")

    def __call__(self, clean: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        return self._error(clean).square().flatten(1).sum(dim=1) / 2

    def accepts(self, clean: Float[Tensor, "batch *shape"]) -> Bool[Tensor, "batch"]:
        kept = self.mask.expand_as(self.target).sum()
        return (self._error(clean).square().flatten(1).sum(dim=1) / kept).sqrt() <= self.tolerance

    def _error(self, clean: Tensor) -> Tensor:
        if clean.shape[1:] != self.target.shape:
            raise ValueError(f"samples must have the target's shape {tuple(self.target.shape)}, got {clean.shape[1:]}")
        return (clean - self.target.to(clean)) * self.mask.to(clean.device)


@dataclass(frozen=True)
class Palette:
    """Use some colours only: half the squared distance of each pixel to the nearest one.

    Args:
        colors: float (k, channels), in the units of the samples (..., channels, H, W).
        tolerance: root mean squared distance, per pixel, that a finished picture may have.

    Usage: `Palette(torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))  # red and white`
    """

    colors: Float[Tensor, "colors channels"]
    tolerance: float = 0.1
    weight: float = 1.0
    name: str = "palette"

    def __post_init__(self) -> None:
        check_scale("tolerance", self.tolerance)
        if self.colors.ndim != 2 or self.colors.numel() == 0 or not bool(self.colors.isfinite().all()):
            raise ValueError(f"colors must be finite (colors, channels), got {tuple(self.colors.shape)}")

    def __call__(self, clean: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch"]:
        return self._squared_distance(clean).flatten(1).sum(dim=1) / 2

    def accepts(self, clean: Float[Tensor, "batch channels height width"]) -> Bool[Tensor, "batch"]:
        return self._squared_distance(clean).flatten(1).mean(dim=1).sqrt() <= self.tolerance

    def _squared_distance(self, clean: Tensor) -> Float[Tensor, "batch height width"]:
        if clean.ndim != 4 or clean.shape[1] != self.colors.shape[1]:
            raise ValueError(f"samples must be (batch, {self.colors.shape[1]}, H, W), got {tuple(clean.shape)}")
        colors = self.colors.to(clean)[None, :, :, None, None]
        return (clean[:, None] - colors).square().sum(dim=2).amin(dim=1)


@dataclass(frozen=True)
class Loudness:
    """A level: half the squared difference of the root mean square from the wished one, times the number of values.

    A step of scale 1 down its gradient sets the level exactly. Unweighted: no ITU-R BS.1770 filter.

    Args:
        level_db: relative to full scale (root mean square 1 is 0 dB).
        tolerance_db: how far a finished sound may be from it.

    Usage: `Loudness(-20.0)`
    """

    level_db: float
    tolerance_db: float = 1.0
    weight: float = 1.0
    name: str = "loudness"

    def __post_init__(self) -> None:
        check_scale("tolerance_db", self.tolerance_db)
        if not -200 <= self.level_db <= 200:
            raise ValueError(f"level_db must be in [-200, 200], got {self.level_db}")

    def __call__(self, clean: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
        count = clean[0].numel()
        return count * (rms(clean) - 10 ** (self.level_db / 20)).square() / 2

    def accepts(self, clean: Float[Tensor, "batch *shape"]) -> Bool[Tensor, "batch"]:
        return (20 * rms(clean).log10() - self.level_db).abs() <= self.tolerance_db


def rms(clean: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch"]:
    """Root mean square of each sample; silence has 1e-12, so that its gradient is finite.

    Usage: `level_db = 20 * rms(sound).log10()`
    """
    return (clean.flatten(1).square().mean(dim=1) + 1e-24).sqrt()
