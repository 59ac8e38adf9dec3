"""Several canvases in one pass: each modality with its own process, its own time and its own pace."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float, Int
from torch import Generator, Tensor

from ..conditioning.guidance import pushed_away
from ..contracts import Segment
from ..modeling.attention_rule import ContextCache
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.flow_matching import FLOW, FlowRun, plan_flow
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler


@dataclass(frozen=True)
class Pace:
    """The steps of the loop in which a canvas is denoised: noise before them, clean after them.

    Attributes:
        first: the first such step.
        count: how many.
    """

    first: int
    count: int

    @classmethod
    def of(cls, span: tuple[float, float], num_steps: int) -> "Pace":
        """The steps of a share of the loop, at least one.

        Usage: `Pace.of((0.0, 0.5), num_steps=16)  # the first 8`
        """
        first = min(math.floor(span[0] * num_steps), num_steps - 1)
        return cls(first, max(round(span[1] * num_steps) - first, 1))


class Canvas(Protocol):
    """What is generated of one modality."""

    modality: str
    x_t: Tensor

    def segment(self, step: int, copies: int) -> Segment:
        """The canvas as the network sees it in a step, its rows `copies` times."""
        ...

    def advance(self, step: int, clean: Tensor) -> None:
        """Go to the time of the next step, by the estimate of the clean sample."""
        ...


@dataclass
class FlowCanvas:
    """A continuous canvas under a flow scheduler of diffusers.

    Attributes:
        positions: of all rows of the pass, those of guidance included.
        run: planned for the steps of `pace`.
    """

    modality: str
    x_t: Float[Tensor, "rows tokens width"]
    positions: Float[Tensor, "all_rows tokens 3"]
    run: FlowRun
    pace: Pace

    @classmethod
    def noise(
        cls,
        modality: str,
        shape: tuple[int, int],
        positions: Float[Tensor, "all_rows tokens 3"],
        scheduler: SchedulerMixin,
        generators: Sequence[Generator],
        pace: Pace,
    ) -> "FlowCanvas":
        """A canvas of (tokens, width) of pure noise; ValueError for a scheduler of more than one pass a step."""
        device = positions.device
        run = plan_flow(scheduler, pace.count, shape[0], generators=generators, device=device)
        if len(run.times) != pace.count:
            raise ValueError(
                f"the flow scheduler must take one pass a step, got {len(run.times)} passes for {pace.count} steps "
                f"of {type(scheduler).__name__}"
            )
        return cls(modality, FLOW.prior((len(generators), *shape), generators).to(device), positions, run, pace)

    def segment(self, step: int, copies: int) -> Segment:
        """See `Canvas`."""
        turn = step - self.pace.first
        is_clean = turn >= self.pace.count
        t = torch.zeros((), device=self.x_t.device) if is_clean else self.run.times[max(turn, 0)]
        time = t.expand(len(self.x_t) * copies)
        return Segment(self.modality, self.x_t.repeat(copies, 1, 1), time=time, positions=self.positions)

    def advance(self, step: int, clean: Tensor) -> None:
        """See `Canvas`."""
        turn = step - self.pace.first
        if 0 <= turn < self.pace.count:
            self.x_t = self.run.step(clean, self.run.times[turn], self.x_t)


@dataclass
class TokenCanvas:
    """A canvas of tokens under masked diffusion; the network is told the share of masks, as in training."""

    modality: str
    x_t: Int[Tensor, "rows tokens"]
    positions: Float[Tensor, "all_rows tokens 3"]
    scheduler: MaskedDiffusionScheduler
    generators: Sequence[Generator]
    pace: Pace
    confidence: Float[Tensor, "rows tokens"] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.scheduler = deepcopy(self.scheduler)
        self.scheduler.set_timesteps(self.pace.count, device=self.x_t.device)

    def _masked(self) -> Tensor:
        return self.x_t == self.scheduler.config.mask_token_id

    def segment(self, step: int, copies: int) -> Segment:
        """See `Canvas`."""
        time = self._masked().float().mean(dim=1).repeat(copies)
        return Segment(self.modality, self.x_t.repeat(copies, 1), time=time, positions=self.positions)

    def advance(self, step: int, clean: Tensor) -> None:
        """See `Canvas`."""
        turn = step - self.pace.first
        if not 0 <= turn < self.pace.count or not bool(self._masked().any()):
            return
        t, everywhere = self.scheduler.timesteps[turn], torch.ones_like(self.x_t, dtype=torch.bool)
        options = {"canvas_mask": everywhere, "confidence": self.confidence, "generator": self.generators}
        output = self.scheduler.step(clean, t, self.x_t, **options)
        self.x_t, self.confidence = output.prev_sample, output.confidence


@dataclass
class JointDenoiser:
    """The network behind clean segments: what is clean of every canvas, by one pass.

    Under guidance the batch holds every row twice, with and without what is given, so that a step stays one pass. The
    first pass computes the clean segments too; later ones read them from a cache.

    Attributes:
        contexts: of all rows of the pass.
        scales: modality -> guidance scale, or None without guidance.
        num_passes: forward passes so far.
    """

    model: UnifiedDiffusionModel
    contexts: Sequence[Segment]
    scales: Mapping[str, float] | None = None
    num_passes: int = field(default=0, init=False)
    cache: ContextCache = field(default_factory=ContextCache, init=False)

    @property
    def copies(self) -> int:
        """How often each row is in a pass."""
        return 1 if self.scales is None else 2

    def __call__(self, canvases: Sequence[Segment]) -> list[Tensor]:
        """The clean sample of each canvas: logits for tokens, E[x_0] otherwise."""
        new = self.num_passes == 0
        segments = [*(self.contexts if new else ()), *canvases]
        output = self.model(segments=segments, cache=self.cache, use_cache=new)
        self.num_passes += 1
        estimates = output.predictions[-len(canvases) :]
        if self.scales is None:
            return [estimate.float() for estimate in estimates]
        halves = (estimate.float().chunk(2) for estimate in estimates)
        return [
            pushed_away(clean, null, self.scales[segment.modality])
            for segment, (clean, null) in zip(canvases, halves, strict=True)
        ]


# (step, clean estimates) -> whether to go on; may change the canvases
AfterJointStep = Callable[[int, Sequence[Tensor]], bool]


def diffuse_jointly(
    denoiser: JointDenoiser, canvases: Sequence[Canvas], num_steps: int, after_step: AfterJointStep
) -> None:
    """`diffusion_core.diffuse` for several canvases: ask once what is clean, step each, repeat; in place.

    Usage: `diffuse_jointly(denoiser, [text, audio, avatar], 16, lambda step, clean: True)`
    """
    for step in range(num_steps):
        clean = denoiser([canvas.segment(step, denoiser.copies) for canvas in canvases])
        for canvas, estimate in zip(canvases, clean, strict=True):
            canvas.advance(step, estimate)
        if not after_step(step, clean):
            break
