"""From pinned packages to rendered, captioned pictures in Parquet shards, held out by concept."""

import json
import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Features, List, Value
from PIL import Image

from ..folders import replacing
from .data_fetch import fetch, members
from .data_sources import IMAGE_SOURCES_FILE, load_packages, permissive
from .image_concepts import SPLITS, permille, split_by_hash, split_concepts
from .image_extract import EXTRACTORS, Drawing, EmojiNames
from .image_render import RenderError, SvgRenderer, png_bytes, sprite
from .image_scenes import SHAPES, Scene, compose, draw_scene

log = logging.getLogger(__name__)

SIDE = 256  # pixels
SHARD_ROWS = 2000
SEEN_CONCEPTS = 600
MIN_STYLES_OF_SEEN = 3
SCENES = {"train": 12_000, "validation": 300, "test": 900}
SCENES_SOURCE = "scenes"
# Flat drawings: their sprites stay readable at half size.
SPRITE_SOURCES = ("noto", "twemoji", "fluent_emoji_flat", "emojione", "streamline_emojis")
PASTELS = ("#fdf1dc", "#e4f1fb", "#e8f6e6", "#fbe6ea", "#efe9f8", "#f4f4f0", "#fff9d9", "#dff3f1", "#e9e3da")
FEATURES = Features(
    {
        "png": Value("binary"),
        "captions": List(Value("string")),
        "concept": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
        "attributes": Value("string"),
    }
)


@dataclass(frozen=True)
class Picture:
    """A row of the shards; `attributes` is JSON of a composed scene, else None."""

    png: bytes
    captions: list[str]
    concept: str
    source: str
    licence: str
    attributes: str | None = None


def read_drawings(cache: Path, sources: Iterable[str] = ()) -> Iterator[Drawing]:
    """Every drawing of the pinned packages (of the named sources), fetched into the cache where they are missing.

    Raises ValueError for an unknown source and as `permissive`, FetchError as `fetch`.
    """
    packages = permissive(load_packages(IMAGE_SOURCES_FILE))
    corpus = [package for package in packages if package.kind == "corpus"]
    unknown = sorted(set(sources) - {package.source for package in corpus})
    if unknown:
        raise ValueError(f"sources must be among {sorted(package.source for package in corpus)}, got {unknown}")
    (names,) = (package for package in packages if package.kind == "names")
    emoji_names = EmojiNames(members(names, fetch(names, cache)))
    for package in corpus:
        if not sources or package.source in set(sources):
            files = members(package, fetch(package, cache))
            found = list(EXTRACTORS[package.extract](package, files, emoji_names))
            log.info("%-28s %6d drawings", package.source, len(found))
            yield from found


def assign_splits(drawings: Iterable[Drawing]) -> dict[str, list[Drawing]]:
    """Drawings by split: held out by concept, and one style of some train concepts in "seen"."""
    drawings = list(drawings)
    split_of = split_concepts(drawing.concept for drawing in drawings)
    styles = defaultdict(set)
    for drawing in drawings:
        styles[drawing.concept].add(drawing.source)
    train = [key for key, split in split_of.items() if split == "train" and len(styles[key]) >= MIN_STYLES_OF_SEEN]
    seen = sorted(train, key=lambda key: permille(f"seen {key}"))[:SEEN_CONCEPTS]
    kept_out = {key: sorted(styles[key])[permille(f"style {key}") % len(styles[key])] for key in seen}
    result: dict[str, list[Drawing]] = {split: [] for split in SPLITS}
    for drawing in drawings:
        is_seen = kept_out.get(drawing.concept) == drawing.source
        result["seen" if is_seen else split_of[drawing.concept]].append(drawing)
    return result


def background_of(rng: random.Random) -> str:
    """White three times out of four, else a pastel."""
    return "#ffffff" if rng.random() < 0.75 else rng.choice(PASTELS)


def render_drawings(drawings: Iterable[Drawing], renderer: SvgRenderer, dropped: Counter) -> Iterator[Picture]:
    """Each drawing centred on a background; those that cannot be drawn are counted in `dropped` by source."""
    for drawing in drawings:
        rng = random.Random(f"{drawing.source}/{drawing.name}")
        try:
            picture = sprite(drawing, round(SIDE * rng.uniform(0.8, 0.97)), renderer)
        except RenderError as error:
            dropped[drawing.source] += 1
            log.debug("%s/%s: %s", drawing.source, drawing.name, error)
            continue
        canvas = Image.new("RGB", (SIDE, SIDE), background_of(rng))
        canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2), picture)
        yield Picture(png_bytes(canvas), list(drawing.captions), drawing.concept, drawing.source, drawing.licence)


