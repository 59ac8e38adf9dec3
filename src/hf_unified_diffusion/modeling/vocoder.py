"""A vocoder: ConvNeXt blocks and an inverse STFT (arXiv:2306.00814), over a source of pulses and noise.

The pitch is read off the log-mels, and pulses at that pitch and noise are what the trunk shapes: per frame and bin it
gives a gain, a turn of the pulses' phase, and how much of them is noise. It starts from an analytic vocoder: gains that
give the source the wanted log-mels, pulses below and noise above some kHz. Nothing has to invent phases from nothing.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..hub import CardFacts, PushMixin
from ..quantization import bits_per_weight, num_weights
from ..stft import inverse_stft, mel_filters, stft
from .configuration_vocoder import UnifiedVocoderConfig
from .parquet_weights import ParquetWeightsMixin
from .vocoder_source import Excitation, excitation, noise_like

NOISE_FROM_HZ, NOISE_SLOPE_HZ = 4_500.0, 900.0  # where a fresh vocoder has as much noise as pulses
VALLEY = 0.25  # of the level around: bands between harmonics are not raised by more
NEIGHBOURS = 7  # bands, about 230 Hz where harmonics are resolved
SMALLEST = 1e-7


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, and a pointwise MLP, added (arXiv:2201.03545)."""

    def __init__(self, width: int, intermediate: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, intermediate)
        self.contract = nn.Linear(intermediate, width)

    def forward(self, x: Float[Tensor, "batch frames width"]) -> Float[Tensor, "batch frames width"]:
        near = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.contract(F.gelu(self.expand(self.norm(near))))


