"""Sounds for tests."""

import math

import torch


def vowel(seconds: float, pitch_hz: float = 120.0) -> torch.Tensor:
    """A voiced sound (1, samples): harmonics of a rising pitch through two formants, swelling at 4 Hz."""
    t = torch.arange(round(seconds * 24_000)) / 24_000
    phase = 2 * math.pi * (pitch_hz * t + 20 * t.square())
    sound = torch.zeros_like(t)
    for harmonic in range(1, 40):
        hz = harmonic * pitch_hz
        gain = sum(math.exp(-(((hz - formant) / 200) ** 2)) for formant in (700, 1200)) + 0.01
        sound += gain * torch.sin(harmonic * phase)
    return (sound * (0.6 - 0.4 * torch.cos(2 * math.pi * 4 * t)) / 20)[None]
