"""Pictures with captions, from any dataset of pictures, as latents in memory that training draws batches from."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value, load_dataset
from jaxtyping import Float
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

from ..codecs.image_codec import ImageCodec
from ..codecs.pictures import read_pictures
from .latent_data import ArrowLatents, LatentShards

FEATURES = {"latents": List(Value("float32")), "rows": Value("int32"), "columns": Value("int32")}
ENCODED_AT_ONCE = 8  # pictures
Change = Callable[[Pillow.Image], Pillow.Image]


@dataclass(frozen=True)
class PictureSource:
    """Where pictures and captions are, in the words of diffusers' scripts.

    Attributes:
        dataset_name: on the Hub, or a local folder of Parquet files; or
        train_data_dir: a folder of pictures with `metadata.jsonl` (`datasets`' imagefolder).
        image_column, caption_column: of the rows; captions are strings or lists of strings.
        streaming: fetch only as many rows as are asked for.
        resolution: pixels; pictures are scaled and cut to squares.
        random_flip: each picture also mirrored.

    Raises:
        ValueError: none or both of the two are given.

    Usage: `PictureSource(train_data_dir="photos").rows("train", 100)`
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    train_data_dir: str | None = None
    image_column: str = "image"
    caption_column: str = "text"
    streaming: bool = False
    resolution: int = 256
    random_flip: bool = False

    def __post_init__(self):
        if (self.dataset_name is None) == (self.train_data_dir is None):
            raise ValueError("give either dataset_name or train_data_dir, and not both")

    def splits(self, limits: Mapping[str, int | None], held_out_percentage: int) -> dict[str, list[dict[str, Any]]]:
        """Rows of "train" and "validation", at most so many; without a validation split some of "train" are held out.

        Raises:
            ValueError: a column is missing, or there are too few rows.
        """
        where: dict[str, Any] = {"path": "imagefolder", "data_dir": self.train_data_dir}
        if self.train_data_dir is None:
            where = {"path": self.dataset_name, "name": self.dataset_config_name}
        found = load_dataset(**where, streaming=self.streaming)
        rows = {name: self._rows(found[name], most) for name, most in limits.items() if name in found}
        if "validation" not in rows:
            count = max(1, len(rows["train"]) * held_out_percentage // 100)
            rows["validation"], rows["train"] = rows["train"][:count], rows["train"][count:]
        if not rows["train"]:
            raise ValueError(f"there must be pictures to train on, got none in {where}")
        return rows

    def _rows(self, dataset: Any, most: int | None) -> list[dict[str, Any]]:
        columns = self.image_column, self.caption_column
        missing = [name for name in columns if name not in dataset.features]
        if missing:
            raise ValueError(f"the columns must be among {sorted(dataset.features)}, got {missing}")
        if not isinstance(dataset.features[self.image_column], Image):
            dataset = dataset.cast_column(self.image_column, Image())
        return list(itertools.islice(dataset.select_columns(list(columns)), most))

    def latents(
        self, rows: Sequence[Mapping[str, Any]], codec: ImageCodec, changes: Sequence[Change] = (lambda p: p,)
    ) -> list[LatentShards]:
        """The pictures as latents, once for each change of them (edges, say); all in the same order."""
        squares = [(self._square(row[self.image_column]), captions_of(row[self.caption_column])) for row in rows]
        if self.random_flip:
            squares += [(ImageOps.mirror(picture), captions) for picture, captions in squares]
        captions = [captions for _, captions in squares]
        return [encoded((change(picture) for picture, _ in squares), captions, codec) for change in changes]

    def _square(self, picture: Pillow.Image) -> Pillow.Image:
        side = self.resolution, self.resolution
        return ImageOps.fit(picture.convert("RGB"), side, Pillow.Resampling.BICUBIC)


def captions_of(value: str | Sequence[str]) -> list[str]:
    """The captions of a row."""
    return [value] if isinstance(value, str) else list(value)


@torch.no_grad()
def encoded(pictures: Iterable[Pillow.Image], captions: Sequence[Sequence[str]], codec: ImageCodec) -> LatentShards:
    """Pictures of one size through the codec, as a table in memory.

    Usage: `encoded([picture], [["a red apple"]], ImageCodec(vae))`
    """
    latents: list[Float[Tensor, "tokens width"]] = []
    shape, todo = (0, 0), iter(pictures)
    while batch := list(itertools.islice(todo, ENCODED_AT_ONCE)):
        pixels = torch.stack([read_pictures("image", picture)[0] for picture in batch])
        shape = codec.grid(*pixels.shape[2:])
        latents += list(codec.encode(pixels).cpu())
    columns = {
        "latents": [sample.flatten().numpy() for sample in latents],
        "rows": [shape[0]] * len(latents),
        "columns": [shape[1]] * len(latents),
        "captions": [list(each) for each in captions],
    }
    table = Dataset.from_dict(columns, features=Features({**FEATURES, "captions": List(Value("string"))}))
    return LatentShards(ArrowLatents(table), "image", codec.width, {shape: np.arange(len(latents))})
