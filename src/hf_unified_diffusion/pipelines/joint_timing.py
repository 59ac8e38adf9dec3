"""What is said when in a clip: words, phonemes and visemes with their times."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from ..codecs.avatar_codec import TOKENS_PER_SECOND
from ..codecs.phonemes import Pronunciation, pronounce
from ..codecs.viseme_alignment import ALIGNED_HZ, seen_ends
from ..codecs.visemes import timed_phonemes, timed_visemes
from ..contracts import TimedLabel


@dataclass(frozen=True)
class Timing:
    """Words, phonemes and visemes of a row; all empty where nothing that can be spoken is said."""

    words: tuple[TimedLabel, ...] = ()
    phonemes: tuple[TimedLabel, ...] = ()
    visemes: tuple[TimedLabel, ...] = ()


def spoken_or_none(text: str) -> Pronunciation | None:
    """How a generated text is said; None where it cannot be spoken, which a network may well write."""
    try:
        return pronounce(text)
    except ValueError:
        return None


def timing(spoken: Pronunciation | None, num_tokens: int, face: Float32[np.ndarray, "tokens 52"] | None) -> Timing:
    """Times by the clock that text and sound share, phonemes evenly over the clip; with a face, as it shows them.

    Args:
        num_tokens: of the clip, each 1/20 s.
        face: coefficients of the clip, generated or given.

    Usage: `timing(pronounce("Hello"), num_tokens=20, face=None).words`
    """
    if spoken is None or not spoken.symbols:
        return Timing()
    duration, symbols = num_tokens / TOKENS_PER_SECOND, spoken.symbols
    ends = (np.arange(1, len(symbols) + 1) * duration / len(symbols)).tolist()
    if face is not None and duration * ALIGNED_HZ >= len(timed_visemes(symbols, ends)):
        ends = seen_ends(face, TOKENS_PER_SECOND, symbols, ends)
    phonemes = timed_phonemes(symbols, ends)
    words = tuple(
        TimedLabel(word.text, phonemes[word.start].start_s, phonemes[word.end - 1].end_s) for word in spoken.words
    )
    return Timing(words, tuple(phonemes), tuple(timed_visemes(symbols, ends)))
