"""Latent shards: continuous samples with captions, memory-mapped, read in an order that a step number decides."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from transformers import PreTrainedTokenizerFast

from ..codecs.picture_positions import image_positions
from ..codecs.text_codec import TextCodec, pad_right
from ..processes import spawn_generators

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("latents", "rows", "columns", "captions")


@dataclass(frozen=True)
class LatentBatch:
    """Clean samples of one continuous modality and of equal token count, each after a text context.

    Attributes:
        values: float32 (B, n, width).
        context: int64 (B, c), `[bos] + caption`, padded on the right.
        context_mask: bool (B, c), False at padding; None where nothing is padded.
        positions: float32 (n, 3) on (seconds, y, x) from the end of the context; None: one token after the other.
        modality: "image", "audio" or "avatar".
    """

    values: Float[Tensor, "batch tokens width"]
    context: Int[Tensor, "batch context"]
    context_mask: Bool[Tensor, "batch context"] | None
    positions: Float[Tensor, "tokens 3"] | None
    modality: str

    @property
    def num_tokens(self) -> int:
        """Continuous tokens in it; the captions are not counted."""
        return self.values.shape[0] * self.values.shape[1]


class LatentTable(Protocol):
    """Samples by their places: what `LatentShards` reads, from Parquet shards or from packs."""

    def __len__(self) -> int: ...

    def latents(self, places: Int[np.ndarray, "batch"]) -> np.ndarray:
        """(batch, values) where all samples have as many values; of several lengths, an array of another shape."""
        ...

    def captions(self, places: Int[np.ndarray, "batch"]) -> list[list[str]]:
        """The captions of each sample."""
        ...


@dataclass(frozen=True)
class ArrowLatents:
    """A memory-mapped table of the columns `latents` and `captions`."""

    table: "Dataset"

    def __len__(self) -> int:
        return len(self.table)

    def latents(self, places: Int[np.ndarray, "batch"]) -> np.ndarray:
        """As `LatentTable` says."""
        return self.table.with_format("numpy", columns=["latents"])[places]["latents"]

    def captions(self, places: Int[np.ndarray, "batch"]) -> list[list[str]]:
        """As `LatentTable` says."""
        return self.table.select_columns(["captions"])[places]["captions"]


@dataclass(frozen=True)
class LatentShards:
    """Samples of one modality.

    Attributes:
        table: of samples of rows x columns x width numbers, row after row, with captions.
        modality: a continuous modality of the network.
        width: numbers in a token.
        buckets: (rows, columns) of the samples -> their places in the table, int64.
    """

    table: LatentTable
    modality: str
    width: int
    buckets: dict[tuple[int, int], Int[np.ndarray, "samples"]]

    def __len__(self) -> int:
        return len(self.table)

    def places(self, number: int, tokens: int, seed: int) -> tuple[tuple[int, int], Int[np.ndarray, "batch"]]:
        """Shape and places of the samples of micro-batch `number`: of one shape, about `tokens` tokens in all.

        Every epoch visits each sample, in a new order; samples of a shape that does not come out even are visited
        twice. A function of its arguments alone.
        """
        rows = {shape: max(1, tokens // (shape[0] * shape[1])) for shape in self.buckets}
        batches = {shape: -(-len(bucket) // rows[shape]) for shape, bucket in self.buckets.items()}
        epoch, place = divmod(number, sum(batches.values()))
        generator = Generator().manual_seed(seed * 1_000_003 + epoch)
        which = int(torch.randperm(sum(batches.values()), generator=generator)[place])
        shapes = iter(self.buckets)
        shape = next(shapes)
        while which >= batches[shape]:
            which -= batches[shape]
            shape = next(shapes)
        shuffled = torch.randperm(len(self.buckets[shape]), generator=generator).numpy()
        order = np.resize(self.buckets[shape][shuffled], batches[shape] * rows[shape])
        return shape, order[which * rows[shape] : (which + 1) * rows[shape]]

    def values(
        self, shape: tuple[int, int], places: Int[np.ndarray, "batch"]
    ) -> tuple[Float[Tensor, "batch tokens width"], list[list[str]]]:
        """The samples at some places, all of one shape, and their captions.

        Raises:
            ValueError: a sample has not the number of values that its shape asks for.
        """
        tokens = shape[0] * shape[1]
        latents = self.table.latents(places)
        if latents.shape != (len(places), tokens * self.width):  # of several lengths, it has one axis only
            sizes = sorted({np.size(sample) for sample in latents})
            raise ValueError(
                f"samples of {shape[0]} x {shape[1]} tokens of width {self.width} must have {tokens * self.width} "
                f"values, got {sizes}"
            )
        values = torch.from_numpy(latents.astype(np.float32)).view(len(places), tokens, self.width)
        return values, self.table.captions(places)


def open_latents(files: Iterable[Path], modality: str, cache_dir: Path) -> LatentShards:
    """Map Parquet shards of latents (columns as in `LatentShards`) through an Arrow copy under `cache_dir`.

    The copy is made anew where a file changed.

    Raises:
        ValueError: no file, no sample, a column that is missing, or sizes that do not fit.

    Usage: `open_latents(Path("data/images/train").glob("*.parquet"), "image", Path("runs/latents"))`
    """
    from datasets import Dataset

    names = sorted(str(file) for file in files)
    if not names:
        raise ValueError(f"latents of {modality!r} need at least one Parquet file, got none")
    table = Dataset.from_parquet(names, cache_dir=str(cache_dir))
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"latent shards must have the columns {COLUMNS}, got none named {missing} in {names}")
    if not len(table):
        raise ValueError(f"latents of {modality!r} need at least one sample, got none in {names}")
    shapes = np.stack([np.asarray(table.with_format("numpy")[name][:]) for name in ("rows", "columns")], axis=1)
    if shapes.min() < 1:
        raise ValueError(f"rows and columns must be at least 1, got {shapes.min()}")
    width, rest = divmod(len(table[0]["latents"]), int(shapes[0].prod()))
    if rest or not width:
        raise ValueError(
            f"{len(table[0]['latents'])} values do not fill {shapes[0, 0]} x {shapes[0, 1]} tokens evenly in {names[0]}"
        )
    return LatentShards(ArrowLatents(table), modality, width, buckets_of(shapes))


def buckets_of(shapes: Int[np.ndarray, "samples 2"]) -> dict[tuple[int, int], Int[np.ndarray, "samples"]]:
    """(rows, columns) -> the places of the samples of that shape."""
    unique = np.unique(shapes, axis=0)
    return {(int(r), int(c)): np.flatnonzero((shapes == (r, c)).all(axis=1)) for r, c in unique}


@dataclass(frozen=True)
class CaptionedLatents:
    """Micro-batches of latents, each sample with one of its captions, or with none.

    Attributes:
        shards: where they come from.
        tokenizer: of the captions; its bos token begins every context.
        tokens: continuous tokens of a micro-batch, about; samples of more tokens come in fewer rows.
        caption_dropout: the share of samples with the context `[bos]` alone, for guidance (arXiv:2207.12598).
        max_caption_tokens: longer captions are cut.

    Raises:
        ValueError: a number is out of its range.

    Usage: `CaptionedLatents(shards, tokenizer).batch(turn=0, seed=0)`
    """

    shards: LatentShards
    tokenizer: PreTrainedTokenizerFast
    tokens: int = 1024
    caption_dropout: float = 0.1
    max_caption_tokens: int = 32

    def __post_init__(self):
        for name in ("tokens", "max_caption_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout must be in [0, 1], got {self.caption_dropout}")

    @property
    def modality(self) -> str:
        """That of the shards."""
        return self.shards.modality

    def batch(self, turn: int, seed: int, process: int = 0, num_processes: int = 1) -> LatentBatch:
        """The micro-batch a process takes in its turn; processes take turns, so that none reads another's samples."""
        number = turn * num_processes + process
        shape, places = self.shards.places(number, self.tokens, seed)
        values, captions = self.shards.values(shape, places)
        (generator,) = spawn_generators(seed, 1, first=number)
        drawn = torch.rand(2, len(captions), generator=generator).tolist()
        chosen = [self.choose(*draws) for draws in zip(captions, *drawn, strict=True)]
        cut = [ids[: self.max_caption_tokens] for ids in TextCodec(self.tokenizer).encode(chosen)]
        bos = self.tokenizer.bos_token_id
        context, mask = pad_right([[bos, *ids] for ids in cut], pad_token_id=bos)
        positions = image_positions(*shape, start=0) if self.modality == "image" else None
        return LatentBatch(values, context, mask, positions, self.modality)

    def choose(self, captions: list[str], which: float, drop: float) -> str:
        """One of the captions, by two numbers in [0, 1); the empty one where it is dropped or there is none."""
        return captions[int(which * len(captions))] if captions and drop >= self.caption_dropout else ""
