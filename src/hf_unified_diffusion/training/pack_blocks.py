"""Blocks of a pack: some of the data of one modality as small arrays, and the data again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from .latent_data import LatentShards, buckets_of
from .pack_files import strings_of_arrays, strings_to_arrays
from .token_data import PackedTokens

Block = dict[str, np.ndarray]
TOKENS_OF_BLOCK = 1 << 20
VALUES_OF_BLOCK = 1 << 21
PRECISIONS = ("int8", "float16", "principal")
STEP = 0.25  # of "principal", in standard deviations of all numbers: 0.5% of their variance is lost


def token_blocks(packed: PackedTokens, tokens: int = TOKENS_OF_BLOCK) -> Iterator[Block]:
    """Whole documents, at least `tokens` tokens a block: the tokens, and how many of them each document has.

    Usage: `block = next(token_blocks(packed)); packed_arrays(block)`
    """
    starts = np.flatnonzero(np.diff(packed.documents, prepend=packed.documents[0] + 1))
    ends = np.append(starts[1:], len(packed))
    first = 0
    while first < len(starts):
        last = min(int(np.searchsorted(ends, starts[first] + tokens)), len(ends) - 1)
        yield {
            "tokens": np.asarray(packed.tokens[starts[first] : ends[last]]),
            "lengths": (ends - starts)[first : last + 1].astype(np.uint32),
            "num_bytes": np.array([packed.num_bytes * (ends[last] - starts[first]) // len(packed)], dtype=np.uint64),
        }
        first = last + 1


def tokens_of(blocks: Sequence[Block], modality: str) -> PackedTokens:
    """The documents of blocks, in their order."""
    lengths = np.concatenate([block["lengths"] for block in blocks])
    tokens = np.concatenate([block["tokens"] for block in blocks])
    if lengths.sum(dtype=np.uint64) != len(tokens):
        raise ValueError(f"documents must have all tokens of a pack, got {lengths.sum()} of {len(tokens)}")
    documents = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    return PackedTokens(tokens, documents, modality, sum(int(block["num_bytes"][0]) for block in blocks))


def latent_blocks(shards: LatentShards, precision: str, values: int = VALUES_OF_BLOCK) -> Iterator[Block]:
    """Samples in the order of the shards, about `values` numbers a block.

    With "int8" each of the `width` numbers of a token has one scale in the block, its largest magnitude / 127; of
    latents of unit variance the rounding is 0.1% of the variance or less. With "principal" the tokens of a block are
    rounded along their principal axes, all with one step: xz then takes 1 or 2 bits a number where int8 takes 5 or 6.

    Raises:
        ValueError: another precision than those of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
    shapes = np.zeros((len(shards), 2), dtype=np.uint32)
    for shape, places in shards.buckets.items():
        shapes[places] = shape
    sizes = shapes.prod(axis=1, dtype=np.int64) * shards.width
    which = (np.cumsum(sizes) - sizes) // values
    for number in np.unique(which):
        places = np.flatnonzero(which == number)
        samples = shards.table.latents(places)  # of several lengths, objects
        flat = np.concatenate([np.ravel(sample) for sample in samples]) if samples.dtype == object else samples
        numbers = flat.astype(np.float32).reshape(-1, shards.width)
        yield {
            **rounded_values(numbers, precision),
            "shapes": shapes[places],
            **strings_to_arrays("captions", shards.table.captions(places)),
        }


def rounded_values(numbers: np.ndarray, precision: str) -> Block:
    """(tokens, width) in the precision: with the scale of each column for int8, with step and axes for principal."""
    if precision == "float16":
        return {"values": numbers.astype(np.float16)}
    if precision == "principal":
        axes = np.linalg.eigh(numbers.T @ numbers)[1][:, ::-1].astype(np.float16)
        step = max(STEP * float(numbers.std()), 1e-12)
        codes = np.rint(numbers @ axes.astype(np.float32) / step)
        kind = np.int8 if np.abs(codes).max() <= 127 else np.int16
        return {"values": codes.astype(kind), "axes": axes, "step": np.array([step], dtype=np.float32)}
    scale = np.maximum(np.abs(numbers).max(axis=0), 1e-12) / 127
    return {"values": np.rint(numbers / scale).astype(np.int8), "scale": scale.astype(np.float32)}


def turned_back(block: Block, of: str = "") -> Block:
    """A block whose values are rounded along principal axes, with them as float16 numbers; any other as it is."""
    if f"{of}axes" not in block:
        return block
    kept = {name: array for name, array in block.items() if name not in (f"{of}axes", f"{of}step")}
    axes = block[f"{of}axes"].astype(np.float32).T * block[f"{of}step"]
    return kept | {f"{of}values": (block[f"{of}values"].astype(np.float32) @ axes).astype(np.float16)}


@dataclass(frozen=True)
class PackedLatents:
    """Samples of blocks, as they were packed; numbers are restored where they are read.

    Attributes:
        blocks: of `latent_blocks`.
        texts: captions of all samples.
        block: int64 (samples,), the block of a sample.
        ends: int64 (samples,), the token within its block at which a sample ends.
        sizes: int64 (samples,), tokens of a sample.
    """

    blocks: Sequence[Block]
    texts: list[list[str]]
    block: Int[np.ndarray, "samples"]
    ends: Int[np.ndarray, "samples"]
    sizes: Int[np.ndarray, "samples"]

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, place: int) -> np.ndarray:
        """float32 values of one sample, flat."""
        block, end = self.blocks[self.block[place]], self.ends[place]
        values = block["values"][end - self.sizes[place] : end].astype(np.float32)
        return (values * block["scale"] if "scale" in block else values).ravel()

    def latents(self, places: Int[np.ndarray, "batch"]) -> np.ndarray:
        """As `LatentTable` says; of several lengths, (batch,) of objects."""
        samples = [self.sample(int(place)) for place in places]
        if len({len(sample) for sample in samples}) == 1:
            return np.stack(samples)
        found = np.empty(len(samples), dtype=object)
        found[:] = samples
        return found

    def captions(self, places: Int[np.ndarray, "batch"]) -> list[list[str]]:
        """As `LatentTable` says."""
        return [self.texts[int(place)] for place in places]


def latents_of(blocks: Sequence[Block], modality: str) -> LatentShards:
    """The samples of blocks, in their order.

    Raises:
        ValueError: shapes or captions that are not of the values.
    """
    blocks = [turned_back(block) for block in blocks]
    texts = [texts for block in blocks for texts in strings_of_arrays("captions", block)]
    sizes = [block["shapes"].prod(axis=1, dtype=np.int64) for block in blocks]
    held = [len(block["values"]) for block in blocks]
    if [int(size.sum()) for size in sizes] != held or len(texts) != sum(map(len, sizes)):
        raise ValueError(f"shapes and captions must be of the {held} tokens of {modality!r}, got others")
    table = PackedLatents(
        blocks,
        texts,
        block=np.repeat(np.arange(len(blocks)), [len(size) for size in sizes]),
        ends=np.concatenate([np.cumsum(size) for size in sizes]),
        sizes=np.concatenate(sizes),
    )
    shapes = np.concatenate([block["shapes"] for block in blocks])
    return LatentShards(table, modality, blocks[0]["values"].shape[1], buckets_of(shapes))
