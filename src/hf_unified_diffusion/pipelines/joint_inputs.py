"""What a request for several modalities may be, checked once at the door."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..codecs.audio_codec import AudioCodec
from ..codecs.avatar_codec import AvatarCodec
from ..codecs.avatar_track import AvatarTrack
from ..codecs.durations import Durations
from ..codecs.loudness import levelled
from ..codecs.phonemes import Pronunciation, pronounce
from ..conditioning.energy import check_scale
from .text_inputs import as_texts, check_choice, check_positive

JOINT_MODALITIES = ("text", "audio", "avatar", "image")
CLIP_MODALITIES = ("audio", "avatar")
LONGEST_CLIP_S = 60.0

DEFAULT_SECONDS = 3.0

Waveforms: TypeAlias = np.ndarray | Tensor
Avatars: TypeAlias = np.ndarray | Tensor | AvatarTrack


@dataclass(frozen=True)
class JointOptions:
    """How to generate, as in `UnifiedDiffusionJointPipeline.__call__`; ValueError where a rule is broken."""

    modality: tuple[str, ...]
    num_inference_steps: int
    guidance_scale: Mapping[str, float]
    duration_s: float | None
    num_text_tokens: int
    spans: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        check_positive("num_inference_steps", self.num_inference_steps)
        check_positive("num_text_tokens", self.num_text_tokens)
        for scale in self.guidance_scale.values():
            check_scale("guidance_scale", scale)
        for name, span in self.spans.items():
            check_choice("a modality of spans", name, JOINT_MODALITIES)
            if len(span) != 2 or not 0 <= span[0] < span[1] <= 1:
                raise ValueError(f"a span must be two rising shares of the steps in [0, 1], got {span} for {name!r}")
        if self.duration_s is not None and not 0 < self.duration_s <= LONGEST_CLIP_S:
            raise ValueError(f"duration_s must be above 0 and at most {LONGEST_CLIP_S}, got {self.duration_s}")


def asked_modalities(modality: str | Sequence[str]) -> tuple[str, ...]:
    """The modalities of a request in their order; ValueError for none, unknown or repeated ones.

    Usage: `asked_modalities(["avatar", "audio"])  # ("audio", "avatar")`
    """
    names = [modality] if isinstance(modality, str) else list(modality)
    if not names or len(set(names)) != len(names) or not set(names) <= set(JOINT_MODALITIES):
        raise ValueError(f"modality must be one or more of {list(JOINT_MODALITIES)}, each once, got {names}")
    return tuple(name for name in JOINT_MODALITIES if name in names)


def scales_of(guidance_scale: float | Mapping[str, float]) -> dict[str, float]:
    """A guidance scale for every modality; ValueError for one of an unknown modality."""
    if not isinstance(guidance_scale, Mapping):
        return dict.fromkeys(JOINT_MODALITIES, guidance_scale)
    for name in guidance_scale:
        check_choice("a modality of guidance_scale", name, JOINT_MODALITIES)
    return {name: guidance_scale.get(name, 1.0) for name in JOINT_MODALITIES}


@dataclass(frozen=True)
class GivenClip:
    """What is given of a spoken clip; rows share its length.

    Attributes:
        spoken: how each row's text is said, or None.
        audio, avatar: clean tokens, or None.
    """

    spoken: list[Pronunciation] | None
    audio: Float[Tensor, "rows tokens width"] | None
    avatar: Float[Tensor, "rows tokens 52"] | None

    @property
    def num_rows(self) -> int | None:
        """The most rows that any of it has; None where nothing is given."""
        counts = [len(part) for part in (self.spoken, self.audio, self.avatar) if part is not None]
        return max(counts, default=None)

    def num_tokens(self, duration_s: float | None, durations: Durations) -> int | None:
        """Tokens of the clip: of what is given, else of `duration_s`, else of the longest text; None unknown.

        Raises:
            ValueError: sound and face of different lengths, or a duration beside them.
        """
        lengths = {part.shape[1] for part in (self.audio, self.avatar) if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"audio and avatar must be of one length, got {sorted(lengths)} tokens of 1/20 s")
        if lengths:
            if duration_s is not None:
                raise ValueError(f"duration_s must be left out with audio or avatar given, got {duration_s}")
            return lengths.pop()
        if duration_s is None and self.spoken is not None:
            duration_s = min(max(durations.of(each.symbols) for each in self.spoken), LONGEST_CLIP_S)
        return None if duration_s is None else math.ceil(duration_s * AudioCodec.tokens_per_second)


def gather_clip(
    text: str | Sequence[str] | None, audio: Waveforms | None, avatar: Avatars | None, codec: AudioCodec
) -> GivenClip:
    """Phonemes and tokens of what is given; ValueError where it is no text, sound or face.

    Args:
        text: to be spoken, one a row or one for all.
        audio: float in [-1, 1] at 24 kHz, (samples,) or (rows, samples).
        avatar: a track, or coefficients at 20 frames a second, (tokens, 52) or (rows, tokens, 52).
    """
    spoken = None if text is None else [pronounce(each) for each in as_texts("text", text)]
    return GivenClip(
        spoken,
        None if audio is None else codec.encode(given_sound(audio)),
        None if avatar is None else AvatarCodec().encode(given_face(avatar)),
    )


def clip_tokens(options: JointOptions, clip: GivenClip, durations: Durations) -> int | None:
    """Tokens of the clip of a request, None where it has none; ValueError for what needs one and has none."""
    with_clip = bool({*options.modality} & {*CLIP_MODALITIES}) or clip.audio is not None or clip.avatar is not None
    if clip.spoken is not None and not with_clip:
        raise ValueError("text must come with audio or avatar, asked for or given; else give it as the prompt")
    if not with_clip and options.duration_s is not None:
        raise ValueError(f"duration_s must be left out without sound and face, got {options.duration_s}")
    if not with_clip:
        return None
    tokens = clip.num_tokens(options.duration_s, durations)
    return round(DEFAULT_SECONDS * AudioCodec.tokens_per_second) if tokens is None else tokens


def given_sound(audio: Waveforms) -> Float[Tensor, "rows samples"]:
    """Sounds as a batch; ValueError for another shape, what is not finite, or beyond `LONGEST_CLIP_S`."""
    waveform = torch.as_tensor(audio)
    waveform = waveform[None] if waveform.ndim == 1 else waveform
    if waveform.ndim != 2 or not waveform.numel() or not waveform.is_floating_point():
        raise ValueError(
            f"audio must be float (samples,) or (rows, samples), got {waveform.dtype} {tuple(waveform.shape)}"
        )
    seconds = waveform.shape[1] / AudioCodec.sampling_rate_hz
    if seconds > LONGEST_CLIP_S:
        raise ValueError(f"audio must be at most {LONGEST_CLIP_S} s long, got {seconds:.1f} s")
    if not bool(waveform.isfinite().all()) or float(waveform.abs().max()) > 1:
        raise ValueError(f"audio must be finite and in [-1, 1], got up to {float(waveform.abs().max())}")
    return torch.stack([levelled(row) for row in waveform.float()])  # as in training


def given_face(avatar: Avatars) -> Float[Tensor, "rows tokens 52"]:
    """Coefficients as a batch at 20 frames a second; ValueError beyond `LONGEST_CLIP_S`, the codec checks the rest."""
    if isinstance(avatar, AvatarTrack):
        avatar = avatar.at(AvatarCodec.tokens_per_second).coefficients
    values = torch.as_tensor(avatar)
    values = values[None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[1] > LONGEST_CLIP_S * AvatarCodec.tokens_per_second:
        raise ValueError(f"avatar must be at most {LONGEST_CLIP_S} s long, got {values.shape[1]} tokens of 1/20 s")
    return values


def row_prompts(prompt: str | Sequence[str] | None, num_given: int | None) -> list[str]:
    """A prompt for every row, "" where there is none; ValueError where counts do not fit."""
    if prompt is None:
        return [""] * (num_given or 1)
    prompts = as_texts("prompt", prompt)
    rows = num_given or 1
    if len(prompts) != 1 and rows not in (1, len(prompts)):
        raise ValueError(f"prompt must be one string or as many as rows are given ({rows}), got {len(prompts)}")
    return prompts * rows if len(prompts) == 1 else prompts


def each_row(values: Any, count: int, name: str) -> Any:
    """One entry a row, from one for all or as many as the rows; ValueError for another count."""
    if len(values) not in (1, count):
        raise ValueError(f"{name} must have one row or as many as the prompts ({count}), got {len(values)}")
    if isinstance(values, Tensor):
        return values.expand(count, *values.shape[1:])
    return values * count if len(values) == 1 else values
