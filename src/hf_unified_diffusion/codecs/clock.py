"""One clock for text, sound and face: a position is 1/20 s, the time of a token of sound, on all three axes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def audio_positions(tokens: int, start: float) -> Float[Tensor, "tokens 3"]:
    """Where the tokens of a clip of sound, or of the face that goes with it, are on the axes.

    Args:
        tokens: how many, 20 a second.
        start: position at which the clip begins.

    Usage: `Segment("audio", x_t, time=t, positions=audio_positions(n, start).expand(batch, -1, -1))`
    """
    return (torch.arange(tokens, dtype=torch.float32) + start)[:, None].repeat(1, 3)


def spread_evenly(count: int, tokens: int) -> list[float]:
    """Places of tokens of which nothing is known: the middles of equal shares of a clip of so many tokens of sound."""
    return [(number + 0.5) * tokens / count for number in range(count)]


def phoneme_positions(places: Sequence[float], start: float) -> Float[Tensor, "phonemes 3"]:
    """Where phonemes are on the axes.

    Args:
        places: of each within its clip, in tokens of sound (`durations.phoneme_places`).
        start: position at which the clip begins.

    Usage: `phoneme_positions(phoneme_places(symbols, tokens=40), start=3.0)`
    """
    return (torch.tensor(places, dtype=torch.float32) + start)[:, None].repeat(1, 3)
