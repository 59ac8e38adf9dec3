"""Sounds as they are given, a file or samples of any rate and number of channels, as 24 kHz mono at one level."""

import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .loudness import levelled, spoken_span
from .mel import SAMPLING_RATE_HZ

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8_000, 192_000
LONGEST_S = 30.0
MOST_CHANNELS = 8
SILENCE = 1e-4  # peaks below are silence: -80 dB
CLIPPED_SHARE = 0.005  # of the samples at full scale, from which on a sound counts as clipped

Sound: TypeAlias = str | Path | np.ndarray | Tensor


def read_sound(name: str, sound: Sound, sampling_rate_hz: int | None = None) -> Float[Tensor, "samples"]:
    """A sound as the corpus has its clips: 24 kHz, mono, silence around it cut to 50 ms, speech at -25 dB.

    Channels are averaged. A sound of under 24 kHz stays as dull as it is. A clipped one is taken, with a warning.

    Args:
        name: of the argument, for messages.
        sound: a file that libsndfile reads (WAV, FLAC, Ogg, MP3), or samples, (n,) or with channels (c, n) or (n, c):
            floating point in [-1, 1], or int16 or int32.
        sampling_rate_hz: of samples, 8,000 to 192,000; None: 24,000. A file knows its own.

    Raises:
        ValueError: for no sound, one that is empty, silent, over 30 s long, not finite or beyond full scale, a rate out
            of range or beside a file, or a file that cannot be read.

    Usage: `read_sound("reference_audio", "voice.wav")`
    """
    if isinstance(sound, str | Path):
        if sampling_rate_hz is not None:
            raise ValueError(f"the sampling rate must be left out with {name} in a file, got {sampling_rate_hz}")
        samples, rate = read_file(name, sound)
    else:
        rate = SAMPLING_RATE_HZ if sampling_rate_hz is None else sampling_rate_hz
        samples = as_samples(name, sound, rate)
    check_samples(name, samples)
    mono = samples.mean(axis=1)
    if rate != SAMPLING_RATE_HZ:
        import soxr  # as soundfile below: only who gives sounds needs it

        mono = soxr.resample(mono, rate, SAMPLING_RATE_HZ)
    waveform = torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))
    start, end = spoken_span(waveform)
    return levelled(waveform[start:end])


def read_file(name: str, path: str | Path) -> tuple[np.ndarray, int]:
    """Samples (n, channels), float32, and their rate; nothing is decoded of a file that is too long."""
    import soundfile

    if not Path(path).is_file():
        raise ValueError(f"{name} must be a file or samples, got no file {str(path)!r}")
    try:
        with soundfile.SoundFile(str(path)) as file:
            check_length(name, file.samplerate, file.frames)
            if file.channels > MOST_CHANNELS:
                raise ValueError(f"{name} must have at most {MOST_CHANNELS} channels, got {file.channels}")
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} must be a sound that libsndfile reads, got {str(path)!r}: {error}") from error


def as_samples(name: str, sound: np.ndarray | Tensor, rate: int) -> np.ndarray:
    """Samples (n, channels), float32; ValueError for another shape or kind of number, or too many."""
    values = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else sound
    if not isinstance(values, np.ndarray) or values.ndim not in (1, 2):
        shape = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(sound).__name__
        raise ValueError(f"{name} must be a file or samples (n,), (c, n) or (n, c), got {shape}")
    values = values[:, None] if values.ndim == 1 else values
    values = values.T if values.shape[0] <= MOST_CHANNELS < values.shape[1] else values
    if values.shape[1] > MOST_CHANNELS or values.dtype not in (np.float16, np.float32, np.float64, np.int16, np.int32):
        raise ValueError(
            f"{name} must be float, int16 or int32 of at most {MOST_CHANNELS} channels, "
            f"got {values.dtype} {values.shape}"
        )
    check_length(name, rate, len(values))
    scale = np.iinfo(values.dtype).max + 1 if values.dtype.kind == "i" else 1
    return (values / scale).astype(np.float32)


def check_length(name: str, rate: int, count: int) -> None:
    """Raise ValueError unless a rate is in its range and so many samples are no more than 30 s."""
    whole = isinstance(rate, int) and not isinstance(rate, bool)
    if not whole or not LOWEST_RATE_HZ <= rate <= HIGHEST_RATE_HZ:
        raise ValueError(f"the sampling rate of {name} must be in {LOWEST_RATE_HZ}..{HIGHEST_RATE_HZ} Hz, got {rate!r}")
    if count > LONGEST_S * rate:
        raise ValueError(f"{name} must be at most {LONGEST_S:g} s long, got {count / rate:.1f} s")


def check_samples(name: str, samples: np.ndarray) -> None:
    """Raise ValueError for samples that are none, not finite, silent, or beyond full scale; warn of clipped ones."""
    if not samples.size:
        raise ValueError(f"{name} must have at least one sample, got none")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    peak = float(np.abs(samples).max())
    if peak > 1:
        raise ValueError(f"{name} must be in [-1, 1], got a peak of {peak:.3g}")
    if peak < SILENCE:
        raise ValueError(f"{name} must not be silent, got a peak of {peak:.1e}")
    share = float((np.abs(samples) >= 0.999 * peak).mean()) if peak > 0.98 else 0.0
    if share > CLIPPED_SHARE:
        warnings.warn(f"{name} is clipped: {100 * share:.1f}% of its samples are at full scale", stacklevel=3)
