"""A drawn face, to look at a mouth track: one picture, a strip of them, or a moving GIF."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from .avatar_codec import COEFFICIENTS
from .avatar_track import AvatarTrack

GIF_HZ = 20.0  # GIF counts in 1/100 s
OVERSAMPLED = 3  # drawn so many times larger: smooth edges
PAPER, SKIN, LINE, LIP, MOUTH, TEETH, TONGUE = (
    (244, 244, 240),
    (240, 203, 172),
    (92, 60, 46),
    (190, 84, 84),
    (70, 20, 26),
    (250, 250, 246),
    (206, 96, 104),
)
HAIR, IRIS = (84, 58, 44), (58, 92, 122)


@dataclass(frozen=True)
class _Face:
    """Coefficients by name, a pair's mean under its stem."""

    values: Float32[np.ndarray, "52"]

    def __getitem__(self, name: str) -> float:
        names = [name] if name in COEFFICIENTS else [name + "Left", name + "Right"]
        return float(np.mean([self.values[COEFFICIENTS.index(each)] for each in names]))


def draw_face(coefficients: Float32[np.ndarray, "52"], size: int = 240) -> Image.Image:
    """One face, RGB, `size` pixels a side.

    Raises:
        ValueError: for another number of coefficients, or a size below 32.

    Usage: `draw_face(track.coefficients[10]).save("face.png")`
    """
    if coefficients.shape != (len(COEFFICIENTS),):
        raise ValueError(f"a face must have {len(COEFFICIENTS)} coefficients, got {coefficients.shape}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    side = size * OVERSAMPLED
    image = Image.new("RGB", (side, side), PAPER)
    pen, unit, face = ImageDraw.Draw(image), side / 100, _Face(coefficients)
    _draw_head(pen, unit, face)
    for sign, which in ((-1, "Left"), (1, "Right")):  # its left eye on the left, as in a mirror
        _draw_eye(pen, unit, face, sign, which)
        _draw_brow(pen, unit, face, sign, which)
    pen.line(_scaled([(50, 50), (48.4, 58), (51, 59)], unit), fill=LINE, width=round(0.7 * unit))
    _draw_mouth(image, unit, face)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def draw_strip(track: AvatarTrack, count: int = 10, size: int = 160) -> Image.Image:
    """`count` faces of a track side by side, evenly spaced in time.

    Raises:
        ValueError: for a count below 1.

    Usage: `draw_strip(AvatarTrack.read("mouth.json"), count=12).save("strip.png")`
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    places = np.linspace(0, len(track) - 1, count).round().astype(int)
    strip = Image.new("RGB", (size * count, size))
    for column, place in enumerate(places):
        strip.paste(draw_face(track.coefficients[place], size), (column * size, 0))
    return strip


def write_gif(track: AvatarTrack, path: str | os.PathLike[str], size: int = 200) -> Path:
    """The track as a GIF that moves in its own time.

    Usage: `write_gif(AvatarTrack.read("mouth.json"), "face.gif")`
    """
    frames = [draw_face(values, size) for values in track.at(GIF_HZ).coefficients]
    first, *others = [frame.quantize(32, dither=Image.Dither.NONE) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=round(1000 / GIF_HZ), loop=0, format="GIF")
    return Path(path)


def _scaled(points: Sequence[tuple[float, float]], unit: float) -> list[tuple[float, float]]:
    return [(x * unit, y * unit) for x, y in points]


def _box(x: float, y: float, half_width: float, half_height: float, unit: float) -> tuple[float, float, float, float]:
    return (
        (x - half_width) * unit,
        (y - half_height) * unit,
        (x + half_width) * unit,
        (y + half_height) * unit,
    )


def _draw_head(pen: ImageDraw.ImageDraw, unit: float, face: _Face) -> None:
    chin = 90 + 5 * face["jawOpen"]
    puff = 2 * face["cheekPuff"]
    pen.ellipse(_box(50, 40, 37, 36, unit), fill=HAIR)
    pen.ellipse(((16 - puff) * unit, 12 * unit, (84 + puff) * unit, chin * unit), fill=SKIN)
    pen.pieslice(_box(50, 27, 34, 22, unit), 180, 360, fill=HAIR)


def _draw_eye(pen: ImageDraw.ImageDraw, unit: float, face: _Face, sign: int, which: str) -> None:
    x, y = 50 + sign * 15, 43.0
    wide, squint = face["eyeWide" + which], face["eyeSquint" + which]
    height = 5.2 * (1 + 0.35 * wide - 0.35 * squint) * (1 - face["eyeBlink" + which])
    if height < 0.7:
        pen.arc(_box(x, y - 1, 7, 2.4, unit), 0, 180, fill=LINE, width=round(0.9 * unit))
        return
    pen.ellipse(_box(x, y, 7, height, unit), fill=(255, 255, 255), outline=LINE, width=round(0.6 * unit))
    inwards = face["eyeLookIn" + which] - face["eyeLookOut" + which]
    down = face["eyeLookDown" + which] - face["eyeLookUp" + which]
    centre = (x - sign * 4 * inwards, y + 3 * down)
    pen.ellipse(_box(*centre, 3, min(3, height), unit), fill=IRIS)
    pen.ellipse(_box(*centre, 1.4, min(1.4, height), unit), fill=(20, 20, 24))


def _draw_brow(pen: ImageDraw.ImageDraw, unit: float, face: _Face, sign: int, which: str) -> None:
    down = face["browDown" + which]
    inner = 34 - 6 * face["browInnerUp"] + 4 * down
    outer = 34.5 - 6 * face["browOuterUp" + which] + 2 * down
    points = [(50 + sign * 7, inner), (50 + sign * 15, min(inner, outer) - 1.8), (50 + sign * 23, outer)]
    pen.line(_scaled(points, unit), fill=HAIR, width=round(1.8 * unit), joint="curve")


def _curve(x: float, half_width: float, ends: float, middle: float) -> list[tuple[float, float]]:
    """A lip line from corner to corner through its middle, flat there and steep at the corners."""
    places = np.linspace(-1, 1, 25)
    return [(x + half_width * p, ends + (middle - ends) * (1 - p**2) ** 0.8) for p in places.tolist()]


def _draw_mouth(image: Image.Image, unit: float, face: _Face) -> None:
    """Outer lips, and within them what an open mouth shows: teeth, and the tongue."""
    rounded = min(1.0, 0.55 * face["mouthFunnel"] + face["mouthPucker"])
    spread = face["mouthSmile"] + 0.6 * face["mouthStretch"] + 0.3 * face["mouthDimple"]
    x, y = 50 + 6 * (face["mouthRight"] - face["mouthLeft"]), 72 + 2.5 * face["jawOpen"]
    half = 13 * (1 - 0.6 * rounded) * (1 + 0.28 * spread)
    corner = y - 4.5 * face["mouthSmile"] + 4 * face["mouthFrown"]
    aperture = max(0.0, face["jawOpen"] - face["mouthClose"])
    top = y - 3 * aperture - 3.5 * face["mouthUpperUp"] - 2.2 * face["mouthFunnel"]
    bottom = y + 15 * aperture + 3.5 * face["mouthLowerDown"] + 2.2 * face["mouthFunnel"]
    pressed = 1 - 0.5 * face["mouthPress"]
    upper = max(0.5, (2.6 + 1.4 * rounded) * (1 - 0.7 * face["mouthRollUpper"]) * pressed)
    lower = max(0.6, (3.2 + 1.4 * rounded) * (1 - 0.7 * face["mouthRollLower"]) * pressed)
    outer = _curve(x, half + 1.2, corner, top - upper) + _curve(x, half + 1.2, corner, bottom + lower)[::-1]
    inner = _curve(x, half, corner, top) + _curve(x, half, corner, bottom)[::-1]
    pen = ImageDraw.Draw(image)
    pen.polygon(_scaled(outer, unit), fill=LIP)
    if bottom - top < 0.8:
        seam = _curve(x, half, corner, (top + bottom) / 2)
        pen.line(_scaled(seam, unit), fill=MOUTH, width=round(0.7 * unit), joint="curve")
        return
    opening = Image.new("L", image.size, 0)
    ImageDraw.Draw(opening).polygon(_scaled(inner, unit), fill=255)
    inside = Image.new("RGB", image.size, MOUTH)
    pen = ImageDraw.Draw(inside)
    tongue = bottom - 2 - 9 * face["tongueOut"]
    pen.ellipse(_box(x, tongue + 5, 0.7 * half, 5, unit), fill=TONGUE)
    pen.rectangle(_box(x, top, 0.8 * half, 2.6, unit), fill=TEETH)
    image.paste(inside, mask=opening)
