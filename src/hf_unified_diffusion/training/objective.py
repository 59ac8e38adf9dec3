"""What training minimises: the canvas' NELBO, the causal path's next-token loss beside it, and the flow's error."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ..contracts import Segment
from ..modeling.control_pass import Control
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FlowConfig, FlowTarget, latent_layout, speech_layout
from .latent_data import LatentBatch
from .layouts import IGNORED_LABEL, Target, TokenBatch, block_layout, infill_layout, next_token_target
from .speech_data import SpeechBatch

Losses = dict[str, list[tuple[Tensor, Tensor, int]]]  # by kind of segment: losses, their weights, tokens


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a step is made of.

    Attributes:
        causal_weight: weight of the next-token loss on clean context; the canvas' NELBO has weight 1.
        canvas: False trains the causal path alone (the autoregressive twin).
        block_lengths: one is drawn for each step.
        infill_rate: the share of steps that learn to fill gaps, seeing both sides.
        infill_lengths: shortest and longest gap, in tokens; a shorter sequence is all gap. A row has as many gaps of
            one length, log-uniform, as leave half of it given.
        complementary: a second canvas that hides what the first shows.
        max_weight: clips n / k, the weight of a hidden token; the rarest hidden tokens else dominate the gradient.
        flow: of continuous modalities.
    """

    causal_weight: float = 0.3
    canvas: bool = True
    block_lengths: tuple[int, ...] = (4, 8, 16, 32)
    infill_rate: float = 0.25
    infill_lengths: tuple[int, int] = (4, 64)
    complementary: bool = True
    max_weight: float = 8.0
    flow: FlowConfig = field(default_factory=FlowConfig)

    def __post_init__(self):
        low, high = self.infill_lengths
        rules = [
            (self.causal_weight >= 0, f"causal_weight must be 0 or more, got {self.causal_weight}"),
            (
                len(self.block_lengths) > 0 and min(self.block_lengths) >= 1,
                f"block_lengths must be one or more lengths of at least 1, got {self.block_lengths}",
            ),
            (0 <= self.infill_rate <= 1, f"infill_rate must be in [0, 1], got {self.infill_rate}"),
            (1 <= low <= high, f"infill_lengths must be shortest and longest, from 1, got {self.infill_lengths}"),
            (self.max_weight > 0, f"max_weight must be positive, got {self.max_weight}"),
        ]
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)

    def growing(self, progress: float) -> tuple[int, ...]:
        """Block lengths in use at `progress` in [0, 1]: short ones first, all from a third on (arXiv:2512.06776)."""
        allowed = max(1, round(min(1.0, 0.25 + 2.25 * progress) * len(self.block_lengths)))
        return tuple(sorted(self.block_lengths)[:allowed])


def layout_for(
    batch: TokenBatch | LatentBatch | SpeechBatch,
    config: ObjectiveConfig,
    mask_token_id: int,
    progress: float,
    generator: Generator,
) -> Sequence[tuple[Segment, Target | FlowTarget | None]]:
    """Draw the step's layout: context only, a gap to fill, or blocks; for latents and speech noisy canvases after what
    is told of them. A segment without a target is only looked at.
    """
    if isinstance(batch, SpeechBatch):
        return speech_layout(batch, config.flow, generator)
    if isinstance(batch, LatentBatch):
        return latent_layout(batch, config.flow, generator)
    length = batch.tokens.shape[1]
    if not config.canvas:
        context = Segment(batch.modality, batch.tokens, document=batch.documents)
        return [(context, next_token_target(batch))]
    if torch.rand((), generator=generator) < config.infill_rate:
        gap_length, starts = draw_gaps(length, config.infill_lengths, generator)
        return infill_layout(batch, starts, gap_length, mask_token_id, generator, config.complementary)
    choices = config.growing(progress)
    block_length = choices[int(torch.randint(0, len(choices), (), generator=generator))]
    return block_layout(batch, min(block_length, length), mask_token_id, generator, config.complementary)


