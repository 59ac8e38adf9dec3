"""How long a text takes to say: seconds by class of phoneme, fitted by least squares, and the times that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..contracts import TimedLabel
from .phonemes import Pronunciation
from .spoken_text import PAUSES
from .symbol_times import symbol_seconds

# class -> symbols; symbols of no class take no time of their own
CLASSES = {
    "vowel": "aiuæɑɒɔəɛɜɪʊʌᵻoeɐɚᵊ",
    "diphthong": "AIOQWY",
    "stop": "pbtdkɡɾʔ",
    "affricate": "ʧʤ",
    "fricative": "fvszʃʒθðhx",
    "sonorant": "mnŋlɹwj",
    "stress": "ˈ",
    "lengthening": "ˌː",
    "space": " ",
    "short pause": ',—()“”"',
    "long pause": ".!?;:…",
}
NAMES = (*CLASSES, "beginning")  # what a clip takes however little is said: silence at its ends
CLASS_OF = {symbol: NAMES.index(name) for name, symbols in CLASSES.items() for symbol in symbols}
# Means of the teacher's phoneme times over 96 training rows, spoken at 0.85 to 1.2 times its own rate. Lengths of 48
# held-out rows are off by 13% in the median; part of that is the spread of the rates.
SECONDS = {
    "vowel": 0.054,
    "diphthong": 0.073,
    "stop": 0.053,
    "affricate": 0.067,
    "fricative": 0.056,
    "sonorant": 0.053,
    "stress": 0.069,
    "lengthening": 0.053,
    "space": 0.054,
    "short pause": 0.07,
    "long pause": 0.089,
    "beginning": 0.142,
}
SHORTEST_S = 0.001  # of a symbol, so that times rise
TOKENS_PER_SECOND = 20  # of the clock


@dataclass(frozen=True)
class Durations:
    """A linear predictor of the length of an utterance: 12 numbers.

    Attributes:
        seconds: by the names of `NAMES`, each at least 0.

    Raises:
        ValueError: a name is missing or unknown, or a number negative or not finite.

    Usage: `Durations().of(pronounce("Hello, world!").symbols)  # about 1 s`
    """

    seconds: Mapping[str, float] = field(default_factory=lambda: dict(SECONDS))

    def __post_init__(self) -> None:
        if set(self.seconds) != set(NAMES):
            raise ValueError(f"seconds must be given for {list(NAMES)}, got {sorted(self.seconds)}")
        wrong = {name: value for name, value in self.seconds.items() if not 0 <= value < float("inf")}
        if wrong:
            raise ValueError(f"seconds must be finite and at least 0, got {wrong}")

    @classmethod
    def fit(cls, utterances: Sequence[Sequence[str]], lengths_s: Sequence[float]) -> "Durations":
        """The least squares fit to utterances of known length, no class below 0 (active set by repeated solving).

        Raises:
            ValueError: fewer utterances than numbers to fit.

        Usage: `Durations.fit([row["phonemes"] for row in rows], [row_seconds(row) for row in rows])`
        """
        if len(utterances) < len(NAMES) or len(utterances) != len(lengths_s):
            raise ValueError(
                f"a fit needs {len(NAMES)} utterances or more with a length each, "
                f"got {len(utterances)} and {len(lengths_s)}"
            )
        counts, wanted = np.stack([count(symbols) for symbols in utterances]), np.asarray(lengths_s, float)
        kept = np.flatnonzero(counts.any(axis=0))
        while True:
            found, *_ = np.linalg.lstsq(counts[:, kept], wanted, rcond=None)
            if (found >= 0).all():
                break
            kept = kept[found >= 0]
        values = dict.fromkeys(NAMES, 0.0) | {NAMES[k]: float(value) for k, value in zip(kept, found, strict=True)}
        return cls(values)

    def of(self, symbols: Sequence[str], rate: float = 1.0) -> float:
        """Seconds that an utterance takes at a rate, 1 being that of the corpus."""
        return float(count(symbols) @ self._values()) / rate

    def rate(self, symbols: Sequence[str], length_s: float) -> float:
        """How fast somebody speaks who took `length_s` for an utterance: 2 is twice as fast as predicted."""
        return self.of(symbols) / length_s

    def ends(self, symbols: Sequence[str], length_s: float) -> list[float]:
        """Where each symbol ends in a clip of `length_s` seconds, if all its sounds are stretched alike."""
        spoken = symbols[: len(symbols) - num_trailing(symbols)]
        shares = np.array([*symbol_seconds(spoken), *[SHORTEST_S] * (len(symbols) - len(spoken))])
        return (np.cumsum(shares) / shares.sum() * length_s).clip(max=length_s).tolist()

    def _values(self) -> np.ndarray:
        return np.array([self.seconds[name] for name in NAMES])


def phoneme_places(symbols: Sequence[str], tokens: int) -> tuple[float, ...]:
    """Where the symbols of a clip of so many tokens of sound are likely to be on its clock.

    Usage: `phoneme_places(pronounce("Hello").symbols, tokens=10)`
    """
    return middles(Durations().ends(symbols, tokens / TOKENS_PER_SECOND)) if symbols else ()


def middles(ends_s: Sequence[float]) -> tuple[float, ...]:
    """Where symbols are on the clock of their clip, given where each ends: each in the middle of its time, in tokens.

    Usage: `middles([0.1, 0.2])  # (1.0, 3.0)`
    """
    begins = [0.0, *ends_s[:-1]]
    return tuple((begin + end) / 2 * TOKENS_PER_SECOND for begin, end in zip(begins, ends_s, strict=True))


def num_trailing(symbols: Sequence[str]) -> int:
    """How many symbols at the end are punctuation or spaces."""
    return next((k for k, symbol in enumerate(reversed(symbols)) if symbol not in PAUSES + " "), len(symbols))


def count(symbols: Sequence[str]) -> np.ndarray:
    """How often each class of `NAMES` is in an utterance, its beginning once; a pause at the end is not in the clip."""
    spoken = symbols[: len(symbols) - num_trailing(symbols)]
    places = [CLASS_OF[symbol] for symbol in spoken if symbol in CLASS_OF]
    return np.bincount([*places, len(NAMES) - 1], minlength=len(NAMES)).astype(float)


@dataclass(frozen=True)
class Alignment:
    """What is said when in a clip.

    Attributes:
        words, phonemes: in order; stresses, spaces and punctuation are no phonemes.
    """

    words: tuple[TimedLabel, ...] = ()
    phonemes: tuple[TimedLabel, ...] = ()

    def moved(self, seconds: float) -> "Alignment":
        """The same, later."""
        words, phonemes = (
            tuple(TimedLabel(label.label, label.start_s + seconds, label.end_s + seconds) for label in labels)
            for labels in (self.words, self.phonemes)
        )
        return Alignment(words, phonemes)

    def joined(self, other: "Alignment") -> "Alignment":
        """This, then the other."""
        return Alignment(self.words + other.words, self.phonemes + other.phonemes)


def aligned(spoken: Pronunciation, ends_s: Sequence[float], start_s: float = 0.0) -> Alignment:
    """Words and phonemes of an utterance from the ends of its symbols.

    Usage: `aligned(spoken, durations.ends(spoken.symbols, 2.0)).words[0]`
    """
    starts = [start_s, *ends_s[:-1]]
    silent = set(CLASSES["stress"] + CLASSES["lengthening"] + CLASSES["space"])
    silent |= set(CLASSES["short pause"] + CLASSES["long pause"])
    phonemes = tuple(
        TimedLabel(symbol, start, end)
        for symbol, start, end in zip(spoken.symbols, starts, ends_s, strict=True)
        if symbol not in silent
    )
    words = tuple(TimedLabel(word.text, starts[word.start], ends_s[word.end - 1]) for word in spoken.words)
    return Alignment(words, phonemes)
