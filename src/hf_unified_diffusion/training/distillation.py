"""Self-distillation: a network that is being rounded learns to answer as its own dense weights do."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..contracts import Segment
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FlowTarget
from .layouts import IGNORED_LABEL, Target
from .objective import Losses, ObjectiveConfig, add_flow_error, summed_losses

LEAST_LOGIT = -1e4  # of the mask token, which neither network may predict: infinities have no difference


class DistillationObjective(nn.Module):
    """KL(teacher || model) on the tokens that `ScoreNetworkObjective` would learn from, by the same weights.

    Of latents, the squared distance from the teacher's x_0.

    Usage: `losses = DistillationObjective(model, copy.deepcopy(model), ObjectiveConfig())(parts)`
    """

    def __init__(self, model: UnifiedDiffusionModel, teacher: UnifiedDiffusionModel, config: ObjectiveConfig):
        super().__init__()
        self.model, self.config = model, config
        self.teacher = teacher.requires_grad_(False).eval()

    def forward(self, parts: Sequence[tuple[Segment, Target | FlowTarget | None]]) -> dict[str, Float[Tensor, ""]]:
        """The loss and its parts, as those of `ScoreNetworkObjective`, in nats of divergence."""
        segments = [segment for segment, _ in parts]
        hidden, _ = self.model.features(segments)
        with torch.no_grad():
            wanted, _ = self.teacher.features(segments)
        losses: Losses = {}
        for features, wanted_features, (segment, target) in zip(hidden, wanted, parts, strict=True):
            if isinstance(target, FlowTarget):
                with torch.no_grad():
                    taught = self.teacher.decode(wanted_features, segment.modality).float()
                add_flow_error(losses, self.model.decode(features, segment.modality), replace(target, x_0=taught))
            elif target is not None:
                nats, weight = self.divergence(features, wanted_features, segment.modality, target)
                kind = "causal" if segment.is_context else "canvas"
                losses.setdefault(kind, []).append((nats, weight, target.labels.numel()))
        return summed_losses(losses, self.config)

    def divergence(
        self, features: Tensor, wanted_features: Tensor, modality: str, target: Target
    ) -> tuple[Tensor, Tensor]:
        """KL divergence and weight of the labelled tokens."""
        asked = target.labels != IGNORED_LABEL
        with torch.no_grad():
            taught = log_probabilities(self.teacher, wanted_features[asked], modality)
        learned = log_probabilities(self.model, features[asked], modality)
        nats = F.kl_div(learned, taught, reduction="none", log_target=True).sum(dim=-1)
        return nats, target.weight[asked].clamp(max=self.config.max_weight)


def log_probabilities(
    model: UnifiedDiffusionModel, features: Float[Tensor, "tokens width"], modality: str
) -> Float[Tensor, "tokens vocab"]:
    """Of each value of the tokens, in float32 and finite."""
    return model.decode(features, modality).float().clamp_min(LEAST_LOGIT).log_softmax(dim=-1)
