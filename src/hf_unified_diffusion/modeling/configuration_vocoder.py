"""Configuration of a vocoder: the log-mels it reads, its networks, and the pitches it knows."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

POSITIVE = (
    "sampling_rate_hz",
    "hop",
    "num_bands",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "kernel_size",
    "pitch_hidden_size",
    "pitch_layers",
)


@strict
class UnifiedVocoderConfig(PreTrainedConfig):
    r"""Shape of a `UnifiedVocoderModel`.

    Args:
        sampling_rate_hz, n_fft, hop, num_bands: of the log-mels: Hann windows of `n_fft` samples every `hop`, bands
            from 0 to half the sampling rate on Slaney's scale.
        mel_mean, mel_std: what the log-mels were normalized with, in nats.
        hidden_size, intermediate_size, num_hidden_layers, kernel_size: of the ConvNeXt trunk; the kernel is odd.
        pitch_hidden_size, pitch_layers: of the ConvNeXt that finds the pitch.
        num_pitches, lowest_hz, highest_hz: pitches are told apart on a logarithmic scale.

    Raises ValueError for values out of range.
    Usage: `UnifiedVocoderModel(UnifiedVocoderConfig())`
    """

    model_type = "unified_vocoder"

    sampling_rate_hz: int = 24_000
    n_fft: int = 1_200
    hop: int = 300
    num_bands: int = 100
    mel_mean: float = -7.5
    mel_std: float = 2.4
    hidden_size: int = 320
    intermediate_size: int = 960
    num_hidden_layers: int = 7
    kernel_size: int = 7
    pitch_hidden_size: int = 128
    pitch_layers: int = 3
    num_pitches: int = 128
    lowest_hz: float = 50.0
    highest_hz: float = 550.0

    def validate_architecture(self):
        """Called on construction by `@strict`; raises ValueError."""
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        rules = [
            (
                self.n_fft > self.hop and self.n_fft % 2 == 0 and self.hop % 2 == 0,
                f"n_fft and hop must be even, n_fft the larger, got {self.n_fft} and {self.hop}",
            ),
            (self.kernel_size % 2 == 1, f"kernel_size must be odd, got {self.kernel_size}"),
            (self.mel_std > 0, f"mel_std must be positive, got {self.mel_std}"),
            (self.num_pitches >= 2, f"num_pitches must be at least 2, got {self.num_pitches}"),
            (
                0 < self.lowest_hz < self.highest_hz < self.sampling_rate_hz / 2,
                f"pitches must rise, within half the sampling rate, got {self.lowest_hz} to {self.highest_hz} Hz",
            ),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)
