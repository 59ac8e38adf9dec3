"""Blocks of speech: tokens of sound and of the face, rounded, with phonemes and voices; and the utterances again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .pack_blocks import VALUES_OF_BLOCK, Block, rounded_values, turned_back
from .pack_files import strings_of_arrays, strings_to_arrays
from .packs import blocks_of
from .speech_data import Utterances


def speech_blocks(
    speech: Utterances, faces: bool = True, values: int = VALUES_OF_BLOCK, precision: str = "int8"
) -> Iterator[Block]:
    """Utterances in their order, about `values` numbers of sound a block; as int8 a second takes 8 kB, its face 1 kB.

    The precision is one of `pack_blocks.PRECISIONS`.

    Raises:
        ValueError: with `faces`, an utterance whose phonemes have no times.

    Usage: `block = next(speech_blocks(open_speech(files, cache)))`
    """
    width = speech.sound(0).shape[1]
    which = (np.cumsum(speech.lengths) - speech.lengths) * width // values
    for number in np.unique(which):
        places = [int(place) for place in np.flatnonzero(which == number)]
        block = rounded_values(torch.cat([speech.sound(place) for place in places]).numpy(), precision)
        if faces:
            track = rounded_values(torch.cat([speech.face(place) for place in places]).numpy(), precision)
            block |= {f"face_{name}": array for name, array in track.items()}
        block["lengths"] = speech.lengths[places].astype(np.uint32)
        ends = [np.asarray(speech.ends_s(place), dtype=np.float64) for place in places]
        block["ends_ms"] = np.rint(1000 * np.concatenate(ends)).astype(np.uint32)
        block["ends_count"] = np.array([len(each) for each in ends], dtype=np.uint32)
        block |= strings_to_arrays("phonemes", [list(speech.symbols(place)) for place in places])
        yield block | strings_to_arrays("voices", [[speech.voices[place]] for place in places])


@dataclass(frozen=True)
class PackedSpeech:
    """Utterances of blocks.

    Attributes:
        blocks: of `speech_blocks`.
        block, ends: int64 (utterances,), the block of each, and the token of that block at which it ends.
        lengths, voices, phonemes: of each.
        times_s: where the phonemes of each end, seconds; empty where that is not known.
    """

    blocks: Sequence[Block]
    block: Int[np.ndarray, "rows"]
    ends: Int[np.ndarray, "rows"]
    lengths: Int[np.ndarray, "rows"]
    voices: list[str]
    phonemes: list[list[str]]
    times_s: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.voices)

    def symbols(self, place: int) -> Sequence[str]:
        """As `Utterances` says."""
        return self.phonemes[place]

    def ends_s(self, place: int) -> Sequence[float]:
        """As `Utterances` says."""
        return self.times_s[place].tolist()

    def sound(self, place: int) -> Float[Tensor, "tokens width"]:
        """As `Utterances` says."""
        return self.tokens(place, "")

    def face(self, place: int) -> Float[Tensor, "tokens 52"]:
        """As `Utterances` says."""
        return self.tokens(place, "face_")

    def tokens(self, place: int, of: str) -> Float[Tensor, "tokens width"]:
        """Restored numbers of one utterance; ValueError where the pack has none of them."""
        block, end = self.blocks[self.block[place]], self.ends[place]
        if f"{of}values" not in block:
            raise ValueError(f"a pack must hold {of}values to read them, got {sorted(block)}")
        codes = block[f"{of}values"][end - self.lengths[place] : end].astype(np.float32)
        return torch.from_numpy(codes * block[f"{of}scale"] if f"{of}scale" in block else codes)


def speech_of(blocks: Sequence[Block]) -> PackedSpeech:
    """The utterances of blocks, in their order.

    Raises:
        ValueError: lengths, voices or phonemes that are not of the tokens.
    """
    blocks = [turned_back(turned_back(block), "face_") for block in blocks]
    lengths = [block["lengths"].astype(np.int64) for block in blocks]
    voices = [voice for block in blocks for (voice,) in strings_of_arrays("voices", block)]
    phonemes = [symbols for block in blocks for symbols in strings_of_arrays("phonemes", block)]
    held = [len(block["values"]) for block in blocks]
    count = sum(map(len, lengths))
    times = [times for block in blocks for times in times_of(block)]
    if [int(some.sum()) for some in lengths] != held or {len(voices), len(phonemes), len(times)} != {count}:
        raise ValueError(f"lengths, voices, phonemes and times must be of the {held} tokens of speech, got others")
    wrong = [place for place, ends in enumerate(times) if len(ends) not in (0, len(phonemes[place]))]
    if wrong:
        raise ValueError(f"each phoneme must end once, or none has a time, got others in the utterances {wrong[:8]}")
    return PackedSpeech(
        blocks,
        block=np.repeat(np.arange(len(blocks)), [len(some) for some in lengths]),
        ends=np.concatenate([np.cumsum(some) for some in lengths]),
        lengths=np.concatenate(lengths),
        voices=voices,
        phonemes=phonemes,
        times_s=times,
    )


def times_of(block: Block) -> list[np.ndarray]:
    """Where the phonemes of each utterance of a block end, seconds; of older packs, which have no times, empty."""
    if "ends_count" not in block:
        return [np.zeros(0)] * len(block["lengths"])
    return np.split(block["ends_ms"] / 1000, np.cumsum(block["ends_count"], dtype=np.int64)[:-1])


def open_packed_speech(packs: Sequence[Path], split: str) -> PackedSpeech:
    """Speech of packs, in memory as it was packed.

    Usage: `SpokenRows(open_packed_speech([Path("runs/packs/pack-000")], "train"), tokenizer)`
    Raises ValueError as `blocks_of`.
    """
    return speech_of(blocks_of(packs, split, "audio"))
