"""Captioned pictures for evaluation: read from the Parquet shards of rendered ones, chosen by sets and by concepts."""

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image

if TYPE_CHECKING:
    from hf_unified_diffusion import ArrowStorage

COLUMNS = ("png", "captions", "concept", "source", "attributes")


@dataclass(frozen=True)
class Picture:
    """A picture with what is known of it; `attributes` is empty where it is no composed scene."""

    image: Image.Image
    captions: tuple[str, ...]
    concept: str
    source: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The caption that it is drawn from and looked for by."""
        return self.captions[0]


def read_rows(folder: Path) -> Iterator[dict]:
    """Rows of a folder's shards, pictures still PNG; raises ValueError where there are none."""
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(
            f"folder must hold pictures as Parquet (run examples/prepare_images.py), got none in {folder.name!r}"
        )
    for file in files:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=256, columns=list(COLUMNS)):
            yield from batch.to_pylist()


def opened(row: Mapping, size: int) -> Picture:
    """A row as a picture of size x size pixels."""
    image = Image.open(io.BytesIO(row["png"])).convert("RGB")
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    attributes = json.loads(row["attributes"]) if row["attributes"] else {}
    return Picture(image, tuple(row["captions"]), row["concept"], row["source"], attributes)


def choose(
    folder: Path, count: int, size: int, chance: random.Random, keep: Callable[[Mapping], bool]
) -> list[Picture]:
    """At most `count` pictures that pass `keep`, all as likely, in chance order; no more are held (a reservoir)."""
    held: list[dict] = []
    for seen, row in enumerate(row for row in read_rows(folder) if keep(row)):
        if seen < count:
            held.append(row)
        elif (place := chance.randrange(seen + 1)) < count:
            held[place] = row
    chance.shuffle(held)
    return [opened(row, size) for row in held]


def is_drawing(row: Mapping) -> bool:
    """Whether a row is a picture of one concept."""
    return not is_scene(row)


def is_scene(row: Mapping) -> bool:
    """Whether a row is a composed scene with known attributes."""
    return row["attributes"] is not None


def one_per_concept(pictures: Iterable[Picture], count: int) -> list[Picture]:
    """The first picture of each of the first `count` concepts whose caption no other has."""
    chosen: dict[str, Picture] = {}
    captions: set[str] = set()
    for picture in pictures:
        if picture.concept not in chosen and picture.caption not in captions and len(chosen) < count:
            chosen[picture.concept] = picture
            captions.add(picture.caption)
    return list(chosen.values())


def remember(storage: "ArrowStorage", pictures: Sequence[Picture]) -> None:
    """Put pictures into a store by their captions."""
    captions = [picture.caption for picture in pictures]
    storage.add("all", [np.asarray(picture.image) for picture in pictures], captions=captions, modality="image")


def coarse(pictures: Sequence[Picture], cells: int = 16) -> list[Picture]:
    """Control: the pictures with no more detail than cells x cells pixels have."""
    small = [picture.image.resize((cells, cells), Image.Resampling.BOX) for picture in pictures]
    return [
        replace(picture, image=image.resize(picture.image.size, Image.Resampling.BICUBIC))
        for picture, image in zip(pictures, small, strict=True)
    ]
