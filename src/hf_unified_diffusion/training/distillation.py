"""Distillation: a network that is being rounded, or learns something else, keeps answering as it did before."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..contracts import Segment
from ..modeling.control_pass import Control
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FlowTarget
from .layouts import IGNORED_LABEL, Target
from .objective import Losses, ObjectiveConfig, ScoreNetworkObjective, add_nats, summed_losses

LEAST_LOGIT = -1e4  # of the mask token, which neither network may predict: infinities have no difference


class DistillationObjective(ScoreNetworkObjective):
    """KL(teacher || model) on the tokens that `ScoreNetworkObjective` would learn from, by the same weights.

    Of latents, the squared distance from the teacher's x_0. With `taught` only targets of these modalities are the
    teacher's, the others are the data's: learning without forgetting (arXiv:1606.09282).

    Usage: `losses = DistillationObjective(model, copy.deepcopy(model), ObjectiveConfig())(parts)`
    """

    def __init__(
        self,
        model: UnifiedDiffusionModel,
        teacher: UnifiedDiffusionModel,
        config: ObjectiveConfig,
        taught: Collection[str] | None = None,
    ):
        super().__init__(model, config)
        self.teacher = teacher.requires_grad_(False).eval()
        self.taught = taught

    def is_taught(self, modality: str) -> bool:
        """Whether targets of a modality are the teacher's."""
        return self.taught is None or modality in self.taught

    def forward(
        self, parts: Sequence[tuple[Segment, Target | FlowTarget | None]], controls: Sequence[Control] = ()
    ) -> dict[str, Float[Tensor, ""]]:
        """The loss and its parts, as those of `ScoreNetworkObjective`, in nats of divergence."""
        if not any(target is not None and self.is_taught(segment.modality) for segment, target in parts):
            return super().forward(parts, controls)
        segments = [segment for segment, _ in parts]
        hidden, _ = self.model.features(segments, controls=controls)
        with torch.no_grad():
            wanted, _ = self.teacher.features(segments, controls=controls)
        losses: Losses = {}
        for features, wanted_features, (segment, target) in zip(hidden, wanted, parts, strict=True):
            if target is None:
                continue
            taught = self.is_taught(segment.modality)
            if taught and not isinstance(target, FlowTarget):
                nats = self.divergence(features, wanted_features, segment.modality, target)
                add_nats(losses, segment, target, *nats)
                continue
            if taught:
                with torch.no_grad():
                    clean = self.teacher.estimate(wanted_features, segment).float()
                target = replace(target, x_0=clean)
            self.add_losses(losses, features, segment, target)
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
