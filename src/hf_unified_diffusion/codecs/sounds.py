"""Sounds as they come, from a file, bytes, an array or a tensor, to 24 kHz mono at one level."""

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import soxr
import torch
from jaxtyping import Float
from torch import Tensor

from .loudness import level_db, levelled
from .mel import SAMPLING_RATE_HZ

Sound: TypeAlias = str | Path | bytes | np.ndarray | Tensor

SHORTEST_S, LONGEST_S = 0.1, 60.0
RATES_HZ = (8_000, 192_000)
MAX_CHANNELS = 8
QUIETEST_DB = -60.0  # of what is active: below it is silence, or the noise of a microphone
MAX_CLIPPED = 0.05  # of the samples
RAIL = 0.999  # of the largest value: where clipped samples are
LARGEST = 4.0  # floats that pass full scale by so much are no samples in [-1, 1]


def read_sound(
    name: str, given: Sound, sampling_rate_hz: int | None = None, longest_s: float = LONGEST_S
) -> Float[Tensor, "samples"]:
    """A sound as float32 samples at 24 kHz, mono, speech at -25 dB to full scale.

    Channels are averaged; another rate is resampled (soxr, high quality). What is in it stays: pauses, noise, and
    clipping of less than 5% of the samples.

    Args:
        name: of the argument, for errors.
        given: a path or bytes of WAV, FLAC, OGG, MP3 or whatever libsndfile reads; or samples (samples,) or
            (channels, samples), floats in [-1, 1] or integers over their whole range.
        sampling_rate_hz: of an array or tensor, which needs it; files know theirs.
        longest_s: more is refused before it is read.

    Raises:
        ValueError: for what cannot be read, has no or too many channels, is shorter than 0.1 s or longer than
            `longest_s`, below 8 or above 192 kHz, not finite, silent (under -60 dB), or clipped in 5% of its samples.

    Usage: `waveform = read_sound("reference_audio", "voice.wav")`
    """
    if isinstance(given, str | Path | bytes):
        if sampling_rate_hz is not None:
            raise ValueError(f"files of {name} know their sampling rate, got sampling_rate_hz={sampling_rate_hz}")
        samples, rate = from_file(name, given, longest_s)
    else:
        samples, rate = from_samples(name, given), sampling_rate_hz
        check_rate(name, rate)
        check_length(name, samples.shape[1] / rate, longest_s)
    mono = check_content(name, samples).mean(0)
    if rate != SAMPLING_RATE_HZ:
        mono = soxr.resample(mono, rate, SAMPLING_RATE_HZ)
    waveform = torch.from_numpy(np.ascontiguousarray(mono, np.float32))
    level = level_db(waveform)
    if level < QUIETEST_DB:
        raise ValueError(f"{name} must be louder than {QUIETEST_DB:g} dB to full scale, got {level:.1f} dB: silence")
    return levelled(waveform)


def from_file(
    name: str, given: str | Path | bytes, longest_s: float
) -> tuple[Float[np.ndarray, "channels samples"], int]:
    """Samples and rate of a sound file; of a longer one than allowed, not more than that is read."""
    if isinstance(given, bytes):
        source: Any = io.BytesIO(given)
        label = f"{len(given)} bytes"
    else:
        source, label = Path(given), repr(str(given))
        if not source.is_file():
            raise ValueError(f"{name} must be a sound file, got {label}, which is none")
    try:
        with soundfile.SoundFile(source) as file:
            rate, channels = file.samplerate, file.channels
            check_rate(name, rate)
            check_channels(name, channels)
            limit = int(longest_s * rate)
            # a header may claim any length: only what is there and allowed is asked for
            samples = file.read(limit + 1, dtype="float32", always_2d=True) if file.frames > 0 else np.zeros((0, 1))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} must be a sound that can be read, got {label}: {error}") from error
    check_length(name, len(samples) / rate, longest_s)
    return samples.T, rate


def from_samples(name: str, given: Any) -> Float[np.ndarray, "channels samples"]:
    """Samples of an array or tensor as float32, integers over their range."""
    if isinstance(given, Tensor):
        given = given.detach().cpu().numpy() if given.dtype != torch.bfloat16 else given.detach().cpu().float().numpy()
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
        got = f"dtype {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"{name} must be a path, bytes, or an array or tensor of floats or integers, got {got}")
    if given.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (samples,) or (channels, samples), got {given.shape}")
    samples = given[None] if given.ndim == 1 else given
    check_channels(name, samples.shape[0])
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    limits = np.iinfo(samples.dtype)
    middle = (float(limits.max) + float(limits.min) + 1) / 2
    return ((samples.astype(np.float64) - middle) / (float(limits.max) - middle + 1)).astype(np.float32)


def check_rate(name: str, rate: Any) -> None:
    """Raise ValueError unless a rate is a whole number that speech can have."""
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise ValueError(f"the sampling rate of {name} must be in [{RATES_HZ[0]}, {RATES_HZ[1]}] Hz, got {rate!r}")


def check_channels(name: str, channels: int) -> None:
    """Raise ValueError for no channels, or so many that they are samples."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"{name} must have 1 to {MAX_CHANNELS} channels, as (channels, samples), got {channels}")


def check_length(name: str, seconds: float, longest_s: float) -> None:
    """Raise ValueError for a sound that is too short or too long."""
    if not SHORTEST_S <= seconds <= longest_s:
        raise ValueError(f"{name} must last {SHORTEST_S:g} to {longest_s:g} s, got {seconds:.3g} s")


def check_content(name: str, samples: Float[np.ndarray, "channels samples"]) -> Float[np.ndarray, "channels samples"]:
    """The samples; ValueError for those that are not finite, not in [-1, 1] by far, or clipped."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    largest = float(np.abs(samples).max())
    if largest > LARGEST:
        raise ValueError(f"floats of {name} must be in [-1, 1], got values up to {largest:g}")
    high, low = samples >= RAIL * largest, samples <= -RAIL * largest
    # the top of a wave is one sample, of a clipped one several
    in_a_row = sum(rail[:, 1:] & rail[:, :-1] for rail in (high, low))
    clipped = float(in_a_row.mean()) if largest else 0.0
    if clipped > MAX_CLIPPED:
        raise ValueError(f"{name} must be clipped in at most {MAX_CLIPPED:.0%} of its samples, got {clipped:.0%}")
    return samples
