"""What a vocoder is trained for: the spectrum at several resolutions, with phases, and the pitch."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..codecs.mel import log_mel
from ..modeling.configuration_vocoder import UnifiedVocoderConfig
from ..modeling.vocoder import UnifiedVocoderModel
from ..stft import stft
from .pitch_tracking import aligned_excitation, track_pitch

RESOLUTIONS = ((240, 60), (600, 150), (1200, 300), (2400, 600))  # window and hop, in samples
QUIETEST = 1e-5  # magnitudes below are all the same
COMPRESSION = 0.3  # loudness, about


@dataclass(frozen=True)
class VocoderLossConfig:
    """Weights of the losses.

    Attributes:
        mel_weight: of the mean absolute error of normalized log-mels.
        log_weight: of the mean absolute error of log magnitudes, in nats.
        magnitude_weight: of the mean absolute error of magnitudes^0.3.
        phase_weight: of the mean distance of the complex spectra of such magnitudes.
        pitch_weight: of the nats of the pitch and of whether there is voice.
    """

    mel_weight: float = 2.0
    log_weight: float = 0.3
    magnitude_weight: float = 10.0
    phase_weight: float = 3.0
    pitch_weight: float = 0.2

    def __post_init__(self):
        for name, weight in vars(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} must be finite and 0 or more, got {weight}")


def spectral_losses(
    made: Float[Tensor, "batch samples"], wanted: Float[Tensor, "batch samples"], n_fft: int, hop: int
) -> tuple[Tensor, Tensor, Tensor]:
    """How far spectra are apart at one resolution: log magnitudes, magnitudes, complex values."""
    x, y = stft(made, n_fft, hop), stft(wanted, n_fft, hop)
    # the root of a square that is never 0, whose gradient is finite
    a, b = ((z.real.square() + z.imag.square() + QUIETEST**2).sqrt() for z in (x, y))
    log = (a.log() - b.log()).abs().mean()
    loud, wanted_loud = a**COMPRESSION, b**COMPRESSION
    apart = loud / a * x - wanted_loud / b * y
    distance = (apart.real.square() + apart.imag.square() + QUIETEST**2).sqrt().mean()
    return log, (loud - wanted_loud).abs().mean(), distance


def pitch_loss(
    logits: Float[Tensor, "batch frames pitches"],
    voice: Float[Tensor, "batch frames"],
    pitch_hz: Float[Tensor, "batch frames"],
    voiced: Bool[Tensor, "batch frames"],
    config: UnifiedVocoderConfig,
) -> Tensor:
    """Nats of the pitch, shared by the two nearest places of the scale, and of whether there is voice."""
    place = (pitch_hz / config.lowest_hz).log() / math.log(config.highest_hz / config.lowest_hz)
    place = (place * (config.num_pitches - 1)).clamp(0, config.num_pitches - 1)
    below = place.floor().long().clamp(max=config.num_pitches - 2)
    log_p = logits.log_softmax(-1)
    share = place - below
    left, right = log_p.gather(-1, below[..., None])[..., 0], log_p.gather(-1, below[..., None] + 1)[..., 0]
    nats = -((1 - share) * left + share * right)
    of_pitch = (nats * voiced).sum() / voiced.sum().clamp(min=1)
    return of_pitch + F.binary_cross_entropy_with_logits(voice, voiced.float())


class VocoderObjective(nn.Module):
    """A vocoder and its loss on sounds.

    The source is made of the sound's own pitch and phases, so that spectra can be compared with their phases; the
    pitch network learns to find that pitch in the log-mels.

    Usage: `losses = VocoderObjective(vocoder, VocoderLossConfig())(waveform)`; `losses["loss"].backward()`.
    """

    def __init__(self, vocoder: UnifiedVocoderModel, losses: VocoderLossConfig):
        super().__init__()
        self.vocoder, self.losses = vocoder, losses

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> dict[str, Tensor]:
        """The losses by name; "loss" is what is minimized."""
        config, weights = self.vocoder.config, self.losses
        mels = log_mel(waveform)
        grid = config.n_fft, config.hop, config.sampling_rate_hz
        pitch_hz, voiced = track_pitch(waveform, *grid, config.lowest_hz, config.highest_hz)
        made = self.vocoder(mels, aligned_excitation(waveform, pitch_hz, voiced, *grid))
        of_resolutions = [spectral_losses(made, waveform, *resolution) for resolution in RESOLUTIONS]
        log, magnitude, phase = (torch.stack(found).mean() for found in zip(*of_resolutions, strict=True))
        found = {
            "mel": (log_mel(made) - mels).abs().mean(),
            "log": log,
            "magnitude": magnitude,
            "phase": phase,
            "pitch": pitch_loss(*self.vocoder.pitch_logits(mels), pitch_hz, voiced, config),
        }
        loss = sum(getattr(weights, f"{name}_weight") * value for name, value in found.items())
        return {"loss": loss, **found}
