"""Readers of the picture packages: each yields drawings (SVG or a raster file) with names and captions."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .data_sources import Package
from .image_concepts import SKIN_TONE, captions_of, concept_key, without_variants, words_of

MAX_SVG_BYTES = 500_000
MAX_ASPECT = 4.0
MAX_WORDS = 5
OBJECT_GROUPS = frozenset({3, 4, 5, 7})  # emojibase: animals and nature, food, travel, objects
# The sets whose names are those of emoji; the others draw icons.
EMOJI_SETS = frozenset(
    {"noto", "noto-v1", "twemoji", "emojione", "fluent-emoji", "fluent-emoji-flat", "fxemoji", "streamline-emojis"}
)


@dataclass(frozen=True)
class Drawing:
    """One picture before it is drawn. `content` is SVG text, or a raster file; `aspect` is width over height.

    `object_name` is set where the picture is one thing that scenes can be composed of.
    """

    source: str
    licence: str
    name: str
    concept: str
    captions: tuple[str, ...]
    content: bytes
    is_svg: bool = True
    aspect: float = 1.0
    object_name: str | None = None


@dataclass(frozen=True)
class Emoji:
    """What emojibase says of one emoji."""

    name: str
    synonyms: tuple[str, ...]
    tags: tuple[str, ...]
    group: int


class EmojiNames:
    """Emoji by their code points and by any of their names. Use: `EmojiNames(members).by_name("red-apple")`."""

    def __init__(self, files: Iterable[tuple[str, bytes]]):
        parts = {name: json.loads(content) for name, content in files}
        entries = parts.pop("package/en/data.json")
        self.by_code: dict[str, Emoji] = {}
        self._labels: dict[str, Emoji] = {}
        self._shortcodes: dict[str, Emoji] = {}
        for entry in entries:
            # "flag: France" is called "flag of france", "keycap: 1" "keycap 1"; indicators are letters of flags
            label = " ".join(words_of(entry["label"].replace("flag: ", "flag of ")))
            if label.startswith("regional indicator") or not label:
                continue
            codes = [codes.get(entry["hexcode"], []) for codes in parts.values()]
            names = [name for found in codes for name in ([found] if isinstance(found, str) else found)]
            synonyms = tuple(dict.fromkeys(" ".join(words_of(name)) for name in names if "_" in name))[:2]
            tags = tuple(tag for tag in entry.get("tags", []) if tag.isascii() and len(tag) > 2)
            emoji = Emoji(label, tuple(s for s in synonyms if s != label), tags, entry.get("group", -1))
            self.by_code[plain_code(entry["hexcode"])] = emoji
            self._labels[compact(label)] = emoji
            for name in names:
                self._shortcodes.setdefault(compact(name), emoji)

    def by_name(self, name: str, any_name: bool = True) -> Emoji | None:
        """The emoji of that label (or, with `any_name`, of that short code or country)."""
        key = compact(name)
        found = self._labels.get(key)
        if found is None and any_name:
            found = self._labels.get(f"flag{key.removeprefix('flag')}") or self._shortcodes.get(key)
        return found


def compact(name: str) -> str:
    """The letters and digits of a name without joining words."""
    return "".join(word for word in words_of(name) if word not in {"of", "for", "the"})


def plain_code(code: str) -> str:
    """Code points in upper case without variation selectors."""
    return code.upper().replace("-FE0F", "")


def emoji_drawing(package: Package, name: str, emoji: Emoji, content: bytes, kind: str, **about) -> Drawing:
    """A drawing of an emoji, named as emojibase names it."""
    captions = captions_of(emoji.name, kind, emoji.synonyms, emoji.tags)
    is_object = emoji.group in OBJECT_GROUPS and len(emoji.name.split()) <= 2
    return Drawing(
        package.source, package.licence, name, concept_key(emoji.name), tuple(captions), content,
        object_name=emoji.name if is_object else None, **about,
    )  # fmt: skip


def iconify(package: Package, files: Iterable[tuple[str, bytes]], emoji_names: EmojiNames) -> Iterator[Drawing]:
    """Icons of a set in Iconify's JSON. Raises ValueError when the set states another licence than the pinned one."""
    parts = {name: json.loads(content) for name, content in files}
    stated = parts["package/info.json"]["license"]["spdx"]
    if stated != package.licence:
        raise ValueError(f"licence of {package.name} must be {package.licence}, as pinned, got {stated}")
    icons = parts["package/icons.json"]
    is_emoji, is_flags = icons["prefix"] in EMOJI_SETS, icons["prefix"] == "circle-flags"
    for name, icon in sorted(icons["icons"].items()):
        if icon.get("hidden") or is_skin_variant(name, icons["icons"]):
            continue
        svg, aspect = icon_svg(icon, icons)
        if len(svg) > MAX_SVG_BYTES or not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            continue
        emoji = flag_of(name, emoji_names) if is_flags else emoji_names.by_name(name, is_emoji)
        if emoji is None and not is_flags:
            emoji = emoji_names.by_name(" ".join(without_variants(words_of(name))), is_emoji)
        words = without_variants(words_of(name))
        if emoji is not None:
            kind = "emoji" if is_emoji else "icon"
            yield emoji_drawing(package, name, emoji, svg, kind, aspect=aspect)
        elif not is_flags and icons["prefix"] != "fxemoji" and words and len(words) <= MAX_WORDS:
            # names of fxemoji are written without spaces: unknown ones make no caption
            plain = " ".join(words)
            captions = tuple(captions_of(plain, "emoji" if is_emoji else "icon"))
            yield Drawing(package.source, package.licence, name, concept_key(plain), captions, svg, aspect=aspect)


