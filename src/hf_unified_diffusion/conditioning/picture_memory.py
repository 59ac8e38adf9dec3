"""What a checkpoint itself remembers of pictures: their captions, and their tokens at 4 bits, in one mapped file."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..quantization.integer import dequantize, quantize
from ..quantization.parquet_files import read_parquet_weights, write_parquet_weights
from ..quantization.parquet_layout import FormatError

PICTURE_MEMORY_NAME = "picture_memory.arrowquant.parquet"
BITS = 4
SHARPNESS = 8.0  # of what is recalled: scores are about 1 for the same words and 0 for none
KEYWORDS = 0.5  # what a word of any caption counts beside one of the first
SMALL_WORDS = {"a", "an", "and", "are", "at", "in", "is", "it", "its", "of", "on", "that", "the", "this", "to", "with"}


def words_of(text: str) -> set[str]:
    """The words of a caption that say what is seen, in lower case, a plural as its singular where an s makes it."""
    found = set(re.findall(r"[^\W_]+", text.lower())) - SMALL_WORDS
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in found}


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
        memory = PictureMemory.load(folder / PICTURE_MEMORY_NAME)
        places, weights = memory.recall("a red apple", num=4)
        tokens = memory.tokens(places)
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
        self.packed, self.scale, self.grid, self.metadata = packed, scale, grid, dict(metadata or {})
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

    def recall(self, prompt: str, num: int = 4) -> tuple[Int[Tensor, "some"], Float[Tensor, "some"]]:
        """The pictures that share most with a prompt, best first, and how likely each is; none where no word is shared.

        What counts is the weight of the words shared with the first caption over the mean weight of both (Dice), and
        half the share of the prompt's that any caption has.
        """
        asked = words_of(prompt)
        own = self._weight(asked)
        if own <= 0:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        scores = torch.tensor([self._score(asked, own, *words) for words in self._words])
        best = scores.topk(min(num, len(scores)))
        found = best.values > 0
        return best.indices[found], (SHARPNESS * best.values[found]).softmax(dim=0)

    def _score(self, asked: set[str], own: float, first: set[str], all_words: set[str]) -> float:
        if not asked & all_words:
            return 0.0
        same = 2 * self._weight(asked & first) / (own + self._weight(first))
        return same + KEYWORDS * self._weight(asked & all_words) / own

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as one Parquet file, whole or not at all."""
        said = torch.frombuffer(bytearray(json.dumps(self.captions).encode()), dtype=torch.uint8)
        tensors = {"captions": said, "tokens.packed": self.packed, "tokens.scale": self.scale}
        roles = {"tokens.packed": "packed", "tokens.scale": "scale"}
        return write_parquet_weights(path, tensors, {**self.metadata, "grid": list(self.grid)}, roles=roles)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PictureMemory":
        """Map what `save` wrote; pictures are read as they are recalled.

        Raises:
            FormatError: whatever is wrong with the file.

        Usage: `PictureMemory.load(EMBEDDED_CHECKPOINT / PICTURE_MEMORY_NAME)`
        """
        weights = read_parquet_weights(path)
        try:
            captions = json.loads(weights["captions"].numpy().tobytes())
            rows, columns = weights.metadata["grid"]
            metadata = {name: value for name, value in weights.metadata.items() if name != "grid"}
            return cls(captions, weights["tokens.packed"], weights["tokens.scale"], (rows, columns), metadata)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise FormatError(f"a memory of pictures must hold captions, codes, scales and a grid: {error}") from None
