"""Samples that are checked: what fails is drawn again with stronger energies, a bounded number of times."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .energy import check_scale

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Attempt:
    """One drawn sample and what its energies say.

    Attributes:
        scale: of the energies when it was drawn.
        energies: by name.
        accepted: by name, whether the sample is as wished.
        num_passes: forward passes it took.
    """

    scale: float
    energies: Mapping[str, float]
    accepted: Mapping[str, bool]
    num_passes: int = 0

    @property
    def is_accepted(self) -> bool:
        """Whether all energies accept the sample."""
        return all(self.accepted.values())


def accepted_sample(
    draw: Callable[[float], tuple[Sample, Attempt]], scale: float, max_retries: int, growth: float
) -> tuple[Sample, tuple[Attempt, ...]]:
    """The first sample that is accepted, and the history; after the last retry the sample that breaks fewest wishes.

    Args:
        draw: scale -> a fresh sample and its attempt.
        scale: of the first attempt; each retry multiplies it by `growth`.
        max_retries: at least 0.
        growth: at least 1.

    Raises:
        ValueError: for settings out of range.

    Usage: `sample, history = accepted_sample(draw, scale=1.0, max_retries=3, growth=2.0)`
    """
    check_scale("scale", scale)
    check_retries(max_retries, growth)
    found: list[tuple[Sample, Attempt]] = []
    for retry in range(max_retries + 1):
        found.append(draw(scale * growth**retry))
        if found[-1][1].is_accepted:
            break
    history = tuple(attempt for _, attempt in found)
    return found[kept(history)][0], history


def kept(history: Sequence[Attempt]) -> int:
    """The place of the attempt whose sample is returned: it breaks fewest wishes, the last of several that do."""
    return min(reversed(range(len(history))), key=lambda place: list(history[place].accepted.values()).count(False))


def check_retries(max_retries: object, growth: object) -> None:
    """Raise ValueError unless the bound on retries and the factor between them are in range."""
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or not 0 <= max_retries <= 100:
        raise ValueError(f"energy_retries must be an integer in [0, 100], got {max_retries!r}")
    check_scale("energy_growth", growth)
    if not isinstance(growth, int | float) or growth < 1:
        raise ValueError(f"energy_growth must be at least 1, got {growth!r}")
