"""What is said when in a clip: words, phonemes and visemes with their times."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from ..codecs.avatar_codec import TOKENS_PER_SECOND
from ..codecs.durations import Durations, aligned
from ..codecs.phonemes import Pronunciation, pronounce
from ..codecs.viseme_alignment import ALIGNED_HZ, seen_ends
from ..codecs.visemes import timed_visemes
from ..contracts import TimedLabel


@dataclass(frozen=True)
class Timing:
    """Words, phonemes and visemes of a row; all empty where nothing that can be spoken is said."""

    words: tuple[TimedLabel, ...] = ()
    phonemes: tuple[TimedLabel, ...] = ()
    visemes: tuple[TimedLabel, ...] = ()


def spoken_or_none(text: str) -> Pronunciation | None:
    """How a generated text is said; None where it cannot be spoken, which a network may well write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # who gave no text need not hear what of it is left out
        try:
            return pronounce(text)
        except ValueError:
            return None


def timing(
    spoken: Pronunciation | None, num_tokens: int, face: Float32[np.ndarray, "tokens 52"] | None, durations: Durations
) -> Timing:
    """Times as the sounds' usual lengths spread them over the clip; with a face, as it shows them.

    Args:
        num_tokens: of the clip, each 1/20 s.
        face: coefficients of the clip, generated or given.

    Usage: `timing(pronounce("Hello"), num_tokens=20, face=None, durations=Durations()).words`
    """
    if spoken is None or not spoken.symbols:
        return Timing()
    duration, symbols = num_tokens / TOKENS_PER_SECOND, spoken.symbols
    ends = durations.ends(symbols, duration)
    if face is not None and duration * ALIGNED_HZ >= len(timed_visemes(symbols, ends)):
        ends = seen_ends(face, TOKENS_PER_SECOND, symbols, ends)
    found = aligned(spoken, ends)
    return Timing(found.words, found.phonemes, tuple(timed_visemes(symbols, ends)))


def timings(
    spoken: Sequence[Pronunciation | None],
    num_tokens: int | None,
    faces: Float32[np.ndarray, "rows tokens 52"] | None,
    durations: Durations,
) -> list[Timing] | None:
    """`timing` of every row; None without a clip."""
    if num_tokens is None:
        return None
    shown = [None] * len(spoken) if faces is None else list(faces)
    return [timing(how, num_tokens, face, durations) for how, face in zip(spoken, shown, strict=True)]
