"""Plain data and protocols that cross folders. Imports nothing of ours.

Time runs from t=0 (clean) to t=1 (noise), everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Shaped
from torch import Generator, Tensor

MODALITIES = ("text", "code", "image", "audio", "avatar")
TOKEN_MODALITIES = ("text", "code")


@dataclass(frozen=True)
class Condition:
    """What steers generation from outside the sequence, encoded: condition tokens, and which of them are real.

    Attributes:
        strength: float (B, n), what each token's value is multiplied by; None: 1. At 0 a token adds nothing.
    """

    tokens: Float[Tensor, "batch context width"]
    mask: Bool[Tensor, "batch context"]
    strength: Float[Tensor, "batch context"] | None = None

    def join(self, other: "Condition") -> "Condition":
        """Both conditions, one after the other; widths must agree."""
        if self.tokens.shape[-1] != other.tokens.shape[-1]:
            raise ValueError(
                f"conditions must share one width, got {self.tokens.shape[-1]} and {other.tokens.shape[-1]}"
            )
        strengths = [torch.ones_like(c.tokens[..., 0]) if c.strength is None else c.strength for c in (self, other)]
        return Condition(
            torch.cat([self.tokens, other.tokens], dim=1),
            torch.cat([self.mask, other.mask], dim=1),
            None if self.strength is None and other.strength is None else torch.cat(strengths, dim=1),
        )

    def select(self, rows: Int[Tensor, "rows"]) -> "Condition":
        """The condition of some rows of the batch, in that order; rows may repeat."""
        return Condition(self.tokens[rows], self.mask[rows], None if self.strength is None else self.strength[rows])


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one modality: clean context (`time` None) or a noisy canvas at time t.

    Context attends causally to earlier context. Canvas tokens attend to the context they can reach and to the whole
    canvas, in both directions. A canvas token whose own time is 0 is a known part of the canvas (inpainting).

    Attributes:
        modality: a name the model has a head for.
        values: token ids, int64 (B, n), or continuous tokens, float (B, n, width).
        time: None, or t in [0, 1], float (B,) or (B, n). Masked diffusion gives the mask probability.
        target_time: where a distilled model should jump to, in [0, t]; same shapes.
        guidance: the guidance scale a distilled model should imitate; same shapes.
        positions: float (B, n) or (B, n, 3) on the axes (seconds, y, x); default: on from the last segment.
        mask: bool (B, n), False where there is padding.
        document: int64 (B, n), tokens of different documents never see each other (packing); default one document.
        canvas: int64 (B, n), above 0; canvas tokens see their own canvas only; default one canvas for all segments.
        reach: int64 (B, n), how many context tokens, counted from the start, a canvas token sees; default all.

    Usage: `Segment("text", ids, time=torch.full((1,), 0.5))`
    """

    modality: str
    values: Shaped[Tensor, "batch length *width"]
    time: Float[Tensor, "batch *length"] | None = None
    target_time: Float[Tensor, "batch *length"] | None = None
    guidance: Float[Tensor, "batch *length"] | None = None
    positions: Float[Tensor, "batch length *axes"] | None = None
    mask: Bool[Tensor, "batch length"] | None = None
    document: Int[Tensor, "batch length"] | None = None
    canvas: Int[Tensor, "batch length"] | None = None
    reach: Int[Tensor, "batch length"] | None = None

    @property
    def is_context(self) -> bool:
        """True for clean context, False for a noisy canvas."""
        return self.time is None

    def to(self, device: torch.device) -> "Segment":
        """The same segment on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Result:
    """What a request gave: the output and how it came about.

    Attributes:
        output: str for text and code, uint8 (H, W, 3) for images, float32 (samples,) for audio, or a mapping of them.
        seed: the seed that reproduces it, or the list of them.
        step_ms: milliseconds of each denoising step.
        uncertainty: one number per step.
        sampling_rate_hz: for audio.
        extra: recalled items, alignment and the like, by name.
    """

    output: Any
    seed: int | list[int]
    step_ms: tuple[float, ...] = ()
    uncertainty: tuple[float, ...] = ()
    sampling_rate_hz: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimedLabel:
    """What is said, or how the mouth is held, from one time to another: a word, a phoneme or a viseme.

    Attributes:
        start_s, end_s: seconds from the beginning of the clip, start_s <= end_s.
    """

    label: str
    start_s: float
    end_s: float


# (x_t, t, condition) -> estimate of the clean sample: E[x_0] for continuous data, logits over tokens for discrete data.
Denoiser = Callable[
    [Shaped[Tensor, "batch *shape"], Float[Tensor, "batch"], Condition | None], Float[Tensor, "batch *out"]
]


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into embeddings; its name is stored with them, and no other encoder's are compared to them."""

    name: str

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts width"]:
        """One embedding a text."""
        ...


@runtime_checkable
class Process(Protocol):
    """A corruption from clean data (t=0) to pure noise (t=1), and its reverse."""

    def prior(self, shape: tuple[int, ...], generator: Generator) -> Tensor:
        """A sample at t=1."""
        ...

    def corrupt(self, x_0: Tensor, t: Float[Tensor, "batch"], generator: Generator) -> Tensor:
        """A sample of x_t given x_0."""
        ...

    def reverse(self, clean: Tensor, x_t: Tensor, t: Tensor, s: Tensor, generator: Generator) -> Tensor:
        """A sample of x_s, s < t, given x_t and the denoiser's estimate of the clean sample."""
        ...

    def loss(self, clean: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Float[Tensor, "batch"]:
        """What training minimises, per sample."""
        ...
