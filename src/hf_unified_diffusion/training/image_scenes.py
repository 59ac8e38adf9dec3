"""Composed scenes: counts, colours and relations of shapes and objects, drawn from a seed, with their attributes."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from PIL import Image, ImageOps

from .image_concepts import plural, with_article

COLOURS = {
    "red": "#e0251f",
    "orange": "#f58a1f",
    "yellow": "#f7d21e",
    "green": "#2fa84f",
    "blue": "#2463d6",
    "purple": "#8038b8",
    "pink": "#f27fb2",
    "brown": "#8a5a32",
    "black": "#1c1c1c",
    "gray": "#8e9499",
    "turquoise": "#2bc4c0",
}
SHAPES = {
    "circle": '<circle cx="50" cy="50" r="48"/>',
    "square": '<rect x="4" y="4" width="92" height="92"/>',
    "triangle": '<polygon points="50,4 98,94 2,94"/>',
    "diamond": '<polygon points="50,2 90,50 50,98 10,50"/>',
    "star": '<polygon points="50,2 62,37 98,38 69,60 79,96 50,75 21,96 31,60 2,38 38,37"/>',
    "hexagon": '<polygon points="26,6 74,6 98,50 74,94 26,94 2,50"/>',
    "rectangle": '<rect x="2" y="24" width="96" height="52"/>',
    "oval": '<ellipse cx="50" cy="50" rx="48" ry="30"/>',
    "cross": '<polygon points="34,2 66,2 66,34 98,34 98,66 66,66 66,98 34,98 34,66 2,66 2,34 34,34"/>',
    "heart": (
        '<path d="M50 94C20 70 2 52 2 30C2 12 16 4 28 4C38 4 46 10 50 18'
        'C54 10 62 4 72 4C84 4 98 12 98 30C98 52 80 70 50 94Z"/>'
    ),
    "ring": '<path fill-rule="evenodd" d="M50 2A48 48 0 1 1 49.9 2ZM50 26A24 24 0 1 0 50.1 26Z"/>',
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
MAX_TINTED_LUMINANCE = 235  # of 255: a drawing all white has no shade to carry a colour


@dataclass(frozen=True)
class Part:
    """So many of one shape or object, all of one colour (None: as it is drawn)."""

    name: str
    count: int = 1
    colour: str | None = None
    is_shape: bool = False

    @property
    def described(self) -> str:
        """ "a red circle", "two cats"."""
        words = self.name if self.colour is None else f"{self.colour} {self.name}"
        return with_article(words) if self.count == 1 else f"{NUMBERS[self.count]} {plural(words)}"


@dataclass(frozen=True)
class Scene:
    """One or two parts; `relation` places the first against the second, None means side by side or alone."""

    parts: tuple[Part, ...]
    relation: str | None = None

    @property
    def key(self) -> str:
        """What the scene shows, in one line: the concept it is split by."""
        return f"scene: {self.captions[0]}"

    @property
    def captions(self) -> list[str]:
        """Variants of a caption."""
        described = [part.described for part in self.parts]
        if self.relation is None:
            whole = " and ".join(described)
            return list(dict.fromkeys([whole, " and ".join(reversed(described)), f"a picture of {whole}"]))
        towards = self.relation if self.relation in ("above", "below") else f"to the {self.relation}"
        return [
            f"{described[0]} {self.relation} {described[1]}",
            f"{described[0]} {towards} {described[1]}",
            f"{described[1]} {OPPOSITE[self.relation]} {described[0]}",
        ]

    @property
    def attributes(self) -> str:
        """JSON: {"parts": [{"name", "count", "colour", "is_shape"}, ...], "relation": ...}."""
        return json.dumps({"parts": [asdict(part) for part in self.parts], "relation": self.relation})


def draw_scene(rng: random.Random, objects: Sequence[str]) -> Scene:
    """A scene at random: one part alone (coloured, or counted) or two in a relation; half of the parts are shapes."""
    kind = rng.choices(("coloured", "counted", "related", "together"), (4, 2, 3, 1))[0]
    if kind == "coloured":
        return Scene((draw_part(rng, objects, coloured=True),))
    if kind == "counted":
        return Scene((draw_part(rng, objects, coloured=rng.random() < 0.5, count=rng.choice(list(NUMBERS))),))
    first = draw_part(rng, objects, coloured=rng.random() < 0.5)
    second = first
    while second.name == first.name:
        second = draw_part(rng, objects, coloured=rng.random() < 0.5)
    return Scene((first, second), rng.choice(RELATIONS) if kind == "related" else None)


def draw_part(rng: random.Random, objects: Sequence[str], coloured: bool, count: int = 1) -> Part:
    """A shape (always coloured) or one of the objects."""
    is_shape = rng.random() < 0.5
    name = rng.choice(list(SHAPES) if is_shape else objects)
    return Part(name, count, rng.choice(list(COLOURS)) if coloured or is_shape else None, is_shape)


def shape_svg(part: Part) -> bytes:
    """A shape in its colour."""
    assert part.colour is not None  # shapes are always coloured
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100" viewBox="0 0 100 100">'
    return f'{head}<g fill="{COLOURS[part.colour]}">{SHAPES[part.name]}</g></svg>'.encode()


def tinted(picture: Image.Image, colour: str) -> Image.Image:
    """The drawing in shades of one colour: dark stays dark, light becomes a light tint."""
    grey = ImageOps.autocontrast(
        picture.convert("L"), cutoff=2, mask=picture.getchannel("A").point(lambda a: 255 * (a > 128))
    )
    shaded = ImageOps.colorize(
        grey, black=mixed(colour, "#000000", 0.55), mid=COLOURS[colour], white=mixed(colour, "#ffffff", 0.45)
    )
    shaded.putalpha(picture.getchannel("A"))
    return shaded


def mixed(colour: str, other: str, share: float) -> tuple[int, int, int]:
    """A colour mixed with so much of another."""
    pairs = [(int(COLOURS[colour][i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    red, green, blue = (round(a + share * (b - a)) for a, b in pairs)
    return red, green, blue


def compose(
    scene: Scene,
    rng: random.Random,
    side: int,
    background: str,
    sprites: Mapping[str, Image.Image],
    render: Callable[[bytes, int], Image.Image],
) -> Image.Image:
    """Place the parts of a scene on a square: RGB, `side` pixels.

    `sprites` has an RGBA picture for every object by name, `render` draws SVG at a size.
    """
    canvas = Image.new("RGB", (side, side), background)
    for part, (x, y, room) in places(scene, rng):
        extent = round(side * room * (rng.uniform(0.75, 0.95) if part.count == 1 else 0.85))
        picture = render(shape_svg(part), extent) if part.is_shape else sprites[part.name]
        picture = ImageOps.contain(picture, (extent, extent), Image.Resampling.LANCZOS)
        if part.colour is not None and not part.is_shape:
            picture = tinted(picture, part.colour)
        corner = (round(side * x - picture.width / 2), round(side * y - picture.height / 2))
        canvas.paste(picture, corner, picture)
    return canvas


def places(scene: Scene, rng: random.Random) -> list[tuple[Part, tuple[float, float, float]]]:
    """(part, (x, y, size)) of every single thing, as shares of the side; nothing overlaps."""
    if len(scene.parts) == 1:
        (part,) = scene.parts
        if part.count == 1:
            room = rng.uniform(0.45, 0.95)
            free = (1 - room) / 2
            return [(part, (0.5 + rng.uniform(-free, free), 0.5 + rng.uniform(-free, free), room))]
        return [(part, place) for place in grid(part.count, rng)]
    first, second = scene.parts
    room = rng.uniform(0.36, 0.48)
    near, far = 0.26, 0.74
    slack = [rng.uniform(-0.1, 0.1) for _ in range(2)]
    if scene.relation in ("above", "below"):
        ends = (near, far) if scene.relation == "above" else (far, near)
        return [(p, (0.5 + s, y, room)) for p, y, s in zip(scene.parts, ends, slack, strict=True)]
    ends = (far, near) if scene.relation == "right of" else (near, far)
    return [(p, (x, 0.5 + s, room)) for p, x, s in zip((first, second), ends, slack, strict=True)]


def grid(count: int, rng: random.Random) -> list[tuple[float, float, float]]:
    """Places of 2 to 5 equal things: a row, or two rows."""
    if count == 2 or (count == 3 and rng.random() < 0.5):
        return [((i + 0.5) / count, 0.5 + rng.uniform(-0.12, 0.12), 0.94 / count) for i in range(count)]
    upper = count // 2
    rows = [(upper, 0.27), (count - upper, 0.73)]
    room = min(0.46, 0.94 / (count - upper))
    return [((i + 0.5) / number, y, room) for number, y in rows for i in range(number)]
