"""Random numbers as an argument: one generator for a batch, or one per row."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor

# One generator for the whole batch, or one per row: only the latter makes a row independent of its batch.
Generators: TypeAlias = Generator | Sequence[Generator]

_WORD = 2**64 - 1


def spawn_generators(seed: int, count: int, device: str | torch.device = "cpu", first: int = 0) -> list[Generator]:
    """One generator per row from one seed; row i draws the same numbers whatever the batch size.

    Args:
        seed: any non-negative integer.
        count: number of rows, at least 1.
        device: where the generators live.
        first: index of the first row, so that a data set can be generated in batches of any size.

    Raises:
        ValueError: for a negative seed or first row, or a count below 1.

    Usage: `scheduler.step(logits, t, sample, generator=spawn_generators(0, len(sample)))`
    """
    for name, value, least in (("seed", seed, 0), ("count", count, 1), ("first", first, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    return [Generator(device).manual_seed(_mix(seed, row)) for row in range(first, first + count)]


def _mix(seed: int, row: int) -> int:
    """A 32-bit word from (seed, row) by SplitMix64 (doi:10.1145/2660193.2660195): neighbours share no stream."""
    word = (seed + (row + 1) * 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return (word ^ (word >> 31)) & 0xFFFFFFFF  # torch's CPU generator reads the low 32 bits only


def check_rows(generator: Generators | None, batch: int) -> None:
    """Raise ValueError unless a list of generators has one per row."""
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise ValueError(f"a list of generators must have one per row ({batch}), got {len(generator)}")


def first_of(generator: Generators) -> Generator:
    """The generator itself, or the first of the rows."""
    return generator[0] if isinstance(generator, Sequence) else generator


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
    """Numbers in [0, 1), float32, drawn on the generator's device and moved to `device`."""
    return _draw(torch.rand, shape, generator, device)


def normal(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Float[Tensor, "..."]:
    """Standard normal numbers, float32, drawn on the generator's device and moved to `device`."""
    return _draw(torch.randn, shape, generator, device)


def ragged_uniform(counts: Sequence[int], generator: Generators | None, device: torch.device) -> Float[Tensor, "total"]:
    """counts[i] numbers in [0, 1) for row i, one row after the other, float64.

    Rows of a list of generators draw nothing for each other, and nothing for positions they do not count: padding
    a row leaves its numbers as they were.
    """
    if not isinstance(generator, Sequence):
        source = device if generator is None else generator.device
        return torch.rand(sum(counts), generator=generator, device=source, dtype=torch.float64).to(device)
    rows = [
        torch.rand(count, generator=row, device=row.device, dtype=torch.float64)
        for count, row in zip(counts, generator, strict=True)
    ]
    return torch.cat(rows).to(device)


def _draw(function, shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    check_rows(generator, shape[0])
    if isinstance(generator, Sequence):
        rows = [function(shape[1:], generator=row, device=row.device) for row in generator]
        return torch.stack(rows).to(device)
    return function(shape, generator=generator, device=generator.device).to(device)
