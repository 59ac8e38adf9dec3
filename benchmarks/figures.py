"""What a line of the report is: where a benchmark's result has the number, what is better, its floor and its noise."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tables = Mapping[str, Sequence[Mapping[str, Any]]]
Noise = Callable[[Mapping[str, Any], float], float]  # row and value -> half-width of the 95% interval, or tolerance


@dataclass(frozen=True)
class Job:
    """A benchmark to run: `full` and `quick` are its arguments (None: not in the quick setting).

    `needs` are paths in the checkout it cannot do without; `samples` are tables of its result that show samples.
    """

    script: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()
    needs: tuple[str, ...] = ()
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class At:
    """Where a number stands in a result: the first table whose title begins so, the first row that has all of `row`."""

    table: str
    row: Mapping[str, object]
    column: str

    def find(self, tables: Tables) -> tuple[Mapping[str, Any], float] | None:
        """The row and the number, or None where the table, the row or the number is not there."""
        for title, rows in tables.items():
            if title.startswith(self.table):
                for row in rows:
                    if self.row.items() <= row.items():
                        value = number(row.get(self.column))
                        return None if value is None else (row, value)
        return None


def number(value: object) -> float | None:
    """A cell as a number: itself, the value of a mean, "1.5%" as 0.015; None for anything else, NaN included."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, str) and value.endswith("%"):
        return float(value.removesuffix("%")) / 100
    if not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def exact(row: Mapping[str, Any], value: float) -> float:
    """Counted or deterministic: any change is real."""
    return 0.0


def relative(share: float) -> Noise:
    """A tolerance in shares of the value, chosen for what has no interval, such as times on a busy machine."""
    return lambda row, value: share * abs(value)


def share_of(count: str) -> Noise:
    """Of a share of so many independent cases (Agresti and Coull's interval: 0 of 20 is not certain)."""

    def half_width(row: Mapping[str, Any], value: float) -> float:
        cases = row[count] + 4
        centre = (value * row[count] + 2) / cases
        return 1.96 * math.sqrt(centre * (1 - centre) / cases)

    return half_width


def interval(column: str) -> Noise:
    """The half-width that the benchmark itself gives."""
    return lambda row, value: row[column]["half_width"]


def relative_interval(column: str) -> Noise:
    """The half-width that the benchmark gives of another column, in the same share of this one."""
    return lambda row, value: abs(value) * row[column]["half_width"] / row[column]["value"]


def two_percent_of_perplexity(row: Mapping[str, Any], value: float) -> float:
    """Bits per byte for 2% more perplexity: the same sequences are read each time, so that sampling adds nothing."""
    return value * math.log(1.02) / row["nats per token"]["value"]


@dataclass(frozen=True)
class Figure:
    """A line of the report. `ceiling` and `control` are places in the same result, or numbers."""

    name: str
    job: str
    at: At
    better: Literal["higher", "lower"]
    noise: Noise
    line: str
    floor: float | None = None
    ceiling: At | float | None = None
    control: At | float | None = None


@dataclass(frozen=True)
class Source:
    """What the figures of one table of a result share.

    Usage: `Source("infilling", "Given tokens", "lower", exact, "2.7").figure("Tokens changed", {}, "changed", 0.0)`
    """

    job: str
    table: str
    better: Literal["higher", "lower"]
    noise: Noise
    line: str

    def figure(
        self,
        name: str,
        row: Mapping[str, object],
        column: str,
        floor: float | None = None,
        ceiling: Mapping[str, object] | float | None = None,
        control: Mapping[str, object] | float | None = None,
    ) -> Figure:
        """A figure; a ceiling or control given as a row stands in the same column."""
        beside = (At(self.table, one, column) if isinstance(one, Mapping) else one for one in (ceiling, control))
        return Figure(name, self.job, At(self.table, row, column), self.better, self.noise, self.line, floor, *beside)
