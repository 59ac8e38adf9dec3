"""What pipelines return."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from jaxtyping import Float, Float32, Int
from PIL.Image import Image
from torch import Tensor

from ..codecs.durations import Alignment
from ..codecs.speech_checks import SpeechChecks
from ..conditioning.rejection import Attempt
from ..contracts import TimedLabel


@dataclass
class UnifiedDiffusionTextPipelineOutput(BaseOutput):
    """What the text and code pipelines return, one entry per row.

    Attributes:
        sequences: int64 (B, n), prompt, what was written, and suffix; padded on the right.
        texts: the same as strings, the given ones exactly as given; None for `output_type="seq"`.
        completions: what was written, without prompt and suffix; None for `output_type="seq"`.
        completion_ids: int64 (n_i,), the tokens of the completion, without the end token.
        finished: whether the row ended by itself, by its end token or a stop rule, before `max_new_tokens`.
        num_forward_passes: passes through the network, those for guidance and for checking drafts included.
        acceptance_rate: share of drafted tokens that the check kept; None without `check_drafts`.
        energy_history: the attempts of each row; None without energies.
    """

    sequences: Int[Tensor, "batch length"]
    texts: list[str] | None = None
    completions: list[str] | None = None
    completion_ids: list[Int[Tensor, "length"]] | None = None
    finished: list[bool] | None = None
    num_forward_passes: int = 0
    acceptance_rate: float | None = None
    energy_history: list[tuple[Attempt, ...]] | None = None


@dataclass
class UnifiedDiffusionImagePipelineOutput(BaseOutput):
    """What the image pipeline returns, one entry per row.

    Attributes:
        images: pictures of Pillow; for "np" float32 (B, height, width, 3) and for "pt" (B, 3, height, width), both in
            [0, 1]; for "latent" tokens, float32 (B, tokens, width).
        num_forward_passes: passes through the network, those for guidance included.
    """

    images: list[Image] | Float32[np.ndarray, "batch height width 3"] | Float[Tensor, "batch ..."]
    num_forward_passes: int = 0


@dataclass
class UnifiedDiffusionJointPipelineOutput(BaseOutput):
    """What the joint pipeline returns, one entry per row; None for modalities that were not asked for.

    Attributes:
        texts: strings: given ones as given, generated ones with the prompt before them.
        audio: float32 (B, samples) in [-1, 1].
        avatar: coefficients of ARKit in [0, 1], float32 (B, frames, 52), in the order of `avatar_codec.COEFFICIENTS`.
        images: pictures of Pillow.
        words, phonemes, visemes: what is said when, of each row; () where nothing that can be spoken is said; None
            without sound or face.
        sampling_rate_hz: of the audio.
        avatar_rate_hz: frames of the avatar a second; frame k is the face at (k + 1/2) / rate.
        tokens: what the network gave by modality: ids int64 (B, n), or float32 (B, n, width).
        num_forward_passes: passes through the network, one a step for all modalities and guidance together.
    """

    texts: list[str] | None = None
    audio: Float32[np.ndarray, "batch samples"] | None = None
    avatar: Float32[np.ndarray, "batch frames 52"] | None = None
    images: list[Image] | None = None
    words: list[tuple[TimedLabel, ...]] | None = None
    phonemes: list[tuple[TimedLabel, ...]] | None = None
    visemes: list[tuple[TimedLabel, ...]] | None = None
    sampling_rate_hz: int | None = None
    avatar_rate_hz: int | None = None
    tokens: dict[str, Tensor] | None = None
    num_forward_passes: int = 0


@dataclass
class UnifiedDiffusionSpeechPipelineOutput(BaseOutput):
    """What the speech pipeline returns, one entry per row.

    Attributes:
        audios: float32 (samples,) in [-1, 1], arrays for "np" and tensors for "pt"; for "latent" tokens, float32
            (tokens, width).
        sampling_rate_hz: of the sounds.
        alignments: words and phonemes with their times, as the duration predictor spreads them over each sentence.
        checks: pauses, words in silence, and likeness to the reference's own words; None for "latent".
        scores: the denoising loss of what was kept with its text less that without, lower is better; None for one
            candidate.
        num_forward_passes: passes through the network, those for guidance and for scores included.
    """

    audios: list[Float32[np.ndarray, "samples"]] | list[Float[Tensor, "samples"]]
    sampling_rate_hz: int
    alignments: list[Alignment]
    checks: list[SpeechChecks] | None = None
    scores: list[float] | None = None
    num_forward_passes: int = 0