def is_skin_variant(name: str, names: Iterable[str]) -> bool:
    """Whether the name is that of another picture and a skin tone: "ok-hand-dark", but not "crescent-moon"."""
    shorter = SKIN_TONE.sub("", name)
    return name.endswith("-skin-tone") or "-skin-tone-" in name or (shorter != name and shorter in names)


def icon_svg(icon: dict, icons: dict) -> tuple[bytes, float]:
    """The SVG file of an icon, and its width over its height."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">'
    return f"{head}{icon['body']}</svg>".encode(), width / height


def flag_of(code: str, emoji_names: EmojiNames) -> Emoji | None:
    """The flag of a two-letter country code."""
    if not re.fullmatch("[a-z]{2}", code):
        return None
    return emoji_names.by_code.get("-".join(f"{0x1F1E6 + ord(letter) - ord('a'):X}" for letter in code))


def emoji_files(package: Package, files: Iterable[tuple[str, bytes]], emoji_names: EmojiNames) -> Iterator[Drawing]:
    """Raster files named by code points; those that emojibase lists without a skin tone."""
    for path, content in files:
        stem = path.rsplit("/", 1)[-1].split(".")[0]
        emoji = emoji_names.by_code.get(plain_code(stem))
        if emoji is not None:
            yield emoji_drawing(package, stem, emoji, content, "3d emoji", is_svg=False)


def open_clipart(package: Package, files: Iterable[tuple[str, bytes]], emoji_names: EmojiNames) -> Iterator[Drawing]:
    """SVG files whose RDF gives a title and keywords, and the public domain as licence."""
    del emoji_names
    for path, content in files:
        text = content.decode("utf-8", "ignore")
        found = re.search(r"<dc:title>([^<]{2,60})</dc:title>", text.split("<dc:publisher>")[0])
        aspect = svg_aspect(text)
        if found is None or aspect is None or len(content) > MAX_SVG_BYTES or "PublicDomain" not in text:
            continue
        title = re.split(r" by |[(\[]", found[1])[0].strip()
        words = without_variants(words_of(title))
        if "_" in title or "clipart" in words or not title.isascii() or not 1 <= len(words) <= MAX_WORDS:
            continue
        if "<image" in text or max(map(len, words)) < 3:
            continue
        tags = [tag.lower() for tag in re.findall(r"<rdf:li>([A-Za-z ]{3,24})</rdf:li>", text)]
        name = " ".join(words)
        captions = captions_of(name, "clip art", tags=[tag for tag in tags if tag not in {"clip art", "clipart"}])
        stem = path.removeprefix("usr/share/openclipart/svg/")
        yield Drawing(package.source, package.licence, stem, concept_key(name), tuple(captions), content, aspect=aspect)


def svg_aspect(text: str) -> float | None:
    """Width over height as the root element says, None where it does not or beyond `MAX_ASPECT`."""
    root = re.search(r"<svg\b[^>]*>", text)
    sizes = (
        [re.search(rf'\b{name}="([0-9.]+)(?:px|pt|mm|cm|in)?"', root[0]) for name in ("width", "height")]
        if root
        else []
    )
    box = re.search(r'\bviewBox="\s*[-0-9.e]+[ ,]+[-0-9.e]+[ ,]+([0-9.]+)[ ,]+([0-9.]+)\s*"', root[0]) if root else None
    try:
        if box is not None:
            aspect = float(box[1]) / float(box[2])
        elif len(sizes) == 2 and sizes[0] and sizes[1]:
            aspect = float(sizes[0][1]) / float(sizes[1][1])
        else:
            return None
    except (ValueError, ZeroDivisionError):
        return None
    return aspect if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT else None


Extractor = Callable[[Package, Iterable[tuple[str, bytes]], EmojiNames], Iterator[Drawing]]
EXTRACTORS: dict[str, Extractor] = {"iconify": iconify, "emoji_files": emoji_files, "open_clipart": open_clipart}