class ConvNeXt(nn.Module):
    """Log-mels to hidden states, a frame each."""

    def __init__(self, bands: int, width: int, intermediate: int, layers: int, kernel_size: int):
        super().__init__()
        self.embed = nn.Conv1d(bands, width, kernel_size, padding=kernel_size // 2)
        self.embed_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, intermediate, kernel_size) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, mels: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch frames width"]:
        x = self.embed_norm(self.embed(mels).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class ZeroHead(nn.Linear):
    """A linear layer that starts at zero."""


class Envelope(nn.Linear):
    """Values of bands to values of bins; starts as linear interpolation between the centres of bands."""


class UnifiedVocoderModel(PushMixin, ParquetWeightsMixin, PreTrainedModel):
    """Sound from normalized log-mels (`codecs.mel.log_mel`).

    Usage:
        vocoder = UnifiedVocoderModel.from_pretrained(folder)
        waveform = vocoder(log_mel(waveform))
    """

    config_class = UnifiedVocoderConfig
    base_model_prefix = ""
    main_input_name = "mels"
    _no_split_modules = ["ConvNeXtBlock"]

    def __init__(self, config: UnifiedVocoderConfig):
        super().__init__(config)
        bands, bins = config.num_bands, config.n_fft // 2 + 1
        shape = config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.kernel_size
        self.trunk = ConvNeXt(bands, *shape)
        self.head = ZeroHead(config.hidden_size, 4 * bins)
        self.envelope = Envelope(bands, bins, bias=False)
        width = config.pitch_hidden_size
        self.pitch_trunk = ConvNeXt(bands, width, 3 * width, config.pitch_layers, config.kernel_size)
        self.pitch_head = nn.Linear(width, config.num_pitches + 1)  # the last one says whether there is voice
        self.post_init()

    def card_facts(self) -> CardFacts:
        """Size and bits of the network."""
        return CardFacts(
            what="A vocoder of hf_unified_diffusion: 24 kHz speech from log-mels.",
            usage="from hf_unified_diffusion import UnifiedVocoderModel\n\n"
            'vocoder = UnifiedVocoderModel.from_pretrained("{repo_id}")',
            numbers={"parameters": num_weights(self), "bits per weight": round(bits_per_weight(self), 3)},
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The analytic vocoder, which the networks do not change yet."""
        if isinstance(module, ZeroHead):
            init.zeros_(module.weight)
            bins = module.out_features // 4
            hz = torch.arange(bins) * self.config.sampling_rate_hz / self.config.n_fft
            bias = torch.zeros(4, bins)
            bias[3] = (NOISE_FROM_HZ - hz) / NOISE_SLOPE_HZ
            init.copy_(module.bias, bias.flatten())
        elif isinstance(module, Envelope):
            weights = self.filters.T.clone()
            peaks = self.filters.argmax(1)
            weights[: peaks[0], 0] = 1  # beyond the outer centres their value goes on
            weights[peaks[-1] :, -1] = 1
            init.copy_(module.weight, weights / weights.sum(1, keepdim=True))
        elif isinstance(module, nn.Linear | nn.Conv1d):
            init.trunc_normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    @property
    def filters(self) -> Float[Tensor, "bands bins"]:
        """The triangles of the bands."""
        return mel_filters(self.config.n_fft, self.config.num_bands, self.config.sampling_rate_hz)

    def pitch_logits(
        self, mels: Float[Tensor, "batch bands frames"]
    ) -> tuple[Float[Tensor, "batch frames pitches"], Float[Tensor, "batch frames"]]:
        """Logits of pitches, and of voice.

        Usage: `logits, voice = vocoder.pitch_logits(mels)`
        """
        found = self.pitch_head(self.pitch_trunk(mels))
        return found[..., :-1], found[..., -1]

    def pitch(
        self, mels: Float[Tensor, "batch bands frames"]
    ) -> tuple[Float[Tensor, "batch frames"], Float[Tensor, "batch frames"]]:
        """Pitch in Hz, the mean around the likeliest one, and the probability of voice.

        Usage: `pitch_hz, voiced = vocoder.pitch(mels)`
        """
        logits, voice = self.pitch_logits(mels)
        places = torch.arange(logits.shape[-1], device=logits.device)
        near = (places - logits.argmax(-1, keepdim=True)).abs() <= 2
        place = (logits.masked_fill(~near, -math.inf).softmax(-1) * places).sum(-1)
        ratio = math.log(self.config.highest_hz / self.config.lowest_hz)
        pitch_hz = self.config.lowest_hz * (place * ratio / (self.config.num_pitches - 1)).exp()
        return pitch_hz, voice.sigmoid()

    def forward(
        self, mels: Float[Tensor, "batch bands frames"], source: Excitation | None = None
    ) -> Float[Tensor, "batch samples"]:
        """Sound, `hop` samples a frame, float32; about in [-1, 1].

        Args:
            mels: normalized log-mels.
            source: pulses and voice; by default those of the pitch that the log-mels have.

        Raises:
            ValueError: for mels of another shape or dtype, or without frames.

        Usage: `waveform = vocoder(mels)`
        """
        if mels.ndim != 3 or mels.shape[1] != self.config.num_bands or not mels.numel() or not mels.is_floating_point():
            raise ValueError(
                f"mels must be float (batch, {self.config.num_bands}, frames) with at least one frame, "
                f"got {mels.dtype} {tuple(mels.shape)}"
            )
        config = self.config
        if source is None:
            source = excitation(*self.pitch(mels), config.hop, config.sampling_rate_hz)
        pulses = stft(source.pulses, config.n_fft, config.hop)
        noise = stft(noise_like(source.pulses), config.n_fft, config.hop)
        change, real, imaginary, tonal = self.head(self.trunk(mels)).float().transpose(1, 2).chunk(4, dim=1)
        share = tonal.sigmoid() * source.voiced[:, None]  # of power
        turn = torch.complex(1 + real, imaginary)
        turn = turn / turn.abs().clamp(min=SMALLEST)
        mixed = (share + SMALLEST).sqrt() * turn * pulses + (1 - share + SMALLEST).sqrt() * noise
        wanted = mels.float() * config.mel_std + config.mel_mean
        gain = self.envelope((wanted - self.level_of(mixed)).transpose(1, 2)).transpose(1, 2) + change
        return inverse_stft(gain.exp() * mixed, config.hop)

    def level_of(self, spectrum: Tensor) -> Float[Tensor, "batch bands frames"]:
        """The log-mels of a spectrum, valleys between harmonics filled to a quarter of what is around."""
        mels = self.filters.to(spectrum.device) @ spectrum.abs()
        around = F.avg_pool1d(
            mels.transpose(1, 2), NEIGHBOURS, stride=1, padding=NEIGHBOURS // 2, count_include_pad=False
        ).transpose(1, 2)
        return torch.maximum(mels, VALLEY * around).clamp(min=SMALLEST).log()
