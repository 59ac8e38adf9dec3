"""diffusers' flow schedulers, stepping by the network's estimate of the clean sample."""

import inspect
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UniPCMultistepScheduler
from jaxtyping import Float
from torch import Generator, Tensor

from ..processes.gaussian import GaussianFlow
from ..processes.times import time_grid
from .checks import check_integer

FLOW = GaussianFlow()
# of pictures: 16 tokens (128 pixels a side at 32 pixels a token) have the shift 1, and 256 tokens 4
SHIFTS = {"base_shift": 0.0, "base_image_seq_len": 16, "max_shift": math.log(4), "max_image_seq_len": 256}


def flow_scheduler(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    """diffusers' Euler scheduler with times shifted by the number of tokens.

    A picture of `base_image_seq_len` tokens has the shift exp(base_shift), one of `max_image_seq_len` exp(max_shift),
    and the exponents of others lie on the line through both: more tokens say more about each other, so that it takes
    more noise to hide as much (arXiv:2403.03206, section 5.3.2).

    Args:
        config: of `FlowMatchEulerDiscreteScheduler`, instead of these settings.

    Usage: `scheduler = flow_scheduler(use_dynamic_shifting=False, shift=3.0)`
    """
    return FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **SHIFTS, **config})


def picture_scheduler(**config: Any) -> UniPCMultistepScheduler:
    """diffusers' UniPC (arXiv:2302.04867) for flows, with the times of `flow_scheduler`.

    Each step looks back at the one before it, and corrects that by what it finds: ten steps come nearer to the flow's
    own end than sixteen of Euler's method (docs/decisions/0027).

    Args:
        config: of `UniPCMultistepScheduler`, instead of these settings.

    Usage: `scheduler = picture_scheduler()`
    """
    ours = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    return UniPCMultistepScheduler(**{**ours, **config})


def speech_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """diffusers' Euler scheduler with more of its steps where there is much noise: there words are decided.

    Usage: `scheduler = speech_scheduler()`
    """
    return flow_scheduler(use_dynamic_shifting=False, shift=4.0)


def log_shift(config: Mapping[str, Any], num_tokens: int) -> float:
    """The logarithm of the shift that a scheduler's config gives a sample of so many tokens (diffusers' `mu`).

    Of schedulers that shift without saying how (UniPC's config has no place for it) it is that of `SHIFTS`.
    """
    config = {**SHIFTS, **config}
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (num_tokens - low) / (high - low)
    return config["base_shift"] + share * (config["max_shift"] - config["base_shift"])


@dataclass
class FlowRun:
    """One run of a flow scheduler of diffusers: `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`,
    `FlowMapEulerDiscreteScheduler`, `UniPCMultistepScheduler` or any other that takes velocities and tells its sigmas.

    Attributes:
        scheduler: planned, and of this run alone.
        first: index of the first of its steps that is taken.
        generators: for schedulers that draw.
        times: float32 (steps,), the noise level of each step, falling in (0, 1]; what `diffuse` goes through.

    Usage:
        run = plan_flow(scheduler, num_steps=16, num_tokens=256)
        x_0 = diffuse(denoiser, run.step, x_1, run.times)
    """

    scheduler: SchedulerMixin
    first: int = 0
    generators: Sequence[Generator] = ()
    times: Float[Tensor, "steps"] = field(init=False)

    def __post_init__(self) -> None:
        times = self.scheduler.sigmas[self.first : len(self.scheduler.timesteps)].float()
        # UniPC begins 1e-6 below 1, as it takes logarithms of what is left: to the network that is 1
        self.times = torch.where(times > 1 - 1e-5, 1.0, times)
        self.scheduler.set_begin_index(self.first)
        self._next, self._last = self.first, None
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        self._options = {"generator": list(self.generators)} if draws and self.generators else {}

    @property
    def timesteps(self) -> Float[Tensor, "steps"]:
        """The times under the scheduler's own names for them."""
        return self.scheduler.timesteps[self.first :]

    def step(self, clean: Tensor, t: Float[Tensor, ""], x_t: Tensor) -> Tensor:
        """x at the next time, from the estimate of the clean sample; float32."""
        velocity = FLOW.velocity(clean.float(), x_t, t.expand(len(x_t)))
        timestep = self.scheduler.timesteps[self._next]
        self._next += 1
        was_moved = self._last is not None and not torch.equal(x_t, self._last)
        if was_moved and hasattr(self.scheduler, "last_sample"):
            self.scheduler.last_sample = None  # the corrector would take back what somebody else did
        self._last = self.scheduler.step(velocity, timestep, x_t, return_dict=False, **self._options)[0]
        return self._last


def plan_flow(
    scheduler: SchedulerMixin,
    num_steps: int,
    num_tokens: int,
    strength: float = 1.0,
    generators: Sequence[Generator] = (),
    device: str | torch.device = "cpu",
) -> FlowRun:
    """Plan a run; the scheduler itself stays as it is.

    Args:
        num_steps: at least 1; Heun's method asks the network twice for each but the last.
        num_tokens: of a sample, for schedulers whose config says `use_dynamic_shifting`.
        strength: in [0, 1], the share of the steps that is taken, the last ones; 0 takes none.

    Raises:
        ValueError: for a scheduler that does not step along flows, or `num_steps` below 1.

    Usage: `run = plan_flow(flow_scheduler(), 16, 256)`
    """
    check_integer(num_steps, "num_inference_steps", 1)
    check_velocity(scheduler)
    scheduler, config = deepcopy(scheduler), scheduler.config
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    plan: dict[str, Any] = {"num_inference_steps": num_steps}
    if "sigmas" in accepted:  # else some end with a step that hardly denoises
        plan["sigmas"] = time_grid(num_steps)[:-1].numpy()
    if config.get("use_dynamic_shifting", False):
        mu = log_shift(config, num_tokens)
        if "mu" in accepted:
            plan["mu"] = mu
        else:  # a scheduler that took over the config of one that shifts by tokens
            scheduler.register_to_config(shift=math.exp(mu))
    scheduler.set_timesteps(device=device, **plan)
    check_levels(scheduler)
    skipped = num_steps - min(math.ceil(num_steps * strength), num_steps)
    steps_each = -(-len(scheduler.timesteps) // num_steps)  # Heun: 2 n - 1 timesteps for n steps
    return FlowRun(scheduler, min(skipped * steps_each, len(scheduler.timesteps)), generators)


def check_velocity(scheduler: SchedulerMixin) -> None:
    """Raise ValueError unless a scheduler takes velocities and tells its noise levels."""
    predicts = scheduler.config.get("prediction_type", "flow_prediction")
    if predicts != "flow_prediction" or not hasattr(scheduler, "sigmas"):
        raise ValueError(
            "scheduler must be one of flow matching, such as FlowMatchEulerDiscreteScheduler, "
            f"got {type(scheduler).__name__} with prediction_type={predicts!r}"
        )


def check_levels(scheduler: SchedulerMixin) -> None:
    """Raise ValueError unless the noise levels of a planned scheduler fall from at most 1 to 0."""
    levels = torch.as_tensor(scheduler.sigmas)
    if not bool((levels.diff() <= 0).all() and 0 < levels[0] <= 1 and levels[-1] == 0):
        name = type(scheduler).__name__
        raise ValueError(f"sigmas of the scheduler must fall from at most 1 to 0, got {levels.tolist()} of {name}")
