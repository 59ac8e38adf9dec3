"""Numbers between bounds as trees of their digits."""

import math
from fractions import Fraction

from .expressions import EMPTY, Chars, Choice, Expression, Literal, Repeat, Sequence

DIGITS = 15  # of a number without a bound: as many as a double keeps
DECIMALS = 6
LARGEST_WITH_DECIMALS = 10**9  # above it doubles lie too close to 1e-6 for a bound to exclude itself

DIGIT = Chars(((48, 57),))
WHOLE = Choice((Literal("0"), Sequence((Chars(((49, 57),)), Repeat(DIGIT, 0, DIGITS - 1)))))
INTEGER = Sequence((Repeat(Literal("-"), 0, 1), WHOLE))
FRACTION = Sequence((Literal("."), Repeat(DIGIT, 1, DECIMALS)))
EXPONENT = Sequence((Literal("e"), Repeat(Chars(((43, 43), (45, 45))), 0, 1), Repeat(DIGIT, 1, 2)))
NUMBER = Sequence((INTEGER, Repeat(FRACTION, 0, 1), Repeat(EXPONENT, 0, 1)))


def number_between(
    low: Fraction | None, high: Fraction | None, low_excluded: bool, high_excluded: bool, whole: bool
) -> Expression | None:
    """The numbers between two bounds, of at most `DECIMALS` decimals; None where there are none.

    Args:
        low, high: the bounds, None for none; a side without one goes as far as `DIGITS` digits.
        low_excluded, high_excluded: whether a bound itself does not count.
        whole: integers only.

    Usage: `number_between(Fraction(1), Fraction(12), False, False, whole=True)`
    """
    limit = Fraction(10**DIGITS - 1)
    first = min(-limit, Fraction(0) if high is None else 2 * high) if low is None else low
    last = max(limit, Fraction(0) if low is None else 2 * low) if high is None else high
    excluded = [bound for bound, is_excluded in ((first, low_excluded), (last, high_excluded)) if is_excluded]
    exact = all(abs(bound) < LARGEST_WITH_DECIMALS for bound in excluded)
    options = []
    for decimals in range(1 if whole or not exact else DECIMALS + 1):
        scale = 10**decimals
        least = math.floor(first * scale) + 1 if low_excluded else math.ceil(first * scale)
        most = math.ceil(last * scale) - 1 if high_excluded else math.floor(last * scale)
        if least <= most:
            options += _signed(least, most, decimals)
    return Choice(tuple(options)) if options else None


def _signed(least: int, most: int, decimals: int) -> list[Expression]:
    """The integers of a range, written with a point before their last `decimals` digits."""
    options = _magnitudes(max(least, 0), most, decimals) if most >= 0 else []
    if least < 0:
        options += [Sequence((Literal("-"), option)) for option in _magnitudes(max(1, -most), -least, decimals)]
    return options


def _magnitudes(least: int, most: int, decimals: int) -> list[Expression]:
    options = []
    for width in range(decimals + 1, max(len(str(most)), decimals + 1) + 1):
        shortest = 0 if width == decimals + 1 else 10 ** (width - 1)
        low, high = max(least, shortest), min(most, 10**width - 1)
        if low <= high:
            options.append(_digits(str(low).zfill(width), str(high).zfill(width), width - decimals))
    return options


def _digits(low: str, high: str, point: int) -> Expression:
    """Strings of digits between two of equal length, with a point where `point` is counted down to 0."""
    if not low:
        return EMPTY
    dot: Expression = Literal(".") if point == 0 else EMPTY
    if point <= 0 and set(low) == {"0"} and set(high) == {"9"}:
        return Sequence((dot, Repeat(DIGIT, len(low), len(low))))
    first, last = int(low[0]), int(high[0])
    if first == last:
        return Sequence((dot, Literal(low[0]), _digits(low[1:], high[1:], point - 1)))
    zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
    options: list[Expression] = []
    if low[1:] != zeros:
        options.append(Sequence((Literal(low[0]), _digits(low[1:], nines, point - 1))))
        first += 1
    if high[1:] != nines:
        options.append(Sequence((Literal(high[0]), _digits(zeros, high[1:], point - 1))))
        last -= 1
    if first <= last:
        options.append(Sequence((Chars(((48 + first, 48 + last),)), _digits(zeros, nines, point - 1))))
    return Sequence((dot, Choice(tuple(options))))
