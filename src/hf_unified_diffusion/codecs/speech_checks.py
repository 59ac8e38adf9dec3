"""What can go wrong in spoken text, measured without a recogniser: pauses, silent words, words of the reference."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .durations import Alignment
from .loudness import FRAME, is_active
from .mel import SAMPLING_RATE_HZ

OVERLAP_TOKENS = 10  # half a second


@dataclass(frozen=True)
class SpeechChecks:
    """Signs of failure in an utterance.

    Attributes:
        longest_pause_s: the longest stretch between two sounds that is 35 dB under the loudest.
        silent_words: words in whose predicted time nothing sounds: skipped, or said at another time.
        reference_overlap: the highest correlation of half a second with any half second of the reference, in [-1, 1];
            near 1 where the reference is said again; None without one.
    """

    longest_pause_s: float
    silent_words: int
    reference_overlap: float | None = None


def check_speech(
    waveform: Float[Tensor, "samples"],
    alignment: Alignment,
    sound: Float[Tensor, "tokens width"] | None = None,
    reference: Float[Tensor, "other_tokens width"] | None = None,
) -> SpeechChecks:
    """Look for the signs in a waveform at 24 kHz, and, with a reference, in its tokens.

    Usage: `check_speech(audio, alignment).silent_words`
    """
    overlap = None if sound is None or reference is None else highest_overlap(sound, reference)
    return SpeechChecks(longest_pause_s(waveform), silent_words(waveform, alignment), overlap)


def longest_pause_s(waveform: Float[Tensor, "samples"]) -> float:
    """Seconds of the longest pause between two sounds; all of it where there is none."""
    places = is_active(waveform).nonzero()[:, 0]
    if len(places) < 2:
        return 0.0 if len(places) else len(waveform) / SAMPLING_RATE_HZ
    return float((places.diff() - 1).max()) * FRAME / SAMPLING_RATE_HZ


def silent_words(waveform: Float[Tensor, "samples"], alignment: Alignment) -> int:
    """How many words have no sound in their time."""
    active, frames_per_s = is_active(waveform), SAMPLING_RATE_HZ / FRAME
    spans = [(int(w.start_s * frames_per_s), int(w.end_s * frames_per_s) + 1) for w in alignment.words]
    return sum(not bool(active[start:end].any()) for start, end in spans)


def highest_overlap(
    sound: Float[Tensor, "tokens width"], reference: Float[Tensor, "other_tokens width"]
) -> float | None:
    """The highest correlation between half seconds of two sounds' tokens; None where one is shorter."""
    if min(len(sound), len(reference)) < OVERLAP_TOKENS:
        return None
    windows = []
    for tokens in (sound, reference):
        found = tokens.float().unfold(0, OVERLAP_TOKENS, 1).flatten(1)
        windows.append(F.normalize(found - found.mean(dim=1, keepdim=True), dim=1))
    return float(torch.matmul(windows[0], windows[1].T).max())