def render_scenes(split: str, drawings: Iterable[Drawing], renderer: SvgRenderer, count: int) -> Iterator[Picture]:
    """`count` scenes whose objects are of this split; scenes of shapes alone are held out by what they show."""
    styles: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        if drawing.object_name is not None and drawing.source in SPRITE_SOURCES:
            styles[drawing.object_name].append(drawing)
    objects = sorted(styles)
    rng = random.Random(f"scenes of {split}")
    while count > 0:
        scene = draw_scene(rng, objects)
        if all(part.is_shape for part in scene.parts) and split_by_hash(scene.key) != split:
            continue
        chosen = {part.name: rng.choice(styles[part.name]) for part in scene.parts if not part.is_shape}
        try:
            sprites = {name: sprite(drawing, SIDE, renderer) for name, drawing in chosen.items()}
        except RenderError:
            continue
        picture = compose(
            scene, rng, SIDE, background_of(rng), sprites, lambda svg, side: renderer.render(svg, 1.0, side)
        )
        yield scene_picture(scene, picture, [drawing.licence for drawing in chosen.values()])
        count -= 1


def scene_picture(scene: Scene, picture: Image.Image, licences: list[str]) -> Picture:
    """The row of a composed scene; its licence joins those of its drawings."""
    licence = " AND ".join(sorted(set(licences))) or "Apache-2.0"
    return Picture(png_bytes(picture), scene.captions, scene.key, SCENES_SOURCE, licence, scene.attributes)


def write_pictures(pictures: Iterable[Picture], folder: Path, name: str) -> Counter:
    """Write `folder/{name}-{number}.parquet`; return the number of pictures by source and licence."""
    folder.mkdir(parents=True, exist_ok=True)
    amounts: Counter = Counter()
    rows: list[Picture] = []
    number = 0

    def flush() -> None:
        nonlocal number, rows
        columns = {column: [getattr(row, column) for row in rows] for column in FEATURES}
        Dataset.from_dict(columns, features=FEATURES).to_parquet(folder / f"{name}-{number:03d}.parquet")
        number, rows = number + 1, []

    for picture in pictures:
        rows.append(picture)
        amounts[picture.source] += 1
        if len(rows) == SHARD_ROWS:
            flush()
    if rows:
        flush()
    return amounts


def build_image_corpus(shards: Path, cache: Path, sources: Iterable[str] = (), share: float = 1.0) -> dict:
    """Write `shards/{train,validation,test,seen}/*.parquet` anew; return the report.

    `share` is the part of the drawings and scenes to take, chosen at random once and for all.
    Use: `build_image_corpus(Path("data/image_pictures"), cache_dir())`. Raises as `read_drawings`.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    by_split = assign_splits(read_drawings(cache, sources))
    amounts: dict[str, Counter] = {}
    dropped: Counter = Counter()
    with SvgRenderer() as renderer, replacing(shards) as partial:
        for split, drawings in by_split.items():
            # mixed, so that any shard alone is a fair sample
            random.Random(split).shuffle(drawings)
            chosen = drawings[: math.ceil(share * len(drawings))]
            amounts[split] = write_pictures(render_drawings(chosen, renderer, dropped), partial / split, "drawings")
            log.info("%s: %d pictures of drawings", split, amounts[split].total())
            if SCENES.get(split):
                composed = render_scenes(split, drawings, renderer, math.ceil(share * SCENES[split]))
                amounts[split] += write_pictures(composed, partial / split, "scenes")
                log.info("%s: %d pictures with scenes", split, amounts[split].total())
    concepts = {split: len({drawing.concept for drawing in drawings}) for split, drawings in by_split.items()}
    return {"pictures": amounts, "concepts": concepts, "dropped": dropped, "shapes": len(SHAPES), "side": SIDE}


def write_image_report(report: dict, folder: Path) -> Path:
    """Write image_data_report.json and image_data_report.md into the folder; return the path of the latter."""
    licences = {package.source: package.licence for package in load_packages(IMAGE_SOURCES_FILE)}
    lines = [
        "# Captioned pictures",
        "",
        f"Written by `make data-images` (`examples/prepare_images.py`): pictures of {report['side']} px. Concepts of "
        "validation and test have no picture in train; seen holds one style of concepts of train.",
        "",
        "| source | licence | train | validation | test | seen | could not be drawn |",
        "|---|---|---|---|---|---|---|",
    ]
    for source in sorted({source for counts in report["pictures"].values() for source in counts}):
        numbers = [f"{report['pictures'][split][source]:,}" for split in SPLITS]
        licence = licences.get(source, "those of its drawings")
        lines.append(f"| {source} | {licence} | {' | '.join(numbers)} | {report['dropped'][source]} |")
    totals = [f"{report['pictures'][split].total():,}" for split in SPLITS]
    concepts = [f"{report['concepts'][split]:,}" for split in SPLITS]
    lines += [
        f"| **all** | | {' | '.join(totals)} | {report['dropped'].total()} |",
        f"| concepts drawn | | {' | '.join(concepts)} | |",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image_data_report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    path = folder / "image_data_report.md"
    path.write_text("\n".join(lines) + "\n")
    return path
