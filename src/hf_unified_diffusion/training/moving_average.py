"""The moving average of a run's weights."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP_POWER = 0.75  # the decay reaches 0.999 after 10,000 steps


class MovingAverage:
    """Exponential moving average of parameters, whose decay grows to `decay` by `1 - (1 + step) ** -0.75`.

    The arithmetic is torch's own, in one call over all tensors; the names and the growing decay are those of diffusers'
    `EMAModel`, which training does not import: a machine that trains from a pack may have no diffusers.

    Usage: `average = MovingAverage(parameters, decay=0.999); average.step(parameters)` after each optimizer step
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.shadow_params = [p.detach().clone() for p in parameters]
        self.decay, self.steps = decay, 0
        self.kept: list[Tensor] | None = None

    def decay_at(self, step: int) -> float:
        """The decay of a step, from 1: zero in the first, so that the average starts at the weights it leaves."""
        return min(1 - float(step) ** -WARMUP_POWER, self.decay)

    @torch.no_grad()
    def step(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move the average towards the parameters."""
        self.steps += 1
        average = get_ema_multi_avg_fn(self.decay_at(self.steps))
        average(self.shadow_params, [p.detach() for p in parameters], self.steps)

    @torch.no_grad()
    def put_into(self, parameters: Sequence[nn.Parameter]) -> None:
        """Keep the parameters' values aside, and give them the average."""
        self.kept = [p.detach().clone() for p in parameters]
        torch._foreach_copy_([p.data for p in parameters], self.shadow_params)

    @torch.no_grad()
    def take_out_of(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give the parameters the values that `put_into` kept.

        Raises:
            RuntimeError: nothing was kept.
        """
        if self.kept is None:
            raise RuntimeError("take_out_of must follow put_into, got nothing kept")
        torch._foreach_copy_([p.data for p in parameters], self.kept)
        self.kept = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self.steps, "shadow_params": self.shadow_params}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state (the step count of `EMAModel` is read too)."""
        self.steps = state["steps"] if "steps" in state else state["optimization_step"]
        self.shadow_params = [
            saved.to(own.device) for saved, own in zip(state["shadow_params"], self.shadow_params, strict=True)
        ]
