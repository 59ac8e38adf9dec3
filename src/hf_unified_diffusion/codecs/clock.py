"""One clock for text, sound and face: a position is 1/20 s, the time of a token of sound, on all three axes."""

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


def phoneme_positions(phonemes: int, tokens: int, start: float) -> Float[Tensor, "phonemes 3"]:
    """Where phonemes are on the axes: spread evenly over the clip that speaks them, each in the middle of its share.

    Args:
        phonemes: how many.
        tokens: of sound in the clip.
        start: position at which the clip begins.

    Usage: `phoneme_positions(12, tokens=40, start=3.0)  # from 4.67 to 41.33`
    """
    middles = (torch.arange(phonemes, dtype=torch.float32) + 0.5) * tokens / phonemes
    return (middles + start)[:, None].repeat(1, 3)
