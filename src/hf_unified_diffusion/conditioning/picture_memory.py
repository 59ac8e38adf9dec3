"""What a checkpoint itself remembers of pictures: their captions, and their tokens at 4 bits, in one mapped file."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..codecs.recolouring import COLOURS
from ..quantization.integer import dequantize, quantize
from ..quantization.parquet_files import read_parquet_weights, write_parquet_weights
from ..quantization.parquet_layout import FormatError

PICTURE_MEMORY_NAME = "pictures.arrowquant.parquet"
BITS = 4
SHARPNESS = 8.0  # of what is recalled: scores are about 1 for the same words and 0 for none
TIE_BREAK = 0.1  # what it adds that a thing is shown in the colours, numbers and sides asked for
KEYWORDS = 0.5  # what a word of any caption counts beside one of the first
# fmt: off
SMALL_WORDS = {"a", "an", "are", "her", "his", "is", "it", "its", "my", "that", "the", "their", "this", "your"}
LINKS = {
    "above", "and", "at", "behind", "below", "beside", "between", "by", "for", "from", "in", "near", "next", "of", "on",
    "or", "over", "to", "under", "with", "without",
}
QUALIFIERS = {  # they say where and how many, not what
    "left", "right", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "big", "large",
    "little", "small",
}
# fmt: on


def words_of(text: str) -> set[str]:
    """The words of a caption that say what is seen, in lower case, a plural as its singular where an s makes it."""
    return set(_words_in_order(text)) - LINKS


def head_of(text: str) -> str | None:
    """The noun of a caption: the last word of its first phrase that is no colour, number or side; None without one.

    Usage: `head_of("a yellow hexagon left of a melon")  # "hexagon"`
    """
    things, _ = _first_phrase(text)
    return things[-1] if things else None


def colour_of(text: str) -> str | None:
    """The colour of a caption's noun; None without a noun, without a colour, or with several.

    Usage: `colour_of("a yellow hexagon left of a red melon")  # "yellow"`
    """
    things, colours = _first_phrase(text)
    return colours[0] if things and len(colours) == 1 else None


def _first_phrase(text: str) -> tuple[list[str], list[str]]:
    """The words up to what links the first thing of a caption with another: things, and colours."""
    things: list[str] = []
    colours: list[str] = []
    for word in _words_in_order(text):
        if word in LINKS and things:
            break
        if word in COLOURS:
            colours.append(word)
        elif word not in LINKS | QUALIFIERS:
            things.append(word)
    return things, colours


def _words_in_order(text: str) -> list[str]:
    found = [word for word in re.findall(r"[^\W_]+", text.lower()) if word not in SMALL_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found]


@dataclass(frozen=True)
class Recalled:
    """What a prompt recalls, best first; nothing where no picture has its noun.

    Attributes:
        places: of the pictures in the memory.
        weights: how likely each is; they sum to 1.
        colours: which one each is to be given, of `codecs.recolouring`; None where it is to stay as it is.
        colour: of the prompt's noun, as `colour_of` says.
    """

    places: Int[Tensor, "some"]
    weights: Float[Tensor, "some"]
    colours: tuple[str | None, ...]
    colour: str | None


class PictureMemory:
    """Pictures to lead what is drawn (`conditioning.remembered`), found by the words that captions share.

    Each number of a token has a scale of its own in each picture, so that 4 bits keep a picture within far less than
    the noise at which it leads.

    Args:
        captions: of each picture, the first one what it shows, others more words for it.
        packed, scale: `quantize` of the tokens, (pictures, width x tokens), groups of one number of all tokens.
        grid: rows and columns of tokens of each picture.
        metadata: what else the file says: where the pictures are from, under which licences.

    Raises:
        ValueError: for no picture, captions without words, or tensors that do not fit.

    Usage:
        memory = PictureMemory.load(file)
        recalled = memory.recall("a red apple", num=4)
        tokens = memory.tokens(recalled.places)
    """

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        packed: Tensor,
        scale: Tensor,
        grid: tuple[int, int],
        metadata: dict[str, Any] | None = None,
    ):
        self.captions = tuple(tuple(each) for each in captions)
        self.packed, self.scale, self.grid = packed, scale, grid
        self.metadata = dict(metadata or {})
        count = len(self.captions)
        wordless = [each for each in self.captions if not each or not words_of(each[0])]
        if not count or wordless:
            raise ValueError(f"every picture must have a caption with a word, got {wordless[:1] or 'no picture'}")
        if any(type(side) is not int or side < 1 for side in grid):
            raise ValueError(f"grid must be two positive integers, got {grid}")
        fits = packed.ndim == scale.ndim == 2 and len(packed) == len(scale) == count and packed.dtype == torch.uint8
        if not fits or packed.shape[1] * (8 // BITS) != math.prod(grid) * scale.shape[1]:
            raise ValueError(
                f"{count} pictures of {grid[0]} x {grid[1]} tokens must have {BITS}-bit codes with a scale for each "
                f"number of a token, got {packed.dtype} {tuple(packed.shape)} and {tuple(scale.shape)}"
            )

    @property
    def width(self) -> int:
        """Numbers in a token."""
        return self.scale.shape[1]

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def of(
        cls,
        captions: Sequence[Sequence[str]],
        tokens: Float[Tensor, "pictures tokens width"],
        grid: tuple[int, int],
        metadata: dict[str, Any] | None = None,
    ) -> "PictureMemory":
        """Remember pictures by their captions.

        Raises ValueError where tokens do not fit the grid, are not finite, or a caption has no word.

        Usage: `PictureMemory.of([["a red apple"]], codec.encode(pixels), codec.grid(256, 256))`
        """
        if tokens.ndim != 3 or tokens.shape[1] != math.prod(grid):
            raise ValueError(f"tokens must be (pictures, {math.prod(grid)}, width), got {tuple(tokens.shape)}")
        packed, scale = quantize(tokens.transpose(1, 2).flatten(1).float(), BITS, group_size=tokens.shape[1])
        return cls(captions, packed, scale, grid, metadata)

    def tokens(self, places: Int[Tensor, "some"]) -> Float[Tensor, "some tokens width"]:
        """The tokens of some pictures, float32."""
        flat = dequantize(self.packed[places], self.scale[places], BITS)
        return flat.unflatten(1, (self.width, -1)).transpose(1, 2)

    @cached_property
    def _words(self) -> list[tuple[set[str], set[str]]]:
        """The words of each picture's first caption, and of all of them."""
        return [(words_of(each[0]), set().union(*map(words_of, each))) for each in self.captions]

    @cached_property
    def _counts(self) -> Counter[str]:
        return Counter(word for _, words in self._words for word in words)

    def _weight(self, words: set[str]) -> float:
        """How much words tell: rare ones more (idf), ones that no picture has most."""
        return sum(math.log((len(self) + 1) / (self._counts[word] + 0.5)) for word in sorted(words))

    def recall(self, prompt: str, num: int = 4) -> Recalled:
        """The pictures that share most with a prompt, its noun among it, and how likely each is.

        What counts is the weight of the words shared with the first caption over the mean weight of both (Dice), and
        half the share of the prompt's that any caption has. A blue car is a car first: colours, numbers and sides break
        ties, unless nothing else is asked for. What is recalled is to be given the colour of the prompt's noun, unless
        its first caption names it.
        """
        asked, head = words_of(prompt), head_of(prompt)
        things = asked - COLOURS.keys() - QUALIFIERS if head is not None else asked
        needed = {head} if head is not None else asked
        own = self._weight(things)
        scores = torch.tensor([self._score(asked, things, own, needed, *words) for words in self._words])
        best = scores.topk(min(num, len(scores)))
        kept = best.values > 0
        places, values = best.indices[kept], best.values[kept]
        colour = colour_of(prompt)
        colours = tuple(None if colour in self._words[place][0] else colour for place in places.tolist())
        return Recalled(places, (SHARPNESS * values).softmax(dim=0), colours, colour)

    def _score(
        self, asked: set[str], things: set[str], own: float, needed: set[str], first: set[str], all_words: set[str]
    ) -> float:
        if not needed & all_words:
            return 0.0
        # where the prompt names a colour, those of a caption do not make it another thing
        others = first - COLOURS.keys() - QUALIFIERS if things < asked else first
        same = 2 * self._weight(things & first) / (own + self._weight(others))
        same += KEYWORDS * self._weight(things & all_words) / own
        rest = asked - things
        return same * (1 + TIE_BREAK * len(rest & all_words) / len(rest)) if rest else same

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one Parquet file, whole or not at all, into a folder that is made where there is none."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        said = torch.frombuffer(bytearray(json.dumps(self.captions).encode()), dtype=torch.uint8)
        tensors = {"captions": said, "tokens.packed": self.packed, "tokens.scale": self.scale}
        roles = {"tokens.packed": "packed", "tokens.scale": "scale"}
        return write_parquet_weights(path, tensors, {**self.metadata, "grid": list(self.grid)}, roles=roles)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PictureMemory":
        """Map what `save` wrote; pictures are read as they are recalled.

        Raises:
            FormatError: whatever is wrong with the file.

        Usage: `PictureMemory.load("picture_memory/pictures.arrowquant.parquet")`
        """
        weights = read_parquet_weights(path)
        try:
            captions = json.loads(weights["captions"].numpy().tobytes())
            rows, columns = weights.metadata["grid"]
            metadata = {name: value for name, value in weights.metadata.items() if name != "grid"}
            codes = weights["tokens.packed"], weights["tokens.scale"]
            return cls(captions, *codes, (rows, columns), metadata)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(f"a memory of pictures must hold captions, codes, scales and a grid: {error}") from None
