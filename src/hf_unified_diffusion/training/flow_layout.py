"""From clean latents and speech to what one training pass sees: clean context, and noisy canvases after it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from ..codecs.speech_layout import lay_out, stacked_rows
from ..contracts import Segment
from ..processes import GaussianFlow, logit_normal_times, shifted
from .latent_data import LatentBatch
from .layouts import IGNORED_LABEL, Target
from .speech_data import SpeechBatch

FLOW = GaussianFlow()
LOSSES = ("velocity", "clean")


@dataclass(frozen=True)
class FlowConfig:
    """How continuous modalities are learned; the network always predicts x_0.

    Attributes:
        loss: "velocity" weighs the squared error of x_0 by 1 / sigma^2, which is the squared error of the velocity it
            stands for (arXiv:2511.13720); "clean" leaves it as it is.
        max_weight: clips 1 / sigma^2; 400 is sigma = 0.05.
        time_mean: of the normal logit of the time, by modality, 0 where none is given. Words of speech are decided
            near 1: of 5 s, 0 draws a tenth of the times above 0.9 (decision 25).
        time_std: its deviation, of all modalities.
        base_tokens: samples of n tokens have their times shifted by sqrt(n / base_tokens): the more tokens say the
            same, the more noise it takes to hide it (arXiv:2403.03206, section 5.3.2).
        caption_weight: weight of the next-token loss on the captions.
        canvases: of each sample of a modality, 1 where none is given: behind one caption so many noisy copies, at times
            of their own, that do not see each other. A caption is longer than the tokens of a small picture.
        given_rate: of micro-batches of sound and face, the share in which one of the two is given clean and only the
            other is to be made, each as often; in the rest both are noisy, at times of their own (arXiv:2303.06555).
    """

    loss: str = "velocity"
    max_weight: float = 400.0
    time_mean: Mapping[str, float] = field(default_factory=dict)
    time_std: float = 1.0
    base_tokens: int = 16
    caption_weight: float = 0.0
    canvases: Mapping[str, int] = field(default_factory=dict)
    given_rate: float = 0.2

    def __post_init__(self):
        rules = [
            (self.loss in LOSSES, f"loss must be one of {LOSSES}, got {self.loss!r}"),
            (self.max_weight > 0, f"max_weight must be positive, got {self.max_weight}"),
            (all(map(math.isfinite, self.time_mean.values())), f"time_mean must be finite, got {dict(self.time_mean)}"),
            (self.time_std > 0, f"time_std must be positive, got {self.time_std}"),
            (self.base_tokens >= 1, f"base_tokens must be at least 1, got {self.base_tokens}"),
            (self.caption_weight >= 0, f"caption_weight must be 0 or more, got {self.caption_weight}"),
            (min(self.canvases.values(), default=1) >= 1, f"canvases must be at least 1, got {dict(self.canvases)}"),
            (0 <= self.given_rate <= 1, f"given_rate must be in [0, 1], got {self.given_rate}"),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)


@dataclass(frozen=True)
class FlowTarget:
    """What a continuous canvas is trained to predict.

    Attributes:
        x_0: float (B, n, width).
        weight: float (B,), of each sample's squared error.
        mask: bool (B, n), False at padding; None where nothing is padded.
    """

    x_0: Float[Tensor, "batch tokens width"]
    weight: Float[Tensor, "batch"]
    mask: Bool[Tensor, "batch tokens"] | None = None

    def to(self, device: torch.device) -> "FlowTarget":
        """The same target on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        return FlowTarget(self.x_0.to(device), self.weight.to(device), mask)

    def errors(self, clean: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch"]:
        """The mean squared error of each sample, over its real tokens."""
        errors = (clean.float() - self.x_0).square().mean(dim=2)
        if self.mask is None:
            return errors.mean(dim=1)
        return (errors * self.mask).sum(dim=1) / self.mask.sum(dim=1)


def latent_layout(
    batch: LatentBatch, config: FlowConfig, generator: Generator
) -> list[tuple[Segment, Target | FlowTarget]]:
    """The captions as causal context, and the samples at drawn times as canvases after them."""
    rows, tokens = batch.values.shape[:2]
    parts: list[tuple[Segment, Target | FlowTarget]] = []
    copies = config.canvases.get(batch.modality, 1)
    for number in range(copies):
        t, weight = drawn_times(batch.modality, rows, tokens, config, generator)
        context, canvas = latent_segments(batch, t, generator)
        if number == 0:
            parts.append((context, caption_target(batch, config)))
        if copies > 1:
            canvas = replace(canvas, canvas=torch.full((rows, tokens), number + 1))
        parts.append((canvas, FlowTarget(batch.values, weight)))
    return parts


def drawn_times(
    modality: str, rows: int, tokens: int, config: FlowConfig, generator: Generator
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
    """A time for each sample of so many tokens, and the weight of its error."""
    warp = shifted(math.sqrt(tokens / config.base_tokens))
    t = logit_normal_times(rows, generator, config.time_mean.get(modality, 0.0), config.time_std, warp)
    weight = FLOW.loss_weight(t).clamp(max=config.max_weight) if config.loss == "velocity" else torch.ones(rows)
    return t, weight


def speech_layout(
    batch: SpeechBatch, config: FlowConfig, generator: Generator
) -> list[tuple[Segment, Target | FlowTarget | None]]:
    """What is told of utterances as clean context, and sound, and face where there is one, at times of their own."""
    layout = lay_out(batch.rows, batch.bos_token_id)
    parts: list[tuple[Segment, Target | FlowTarget | None]] = [(segment, None) for segment in layout.contexts]
    tokens = max(map(len, batch.sounds))
    given = None if batch.faces is None else drawn_given(config.given_rate, generator)
    for modality, clips in (("audio", batch.sounds), ("avatar", batch.faces)):
        if clips is None:
            continue
        x_0, places = stacked_rows(clips, "cpu"), {"positions": layout.positions, "mask": layout.mask}
        if modality == given:
            parts.append((Segment(modality, x_0, **places), None))
            continue
        t, weight = drawn_times(modality, len(clips), tokens, config, generator)
        canvas = Segment(modality, FLOW.corrupt(x_0, t, generator), time=t, **places)
        parts.append((canvas, FlowTarget(x_0, weight, layout.mask)))
    return parts


def drawn_given(rate: float, generator: Generator) -> str | None:
    """Which of sound and face is given, if either is."""
    if torch.rand((), generator=generator) >= rate:
        return None
    return "audio" if torch.rand((), generator=generator) < 0.5 else "avatar"


def latent_segments(batch: LatentBatch, t: Float[Tensor, "batch"], generator: Generator) -> tuple[Segment, Segment]:
    """Context and canvas of samples at given times, with fresh noise."""
    context = Segment("text", batch.context, mask=batch.context_mask)
    values = FLOW.corrupt(batch.values, t, generator)
    return context, Segment(batch.modality, values, time=t, positions=latent_positions(batch))


def latent_positions(batch: LatentBatch) -> Float[Tensor, "batch tokens *axes"]:
    """Where the tokens of samples are: behind the real tokens of their captions."""
    rows, mask = batch.context.shape[0], batch.context_mask
    start = torch.full((rows,), batch.context.shape[1]) if mask is None else mask.sum(dim=1)
    if batch.positions is None:
        return start[:, None].float() + torch.arange(batch.values.shape[1])
    return batch.positions + start[:, None, None].float()


def caption_target(batch: LatentBatch, config: FlowConfig) -> Target:
    """Each real token of a caption predicts the next, where that has a weight."""
    labels = torch.full_like(batch.context, IGNORED_LABEL)
    if config.caption_weight > 0:
        real = torch.ones_like(batch.context, dtype=torch.bool) if batch.context_mask is None else batch.context_mask
        labels[:, :-1] = batch.context[:, 1:].masked_fill(~real[:, 1:], IGNORED_LABEL)
    return Target(labels, torch.ones(labels.shape))
