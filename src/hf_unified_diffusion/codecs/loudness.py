"""How loud speech is, what of a sound is silence, and speech brought to one level."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .mel import SAMPLING_RATE_HZ

LEVEL_DB = -25.0  # RMS of what is spoken, relative to full scale
HIGHEST_PEAK = 0.95
FRAME = SAMPLING_RATE_HZ // 50  # 20 ms
RANGE_DB = 35.0  # frames this far under the loudest one are not speech
MARGIN_S = 0.05


def is_active(waveform: Float[Tensor, "samples"]) -> Bool[Tensor, "frames"]:
    """Which 20 ms of a sound are within 35 dB of its loudest; the rest of a frame at the end does not count."""
    whole = waveform[: max(FRAME, len(waveform) // FRAME * FRAME)]
    power = torch.nn.functional.pad(whole, (0, -len(whole) % FRAME)).reshape(-1, FRAME).square().mean(1)
    return (power > 0) & (power >= power.max() * 10 ** (-RANGE_DB / 10))


def level_db(waveform: Float[Tensor, "samples"]) -> float:
    """RMS over the active 20 ms of a sound, in dB to full scale; -inf for digital silence.

    Usage: `level_db(torch.sin(torch.arange(24_000) / 10))  # -3.0`
    """
    active = is_active(waveform).repeat_interleave(FRAME)[: len(waveform)]
    spoken = waveform[: len(active)][active]
    return float(10 * spoken.square().mean().log10()) if len(spoken) else -torch.inf


def levelled(waveform: Float[Tensor, "samples"]) -> Float[Tensor, "samples"]:
    """The sound at -25 dB, or as near to it as peaks of 0.95 allow; digital silence stays.

    Usage: `levelled(waveform)`
    """
    level, peak = level_db(waveform), float(waveform.abs().max())
    if peak == 0:
        return waveform
    return waveform * min(10 ** ((LEVEL_DB - level) / 20), HIGHEST_PEAK / peak)


def spoken_span(waveform: Float[Tensor, "samples"]) -> tuple[int, int]:
    """First and last sample (exclusive) of what is spoken, with 50 ms of what is around it.

    Usage: `start, end = spoken_span(waveform)`
    """
    found = is_active(waveform).nonzero()
    if not len(found):
        return 0, len(waveform)
    margin = round(MARGIN_S * SAMPLING_RATE_HZ)
    first, last = int(found[0]) * FRAME, (int(found[-1]) + 1) * FRAME
    return max(0, first - margin), min(len(waveform), last + margin)
