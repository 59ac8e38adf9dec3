"""Examples for ControlNets that the project makes itself: a hint, a prompt, and the one right response.

Every example is a function of its split, number and seed. Values (names, numbers, dates, operands) belong to exactly
one split; phrasings are kept from training too: "validation" has the phrasings of "train" with values of its own, and
"test" phrasings and values that neither has.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

SPLITS = ("train", "validation", "test")
TRIES = 1000  # draws until a value of the split is found: a pool that has none is a mistake of its table
Value = TypeVar("Value")


@dataclass(frozen=True)
class ControlExample:
    """What a ControlNet is trained and tested on.

    Attributes:
        hint: what the ControlNet reads.
        prompt: what comes before the response.
        response: what is right, as a text.
        tools: the tools on offer, in transformers' format; empty where there are none.
        answer: what the response says, to be checked: the arguments of a call, or a number.
    """

    hint: str
    prompt: str
    response: str
    tools: tuple[dict[str, Any], ...] = ()
    answer: Any = None


def split_of(value: object) -> str:
    """The split that a value belongs to: a fifth is "test", a fifth "validation"; by CRC-32, so always the same.

    Usage: `split_of("Lisbon")`
    """
    return {0: "test", 1: "validation"}.get(zlib.crc32(str(value).encode()) % 5, "train")


def draw_value(draw: Callable[[], Value], split: str) -> Value:
    """Draw until a value is of the split.

    Raises:
        ValueError: none is found.
    """
    for _ in range(TRIES):
        value = draw()
        if split_of(value) == split:
            return value
    raise ValueError(f"a pool must hold values of each split, got none of {split!r} in {TRIES} draws")


def phrasing(choices: Sequence[str], split: str, random: Random) -> str:
    """One of several phrasings: the last one is kept for "test", which has no other."""
    return choices[-1] if split == "test" else random.choice(choices[:-1])


def random_of(task: str, split: str, index: int, seed: int) -> Random:
    """The generator of one example."""
    return Random(f"{task}/{split}/{seed}/{index}")


def check_split(split: str, known: Sequence[str] = SPLITS) -> None:
    """Raise ValueError for a split that a task does not have."""
    if split not in known:
        raise ValueError(f"split must be one of {list(known)}, got {split!r}")
