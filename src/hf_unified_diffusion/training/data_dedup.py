"""Removal of exact and near duplicates, and of training text that the held-out splits contain."""

import ast
import hashlib
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import UInt64
from numpy import ndarray

from .data_code import functions, parse
from .data_document import Document

SHINGLE_WORDS = 5
NUM_HASHES = 64
NUM_BANDS = 16
NEAR = 0.8
SHORTEST_UNIT = 80
PRIME = np.uint64((1 << 61) - 1)


def digest(text: str) -> bytes:
    """Hash of a text's letters and digits, blind to case, spacing and punctuation."""
    letters = re.sub(r"[\W_]+", "", text).lower()
    return hashlib.blake2b((letters or text).encode(), digest_size=12).digest()


@lru_cache(maxsize=1 << 18)
def word_hash(word: str) -> int:
    """A 64-bit hash of a word, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def shingles(text: str) -> UInt64[ndarray, "shingles"]:
    """Hashes of the runs of SHINGLE_WORDS words of a text, each once."""
    words = re.findall(r"\w+", text.lower())
    hashes = np.array([word_hash(word) for word in words] or [0], dtype=np.uint64)
    width = min(SHINGLE_WORDS, len(hashes))
    runs = np.zeros(len(hashes) - width + 1, dtype=np.uint64)
    for offset in range(width):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + len(runs)]
    return np.unique(runs)


def minhash(text: str) -> UInt64[ndarray, "hashes"]:
    """MinHash signature: two texts agree at a place with probability their Jaccard similarity (Broder 1997)."""
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 63, NUM_HASHES, dtype=np.uint64) | np.uint64(1)
    offsets = generator.integers(0, 1 << 63, NUM_HASHES, dtype=np.uint64)
    mixed = shingles(text)[:, None] * factors + offsets
    # multiplication only carries upwards: fold the high half down before the minimum is taken
    mixed ^= mixed >> np.uint64(32)
    return (mixed * np.uint64(0xD6E8FEB86659FD93)).min(axis=0)


class NearDuplicates:
    """Remembers texts and tells whether a new one is at least NEAR-similar to one of them (banded MinHash)."""

    def __init__(self) -> None:
        self._signatures = np.zeros((1024, NUM_HASHES), dtype=np.uint64)
        self._count = 0
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, text: str) -> bool:
        """Remember the text if it is new; False when it is a near duplicate."""
        signature = minhash(text)
        bands = [(band, part.tobytes()) for band, part in enumerate(signature.reshape(NUM_BANDS, -1))]
        candidates = list({index for key in bands for index in self._buckets.get(key, ())})
        if candidates and (self._signatures[candidates] == signature).mean(axis=1).max() >= NEAR:
            return False
        if self._count == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures)])
        self._signatures[self._count] = signature
        for key in bands:
            self._buckets[key].append(self._count)
        self._count += 1
        return True


def new_paragraphs(text: str, seen: set[bytes]) -> dict[bytes, str]:
    """The paragraphs by their digest, without repeated ones; short ones, such as headings, may be in `seen`."""
    kept: dict[bytes, str] = {}
    for paragraph in text.split("\n\n"):
        mark = digest(paragraph)
        if mark not in seen or len(paragraph) < SHORTEST_UNIT:
            kept.setdefault(mark, paragraph)
    return kept


def code_lines(code: str) -> list[str]:
    """The lines that hold something, without their indentation."""
    return [line.strip() for line in code.split("\n") if line.strip()]


class HeldOutFunctions:
    """The functions of the held-out splits, from SHORTEST_UNIT characters of body on, docstrings apart."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._openings: set[tuple[str, ...]] = set()

    def add(self, code: str) -> None:
        """Remember the functions and methods of a piece of code."""
        for body in function_bodies(code):
            self._digests.add(digest(body))
            self._openings.add(tuple(code_lines(body)[:2]))

    def occur_in(self, code: str) -> bool:
        """Whether the code holds one of them, under any name and indentation."""
        lines = code_lines(code)
        # parsing is slow: most code is cleared by the first two lines of the bodies
        suspected = any(pair in self._openings for pair in pairwise(lines))
        suspected = suspected or any((line,) in self._openings for line in lines)
        return suspected and any(digest(body) in self._digests for body in function_bodies(code))


def function_bodies(code: str) -> Iterator[str]:
    """The bodies of functions and methods at column 0, without docstrings, from SHORTEST_UNIT characters on."""
    tree = parse(code)
    lines = code.split("\n")
    for _, node in functions(tree) if tree is not None else ():
        first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
        body = textwrap.dedent("\n".join(lines[first.lineno - 1 : node.end_lineno]))
        if len(body) >= SHORTEST_UNIT:
            yield body


def deduplicate(documents: Iterable[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
    """Drop what was seen before; takes and gives (split, document) with the held-out splits FIRST.

    That order makes one pass clean both ways: of near duplicates across splits the held-out one stays, and a training
    document that holds a function of a held-out one goes.
    """
    exact: set[tuple[bool, bytes]] = set()
    seen_paragraphs: set[bytes] = set()
    held_out = HeldOutFunctions()
    near: dict[tuple[str, bool], NearDuplicates] = defaultdict(NearDuplicates)
    for split, document in documents:
        # a function pair repeats its own file on purpose, so pairs are compared with pairs
        is_pair = bool(document.prompt)
        paragraphs = new_paragraphs(document.text, seen_paragraphs) if document.modality == "text" else {}
        kept = replace(document, text="\n\n".join(paragraphs.values())) if document.modality == "text" else document
        whole = kept.prompt + kept.text
        leaks = split == "train" and document.modality == "code" and held_out.occur_in(whole)
        mark = (is_pair, digest(whole))
        if leaks or mark in exact or not kept.text.strip() or not near[document.modality, is_pair].add(whole):
            continue
        exact.add(mark)
        seen_paragraphs.update(paragraphs)
        if split != "train" and document.modality == "code":
            held_out.add(whole)
        yield split, kept
