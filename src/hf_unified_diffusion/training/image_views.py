"""Square views of the captioned pictures for training an image codec: whole pictures, crops, other colours."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from jaxtyping import Float
from PIL import Image
from torch import Tensor

SHUFFLE_ROWS = 1500


def pixels_of(png: bytes, side: int | None = None) -> Float[Tensor, "3 height width"]:
    """Pixels in [-1, 1] of a PNG file, resized to a square of `side` pixels if that is given."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if side is not None and picture.size != (side, side):
        is_smaller = side < picture.width
        picture = picture.resize((side, side), Image.Resampling.BOX if is_smaller else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


class PictureViews:
    """Endless views of the pictures in a folder of shards; its files are listed anew at every pass.

    Use: `batch = PictureViews(Path("data/image_pictures/train"), seed=0).batch(16, 128)`.
    With `recolour=False` their colours stay what they are.
    Raises ValueError when the folder holds no Parquet file.
    """

    def __init__(self, folder: Path, seed: int, recolour: bool = True):
        self.folder, self.seed, self.recolour = folder, seed, recolour
        self.rng = np.random.default_rng(seed)
        self._rows = self._passes()

    def pass_once(self) -> Iterator[bytes]:
        """The pictures' files, each once, in an order of the seed."""
        files = sorted(str(path) for path in self.folder.glob("*.parquet"))
        if not files:
            raise ValueError(f"the folder of pictures must hold Parquet files, got {self.folder}")
        stream = load_dataset("parquet", data_files=files, split="train", streaming=True, columns=["png"])
        # the order of the files is drawn too
        for row in stream.shuffle(seed=int(self.rng.integers(2**31)), buffer_size=SHUFFLE_ROWS):
            yield row["png"]

    def _passes(self) -> Iterator[bytes]:
        while True:
            yield from self.pass_once()

    def batch(self, size: int, side: int) -> Float[Tensor, "size 3 side side"]:
        """So many views, pixels in [-1, 1], in the memory format channels_last."""
        views = torch.stack([self._view(next(self._rows), side) for _ in range(size)])
        return views.to(memory_format=torch.channels_last)

    def _view(self, png: bytes, side: int) -> Float[Tensor, "3 side side"]:
        """The whole picture or a crop of it, now and then mirrored, with its colours exchanged or inverted."""
        draws = self.rng.random(4)
        if draws[0] < 0.5:
            view = pixels_of(png, side)
        else:
            view = pixels_of(png)
            top, left = (self.rng.integers(0, extent - side + 1) for extent in view.shape[1:])
            view = view[:, top : top + side, left : left + side]
        if draws[1] < 0.5:
            view = view.flip(2)
        if not self.recolour:
            return view
        if draws[2] < 0.3:
            view = view[torch.from_numpy(self.rng.permutation(3))]
        return -view if draws[3] < 0.1 else view
