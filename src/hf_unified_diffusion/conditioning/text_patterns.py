"""Regular expressions as they are written in Python and JSON Schema, as trees."""

# The parser of the standard library's re: what it reads as a pattern is what a validator in Python reads.
import re
from collections.abc import Callable
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from .expressions import EMPTY, LARGEST_CHARACTER, Chars, Choice, Expression, Repeat, Sequence

Ranges = tuple[tuple[int, int], ...]
ANYTHING: Ranges = ((0, LARGEST_CHARACTER),)
CATEGORIES: dict[Any, Ranges] = {
    code.CATEGORY_DIGIT: ((48, 57),),
    code.CATEGORY_SPACE: ((9, 13), (32, 32)),
    code.CATEGORY_WORD: ((48, 57), (65, 90), (95, 95), (97, 122)),
}
OPPOSITES = {
    code.CATEGORY_NOT_DIGIT: code.CATEGORY_DIGIT,
    code.CATEGORY_NOT_SPACE: code.CATEGORY_SPACE,
    code.CATEGORY_NOT_WORD: code.CATEGORY_WORD,
}


def full_match(pattern: str, encode: Callable[[Ranges], Expression] = Chars) -> Expression:
    """The tree of a pattern that the whole text must match.

    `\\d`, `\\s` and `\\w` stand for ASCII characters, their opposites for all that no reading counts as one. Anchors at
    the ends are allowed and say nothing new.

    Args:
        pattern: in the syntax of Python's `re`.
        encode: how one character of some ranges is written.

    Raises:
        ValueError: for a malformed pattern, or one with lookaround, back references, word boundaries, anchors inside.

    Usage: `full_match(r"[a-z]+\\d")`
    """
    options = [_concat(items, encode) for _, items, _ in _branches(pattern)]
    return Choice(tuple(options))


def search_match(pattern: str, encode: Callable[[Ranges], Expression]) -> Expression:
    """The tree of all texts that contain a match, as `pattern` in JSON Schema asks; else as `full_match`."""
    around = Repeat(encode(ANYTHING), 0, None)
    options = []
    for from_start, items, to_end in _branches(pattern):
        ends = (EMPTY if from_start else around, EMPTY if to_end else around)
        options.append(Sequence((ends[0], _concat(items, encode), ends[1])))
    return Choice(tuple(options))


def complement(ranges: Ranges) -> Ranges:
    """All other characters."""
    rest, first = [], 0
    for low, high in sorted(ranges):
        if low > first:
            rest.append((first, low - 1))
        first = max(first, high + 1)
    return (*rest, (first, LARGEST_CHARACTER)) if first <= LARGEST_CHARACTER else tuple(rest)


def intersection(a: Ranges, b: Ranges) -> Ranges:
    """The characters of both."""
    pairs = ((max(low, first), min(high, last)) for low, high in a for first, last in b)
    return tuple(sorted((low, high) for low, high in pairs if low <= high))


def _branches(pattern: str) -> list[tuple[bool, list, bool]]:
    """The alternatives of a pattern: whether it is bound to the start, its items, whether it is bound to the end."""
    try:
        parsed = parser.parse(pattern)
    except re.error as error:
        raise ValueError(f"a pattern must be a regular expression, got {pattern!r}: {error}") from error
    if parsed.state.flags & ~re.UNICODE.value:
        raise ValueError(f"a pattern must not set flags, got {pattern!r}")
    items = list(parsed)
    if len(items) == 1 and items[0][0] is code.BRANCH:
        branches = [list(branch) for branch in items[0][1][1]]
    else:
        branches = [items]
    return [_without_anchors(branch) for branch in branches]


def _without_anchors(items: list) -> tuple[bool, list, bool]:
    starts, ends = (code.AT_BEGINNING, code.AT_BEGINNING_STRING), (code.AT_END, code.AT_END_STRING)
    from_start = bool(items) and items[0][0] is code.AT and items[0][1] in starts
    items = items[from_start:]
    to_end = bool(items) and items[-1][0] is code.AT and items[-1][1] in ends
    return from_start, items[: len(items) - to_end], to_end


def _concat(items: Any, encode: Callable[[Ranges], Expression]) -> Expression:
    return Sequence(tuple(_tree(item, value, encode) for item, value in items))


def _tree(kind: Any, value: Any, encode: Callable[[Ranges], Expression]) -> Expression:
    if kind is code.LITERAL:
        return encode(((value, value),))
    if kind is code.NOT_LITERAL:
        return encode(complement(((value, value),)))
    if kind is code.ANY:
        return encode(complement(((10, 10),)))
    if kind is code.IN:
        return encode(_class(value))
    if kind is code.BRANCH:
        return Choice(tuple(_concat(branch, encode) for branch in value[1]))
    if kind is code.SUBPATTERN and not value[1] and not value[2]:
        return _concat(value[3], encode)
    if kind in (code.MAX_REPEAT, code.MIN_REPEAT):
        least, most, body = value
        return Repeat(_concat(body, encode), int(least), None if most is code.MAXREPEAT else int(most))
    raise ValueError(f"a pattern must be free of lookaround, references and inner anchors, got {str(kind).lower()}")


def _class(items: Any) -> Ranges:
    """The characters of a class in brackets."""
    ranges: list[tuple[int, int]] = []
    negated = False
    for kind, value in items:
        if kind is code.NEGATE:
            negated = True
        elif kind is code.LITERAL:
            ranges.append((value, value))
        elif kind is code.RANGE:
            ranges.append(value)
        elif value in CATEGORIES:
            ranges += CATEGORIES[value] if not negated else _widest(value)
        else:
            ranges += complement(_widest(OPPOSITES[value])) if not negated else complement(CATEGORIES[OPPOSITES[value]])
    return complement(tuple(ranges)) if negated else tuple(ranges)


def _widest(category: Any) -> Ranges:
    """All characters that some reading counts to a category: Python's digits, letters and spaces go beyond ASCII's."""
    return (*CATEGORIES[category], (28, 31), (128, LARGEST_CHARACTER))
