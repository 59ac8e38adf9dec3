"""What a face does while it says something: coefficients from phoneme times, for training and as a ceiling.

Every viseme pulls the mouth towards its pose; kernels of 80 to 120 ms let neighbours flow into each other, lips faster
than the jaw (coarticulation; after Cohen and Massaro, "Modeling coarticulation in synthetic visual speech", 1993).
Closures of P, B and M are reached all the same. Blinks, brows and eyes move by a seed.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from ..codecs.avatar_codec import COEFFICIENTS, TOKENS_PER_SECOND
from ..codecs.loudness import spoken_span
from ..codecs.mel import SAMPLING_RATE_HZ
from ..codecs.visemes import CLOSED, SILENCE, VISEMES, poses, timed_visemes

FINE_HZ = 400  # kernels are applied on a grid of 2.5 ms
KERNEL_MS = {"jaw": 120.0, "tongue": 100.0, "mouth": 80.0}  # whole width of the raised cosine, by stem of the name
CLOSURE_MS = 25.0  # half of the shortest closure: one token of 50 ms lies within it
RELEASE_MS = 45.0  # how long the lips take to and from a closure
ENVELOPE_MS = 50.0
QUIET_DB = 30.0  # so far below the loud parts the jaw moves least
# seconds by which a source's phoneme times follow its sound: of Kokoro's the vowels fit the loudness best 50 ms earlier
# (48 training rows, steps of 10 ms), and a forced alignment says 60
LATE_S = {"kokoro": 0.05}
JAW_RANGE = (0.55, 1.15)  # factor on the jaw, from quiet to loud

Grid = Float64[np.ndarray, "steps"]


def avatar_targets(
    phonemes: Sequence[str],
    ends_s: Sequence[float],
    num_tokens: int,
    waveform: Float32[np.ndarray, "samples"] | None = None,
    seed: int | None = 0,
) -> Float32[np.ndarray, "tokens 52"]:
    """The face of a clip, one row for each token of 1/20 s, in [0, 1]; the same arguments give the same face.

    Args:
        phonemes, ends_s: symbols of Kokoro and where each ends, in seconds.
        num_tokens: tokens of the clip; after the last phoneme the mouth rests.
        waveform: mono, 24 kHz; where it is loud the jaw opens further, and before and after what is heard the mouth
            rests. None: as if it were evenly loud.
        seed: of blinks, brows and eyes, at least 0; None leaves them still.

    Raises:
        ValueError: unknown phonemes, ends that fall, or fewer than one token.

    Usage: `avatar_targets(["m", "ɑ"], [0.1, 0.4], num_tokens=8)`
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    duration = num_tokens / TOKENS_PER_SECOND
    times = (np.arange(round(duration * FINE_HZ)) + 0.5) / FINE_HZ
    track = spoken(phonemes, ends_s, times, waveform)
    centres = (np.arange(num_tokens) + 0.5) / TOKENS_PER_SECOND
    tokens = np.stack([np.interp(centres, times, column) for column in track.T], axis=1)
    if seed is not None:
        tokens = tokens + idle_motion(num_tokens, seed)
    return tokens.clip(0, 1).astype(np.float32)


def heard_ends(ends_s: Sequence[float], source: str) -> list[float]:
    """Where phonemes of a row of the data are heard to end: the times of its source, corrected by `LATE_S`.

    Usage: `heard_ends(row["phoneme_ends_s"], row["source"])`
    """
    return [max(0.0, end - LATE_S.get(source, 0.0)) for end in ends_s]


def row_face(
    row: Mapping[str, Any], waveform: Float32[np.ndarray, "samples"], num_tokens: int
) -> Float32[np.ndarray, "tokens 52"]:
    """The face of a row of speech shards: `avatar_targets` of its phonemes, moving as its text and voice decide.

    Usage: `row_face(row, waveform, num_tokens=40)`
    """
    seed = zlib.crc32(f"{row['voice']}\0{row['text']}".encode())
    ends = heard_ends(row["phoneme_ends_s"], row["source"])
    return avatar_targets(row["phonemes"], ends, num_tokens, waveform, seed)


def spoken(
    phonemes: Sequence[str],
    ends_s: Sequence[float],
    times: Grid,
    waveform: Float32[np.ndarray, "samples"] | None,
) -> Float64[np.ndarray, "steps 52"]:
    """The speaking part on a fine grid: poses, smoothed, louder where it is loud, with closures reached."""
    table = poses().astype(np.float64)
    visemes = timed_visemes(phonemes, ends_s)
    ends = np.array([viseme.end_s for viseme in visemes])
    silence = VISEMES.index(SILENCE)
    labels = np.array([VISEMES.index(viseme.label) for viseme in visemes] + [silence])
    shown = labels[np.searchsorted(ends, times, side="right")]
    if waveform is not None:  # phonemes at the ends of a clip take its silence too
        start, end = spoken_span(torch.from_numpy(waveform))
        shown[(times < start / SAMPLING_RATE_HZ) | (times >= end / SAMPLING_RATE_HZ)] = silence
    track = table[shown]
    for column, name in enumerate(COEFFICIENTS):
        if table[:, column].any():
            track[:, column] = smoothed(track[:, column], kernel_ms(name))
    if waveform is not None:
        low, high = JAW_RANGE
        loudness = envelope(waveform, times)
        track[:, COEFFICIENTS.index("jawOpen")] *= low + (high - low) * loudness
    closed = table[VISEMES.index(CLOSED)]
    for viseme in visemes:
        if viseme.label == CLOSED:
            pull = closing(times, viseme.start_s, viseme.end_s)[:, None]
            track = track + pull * (closed - track)
    return track


