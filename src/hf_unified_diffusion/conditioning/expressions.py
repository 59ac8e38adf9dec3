"""Regular expressions as trees, over characters."""

from dataclasses import dataclass
from functools import lru_cache

LARGEST_CHARACTER = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)


@dataclass(frozen=True)
class Chars:
    """One character of any of these ranges of code points, ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Literal:
    """One text."""

    text: str


@dataclass(frozen=True)
class Sequence:
    """Parts one after the other."""

    parts: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Choice:
    """One of several options; nothing at all where there is none."""

    options: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Repeat:
    """A body `least` to `most` times; without a bound where `most` is None."""

    body: "Expression"
    least: int
    most: int | None


@dataclass(frozen=True)
class Listing:
    """Items in order with separators between those that are there; only the required ones must be.

    The last item may repeat without a bound. A tree of the other kinds would need a copy of what follows for each
    place that the first item can have.
    """

    items: "tuple[tuple[Expression, bool], ...]"
    separator: str
    last_repeats: bool = False


@dataclass(frozen=True)
class Both:
    """What both expressions accept."""

    first: "Expression"
    second: "Expression"


Expression = Chars | Literal | Sequence | Choice | Repeat | Listing | Both
EMPTY = Literal("")


def nfa_size(expression: Expression) -> int:
    """About how many states an expression takes, without building them."""
    match expression:
        case Chars(ranges):
            return sum(map(len, utf8_runs(ranges)))
        case Literal(text):
            return len(text.encode()) + 1
        case Sequence(parts) | Choice(parts):
            return 1 + sum(map(nfa_size, parts))
        case Repeat(body, least, most):
            return 2 + nfa_size(body) * max(1, least + 1 if most is None else most)
        case Both(first, second):
            return nfa_size(first) + nfa_size(second)
        case Listing(items, separator):
            return sum(nfa_size(item) + 2 * len(separator) + 5 for item, _ in items)


@lru_cache(maxsize=256)
def utf8_runs(ranges: tuple[tuple[int, int], ...]) -> list[tuple[tuple[int, int], ...]]:
    """Ranges of code points as sequences of byte ranges; surrogates are left out, UTF-8 has none."""
    runs: list[tuple[tuple[int, int], ...]] = []
    waiting = [*ranges]
    while waiting:
        low, high = waiting.pop()
        if low > high:
            continue
        cut = _first_cut(low, high)
        if cut is not None:
            waiting += [(cut + 1, high), (low, cut)]
        elif not SURROGATES[0] <= low <= SURROGATES[1]:
            runs.append(tuple(zip(chr(low).encode(), chr(high).encode(), strict=True)))
    return runs


def _first_cut(low: int, high: int) -> int | None:
    """Where a range must end for its bytes to vary independently; None where they do."""
    for edge in (0x7F, 0x7FF, SURROGATES[0] - 1, SURROGATES[1], 0xFFFF):
        if low <= edge < high:
            return edge
    for places in range(1, len(chr(high).encode("utf-8", "surrogatepass"))):
        tail = (1 << 6 * places) - 1
        if low & ~tail != high & ~tail:
            if low & tail:
                return low | tail
            if high & tail != tail:
                return (high & ~tail) - 1
    return None
