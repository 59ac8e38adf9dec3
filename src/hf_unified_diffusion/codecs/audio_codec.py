"""Speech and continuous tokens: stacked log-mel frames one way, a vocoder or Griffin-Lim the other."""

from jaxtyping import Float
from torch import Tensor, nn

from .mel import HOP, NUM_BANDS, SAMPLING_RATE_HZ, griffin_lim, log_mel, padded_to, stacked, unstacked

FRAMES_PER_TOKEN = 4
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * HOP


class AudioCodec:
    """24 kHz sound to 20 tokens a second and back.

    A token is four frames of 100 normalized log-mels (`codecs.mel.log_mel`), the oldest first.

    Attributes:
        vocoder: gives sounds (batch, 300 * frames) for normalized log-mels (batch, 100, frames); None: Griffin-Lim.
        sampling_rate_hz: 24,000.
        tokens_per_second: 20, each 1,200 samples.
        width: numbers in a token, 400.

    Usage:
        codec = AudioCodec(UnifiedVocoderModel.from_pretrained(folder))
        waveform = codec.decode(codec.encode(waveform))
    """

    sampling_rate_hz = SAMPLING_RATE_HZ
    tokens_per_second = SAMPLING_RATE_HZ // SAMPLES_PER_TOKEN
    width = FRAMES_PER_TOKEN * NUM_BANDS

    def __init__(self, vocoder: nn.Module | None = None):
        self.vocoder = vocoder

    def encode(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch tokens width"]:
        """Tokens of sounds in [-1, 1], float32; silence fills the last token.

        Raises:
            ValueError: for another shape or dtype, or no samples.

        Usage: `tokens = codec.encode(read_sound("hello.wav")[None])`
        """
        if waveform.ndim != 2 or not waveform.numel() or not waveform.is_floating_point():
            raise ValueError(
                f"waveform must be float (batch, samples) with at least one sample, "
                f"got {waveform.dtype} {tuple(waveform.shape)}"
            )
        return stacked(log_mel(padded_to(waveform.float(), SAMPLES_PER_TOKEN)), FRAMES_PER_TOKEN)

    def decode(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch samples"]:
        """Sounds in [-1, 1] from their tokens, float32, 1,200 samples each.

        Raises:
            ValueError: for another shape or dtype, or no tokens.

        Usage: `waveform = codec.decode(tokens)`
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.width or not tokens.numel() or not tokens.is_floating_point():
            raise ValueError(
                f"tokens must be float (batch, tokens, {self.width}) with at least one token, "
                f"got {tokens.dtype} {tuple(tokens.shape)}"
            )
        mels = unstacked(tokens.float())
        waveform = griffin_lim(mels) if self.vocoder is None else self.vocoder(mels)
        return waveform.float().clamp(-1, 1)