def kernel_ms(name: str) -> float:
    """The width of a coefficient's kernel."""
    return next(width for stem, width in KERNEL_MS.items() if name.startswith(stem))


def smoothed(curve: Grid, width_ms: float) -> Grid:
    """The curve under a raised cosine of that width; before and after it the mouth stays as it is there."""
    half = round(width_ms / 2000 * FINE_HZ)
    kernel = np.hanning(2 * half + 3)[1:-1]
    return np.convolve(np.pad(curve, half, mode="edge"), kernel / kernel.sum(), mode="valid")


def closing(times: Grid, start_s: float, end_s: float) -> Grid:
    """How closed a closure holds the lips: 1 within it, and at least for one token, falling to 0 beside it."""
    middle, half = (start_s + end_s) / 2, max((end_s - start_s) / 2, CLOSURE_MS / 1000)
    outside = (np.abs(times - middle) - half).clip(0, RELEASE_MS / 1000)
    return 0.5 + 0.5 * np.cos(np.pi * outside / (RELEASE_MS / 1000))


def envelope(waveform: Float32[np.ndarray, "samples"], times: Grid) -> Grid:
    """Loudness of 24 kHz from 0, quiet, to 1, as loud as the loud parts (the 95th percentile), linear in dB."""
    window = max(1, round(ENVELOPE_MS / 1000 * SAMPLING_RATE_HZ))
    power = np.concatenate([[0.0], np.cumsum(waveform.astype(np.float64) ** 2)])
    middles = np.round(times * SAMPLING_RATE_HZ).astype(int)
    first, last = (np.clip(middles + side, 0, len(waveform)) for side in (-(window // 2), window - window // 2))
    decibels = 10 * np.log10((power[last] - power[first]) / window + 1e-12)
    return ((decibels - np.percentile(decibels, 95)) / QUIET_DB + 1).clip(0, 1)


def idle_motion(num_tokens: int, seed: int) -> Float64[np.ndarray, "tokens 52"]:
    """Blinks every 2 to 6 s, and brows, eyes and the corners of the mouth that never quite rest."""
    generator = np.random.default_rng(seed)
    track = np.zeros((num_tokens, len(COEFFICIENTS)))

    def add(names: Sequence[str], curve: Grid) -> None:
        for name in names:
            track[:, COEFFICIENTS.index(name)] += curve

    blinks = np.zeros(num_tokens)
    centre = int(generator.uniform(0.3, 3.0) * TOKENS_PER_SECOND)
    while centre < num_tokens:
        for offset, closed in ((-1, 0.45), (0, 1.0), (1, 0.7), (2, 0.2)):  # closes in 75 ms, opens in 125 ms
            if 0 <= centre + offset < num_tokens:
                blinks[centre + offset] = max(blinks[centre + offset], closed)
        centre += int(generator.uniform(2.0, 6.0) * TOKENS_PER_SECOND)
    add(("eyeBlinkLeft", "eyeBlinkRight"), blinks)
    brows = drift(num_tokens, generator)
    add(("browInnerUp", "browOuterUpLeft", "browOuterUpRight"), 0.12 * brows.clip(0))
    add(("browDownLeft", "browDownRight"), 0.08 * (-brows).clip(0))
    sideways, upwards = drift(num_tokens, generator), drift(num_tokens, generator)
    add(("eyeLookInLeft", "eyeLookOutRight"), 0.1 * sideways.clip(0))
    add(("eyeLookOutLeft", "eyeLookInRight"), 0.1 * (-sideways).clip(0))
    add(("eyeLookUpLeft", "eyeLookUpRight"), 0.06 * upwards.clip(0))
    add(("eyeLookDownLeft", "eyeLookDownRight"), 0.06 * (-upwards).clip(0))
    return track


def drift(num_tokens: int, generator: np.random.Generator) -> Grid:
    """Slow noise of about unit variance: white noise under a raised cosine of 1.5 s."""
    kernel = np.hanning(round(1.5 * TOKENS_PER_SECOND) + 2)[1:-1]
    noise = generator.standard_normal(num_tokens + len(kernel) - 1)
    return np.convolve(noise, kernel / np.linalg.norm(kernel), mode="valid")
