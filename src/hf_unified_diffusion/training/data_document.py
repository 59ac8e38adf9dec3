"""A document of the training corpus, and the checks that tell prose from debris."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

MODALITIES = ("text", "code")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Document:
    """One training document: `text` to be written, after an optional `prompt`.

    `document_id` is "package/path" or "package/path#part". All parts of one path fall in the same split.
    """

    document_id: str
    source: str
    licence: str
    modality: str
    text: str
    prompt: str = ""

    @property
    def group(self) -> str:
        """What must not be split: the file a part was taken from."""
        return self.document_id.partition("#")[0]


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is a whole sentence or more: 80 characters, a capital, a stop, mostly letters."""
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return (
        len(paragraph) >= 80
        and (paragraph[0].isupper() or not paragraph[0].isalnum())
        and paragraph[-1] in ".!?:;)\"'\u201d\u2019"
        and letters > 0.85 * len(paragraph)
        and sum(not c.isascii() for c in paragraph) < 0.05 * len(paragraph)
    )


def reflow(block: str) -> str:
    """A paragraph on one line, its white space single."""
    return " ".join(block.split())


def paragraphs(text: str) -> list[str]:
    """The blocks between empty lines, each on one line."""
    return [reflow(block) for block in re.split(r"\n\s*\n", text) if block.strip()]


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Runs of `size` items, the last one shorter (itertools.batched, which Python 3.11 lacks)."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