def draw_gaps(length: int, bounds: tuple[int, int], generator: Generator) -> tuple[int, list[int]]:
    """A gap length, log-uniform within `bounds`, and where gaps start: one in each equal share of the sequence."""
    low, high = (min(bound, length) for bound in bounds)
    gap_length = min(high, int(low * ((high + 1) / low) ** torch.rand((), generator=generator).item()))
    share = length // max(1, length // (2 * gap_length))
    offsets = torch.randint(0, share - gap_length + 1, (length // share,), generator=generator)
    return gap_length, [i * share + int(offset) for i, offset in enumerate(offsets)]


class ScoreNetworkObjective(nn.Module):
    """The model and its losses as one module, so that any data-parallel wrapper sees one forward.

    Usage: `losses = ScoreNetworkObjective(model, ObjectiveConfig())(parts)`, `losses["loss"].backward()`
    """

    def __init__(self, model: UnifiedDiffusionModel, config: ObjectiveConfig):
        super().__init__()
        self.model, self.config = model, config

    def forward(
        self, parts: Sequence[tuple[Segment, Target | FlowTarget | None]], controls: Sequence[Control] = ()
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss and its parts.

        In nats per token: `causal`, `canvas` (weights clipped) and `hidden` (unweighted). For latents: `flow` (weighted
        as the configuration says) and `clean` (the squared error of x_0).
        """
        hidden, _ = self.model.features([segment for segment, _ in parts], controls=controls)
        losses: Losses = {}
        for features, (segment, target) in zip(hidden, parts, strict=True):
            if target is not None:
                self.add_losses(losses, features, segment, target)
        return summed_losses(losses, self.config)

    def add_losses(self, losses: Losses, features: Tensor, segment: Segment, target: Target | FlowTarget) -> None:
        """Put what the model says of a segment, against its data, among the losses."""
        if isinstance(target, FlowTarget):
            add_flow_error(losses, self.model.estimate(features, segment), target)
        else:
            add_nats(losses, segment, target, *self.nats(features, segment.modality, target))

    def nats(self, features: Tensor, modality: str, target: Target) -> tuple[Tensor, Tensor]:
        """Cross-entropy and weight of the labelled tokens only; the vocabulary is never unembedded elsewhere."""
        asked = target.labels != IGNORED_LABEL
        logits = self.model.decode(features[asked], modality)
        nats = F.cross_entropy(logits.float(), target.labels[asked], reduction="none")
        return nats, target.weight[asked].clamp(max=self.config.max_weight)


def add_flow_error(losses: Losses, clean: Tensor, target: FlowTarget) -> None:
    """Put the squared errors of a continuous canvas, one a sample, with its weights among the losses."""
    errors = target.errors(clean)
    losses.setdefault("flow", []).append((errors, target.weight, len(errors)))


def add_nats(losses: Losses, segment: Segment, target: Target, nats: Tensor, weight: Tensor) -> None:
    """Put the losses of a segment's tokens, with their weights, among the losses."""
    kind = "causal" if segment.is_context else "canvas"
    losses.setdefault(kind, []).append((nats, weight, target.labels.numel()))


def summed_losses(losses: Losses, config: ObjectiveConfig) -> dict[str, Float[Tensor, ""]]:
    """The loss and its parts, from what segments of the kinds "causal", "canvas" and "flow" gave."""
    values, causal_weight = {}, config.causal_weight if config.canvas else 1.0
    if "causal" in losses and len(losses["causal"][0][0]) > 0:
        nats, _, _ = losses["causal"][0]
        values["causal"] = nats.mean()
    if "canvas" in losses:
        total = sum(count for _, _, count in losses["canvas"])
        values["canvas"] = torch.stack([(n * w).sum() for n, w, _ in losses["canvas"]]).sum() / total
        values["hidden"] = torch.cat([n for n, _, _ in losses["canvas"]]).mean().detach()
    if "flow" in losses:
        canvases = losses["flow"]  # sound and face count alike
        values["flow"] = torch.stack([(errors * weight).mean() for errors, weight, _ in canvases]).mean()
        values["clean"] = torch.stack([errors.mean() for errors, _, _ in canvases]).mean().detach()
        causal_weight = config.flow.caption_weight
    ways = values.get("canvas", 0.0) + values.get("flow", 0.0)
    values["loss"] = ways + causal_weight * values.get("causal", 0.0)
    return values
