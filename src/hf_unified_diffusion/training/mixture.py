"""Which modality a micro-batch is of, and where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .latent_data import LatentBatch
from .layouts import TokenBatch
from .speech_data import SpeechBatch, SpokenRows
from .token_data import PackedTokens, starts_for


class MicroBatches(Protocol):
    """The micro-batches of one modality, each a function of its number: what `TrainingRun` reads."""

    @property
    def modality(self) -> str:
        """A modality the network has a head for."""
        ...

    def batch(
        self, turn: int, seed: int, process: int = 0, num_processes: int = 1
    ) -> TokenBatch | LatentBatch | SpeechBatch:
        """The micro-batch that a process takes when the modality has its `turn`, from 0."""
        ...


@dataclass(frozen=True)
class TokenRows:
    """Micro-batches of packed tokens: `rows` sequences of `length` tokens.

    Raises:
        ValueError: a number is out of its range.

    Usage: `TokenRows(pack_shards(files, tokenizer, "text", cache), rows=4, length=256).batch(turn=0, seed=0)`
    """

    packed: PackedTokens
    rows: int = 4
    length: int = 256

    def __post_init__(self):
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}")

    @property
    def modality(self) -> str:
        """That of the tokens."""
        return self.packed.modality

    def batch(self, turn: int, seed: int, process: int = 0, num_processes: int = 1) -> TokenBatch:
        """The rows of a turn (see `starts_for`)."""
        starts = starts_for(self.packed, self.length, self.rows, turn, seed, process, num_processes)
        return self.packed.rows(starts, self.length)


def reached_modalities(data: Sequence[MicroBatches]) -> list[str]:
    """The modalities whose heads the micro-batches of some sources reach."""
    with_faces = any(isinstance(source, SpokenRows) and source.faces for source in data)
    return [source.modality for source in data] + ["avatar"] * with_faces


def check_shares(shares: Mapping[str, int], modalities: list[str]) -> None:
    """Raise ValueError unless every modality of the data has a share, an integer of at least 1, and no other has."""
    if sorted(shares) != sorted(modalities):
        raise ValueError(f"shares must be of the modalities {sorted(modalities)}, got {sorted(shares)}")
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int) or share < 1:
            raise ValueError(f"the share of {name!r} must be an integer of at least 1, got {share!r}")


def turn_of(index: int, shares: Mapping[str, int]) -> tuple[str, int]:
    """Which modality micro-batch `index` is of, and how many of that modality came before it.

    Of every sum(shares) micro-batches each modality has its share, evenly spread; with equal shares they take turns.

    Usage: `turn_of(0, {"text": 2, "image": 1})  # ("text", 0)`
    """
    order = [name for _, name in sorted(spread(shares), key=lambda pair: pair[0])]
    rounds, place = divmod(index, len(order))
    name = order[place]
    return name, rounds * shares[name] + order[:place].count(name)


def spread(shares: Mapping[str, int]) -> list[tuple[float, str]]:
    """For each micro-batch of a round, its place in [0, 1): those of a modality at equal distances."""
    return [((k + 0.5) / share, name) for name, share in shares.items() for k in range(share)]
