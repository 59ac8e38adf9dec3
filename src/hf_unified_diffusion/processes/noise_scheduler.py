"""One face over masks and Gaussian noise, by modality."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Shaped
from torch import Generator, Tensor

from ..contracts import MODALITIES, TOKEN_MODALITIES
from .gaussian import GaussianFlow
from .masked import Masked
from .randomness import Generators
from .times import WARPS, Warp, antithetic_times, time_grid

KINDS = ("token", "continuous")


def _built_in_kinds() -> dict[str, str]:
    return {name: "token" if name in TOKEN_MODALITIES else "continuous" for name in MODALITIES}


@dataclass(frozen=True)
class NoiseScheduler:
    """Corrupts what is trained on: masks for token modalities, Gaussian noise for continuous ones.

    Attributes:
        masked: the process of token modalities.
        gaussian: the process of continuous modalities.
        kinds: modality -> "token" or "continuous"; the built-in modalities by default.

    Raises:
        ValueError: for a kind that is not one; methods raise it for an unknown modality.

    Usage:
        `noise = NoiseScheduler(Masked(mask_token_id), GaussianFlow(COSINE))`
        `t = noise.sample_times(len(x_0), generator)`
        `x_t = noise.corrupt(x_0, "image", t, generator)`
    """

    masked: Masked
    gaussian: GaussianFlow = field(default_factory=GaussianFlow)
    kinds: Mapping[str, str] = field(default_factory=_built_in_kinds)

    def __post_init__(self):
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                raise ValueError(f"kind of modality {name!r} must be one of {sorted(KINDS)}, got {kind!r}")

    def process(self, modality: str) -> Masked | GaussianFlow:
        """The process that corrupts this modality."""
        if modality not in self.kinds:
            raise ValueError(f"modality must be one of {sorted(self.kinds)}, got {modality!r}")
        return self.masked if self.kinds[modality] == "token" else self.gaussian

    def corrupt(
        self,
        x_0: Shaped[Tensor, "batch length *width"],
        modality: str,
        t: Float[Tensor, "batch ..."],
        generator: Generators,
    ) -> Shaped[Tensor, "batch length *width"]:
        """x_t given x_0, by the process of the modality; t is (batch,) or one time per token."""
        return self.process(modality).corrupt(x_0, t, generator)

    def mask_probability(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The probability that a token of a token modality is hidden at t."""
        return self.masked.mask_probability(t)

    def noise_std(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The standard deviation of the noise of a continuous modality at t."""
        return self.gaussian.noise_std(t)

    def network_time(self, modality: str, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What the network is told: the noise level at t, not t, so that it need not know the schedule."""
        return self.process(modality).schedule.noise(t)

    def loss_weight(self, modality: str, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Factor on the error at t: the NELBO's for tokens, the velocity's for continuous modalities."""
        return self.process(modality).loss_weight(t)

    def sample_times(
        self, count: int, generator: Generator, low: float = 0.0, high: float = 1.0
    ) -> Float[Tensor, "count"]:
        """Antithetic times in (low, high] to train at; see `antithetic_times`."""
        return antithetic_times(count, generator, low, high)

    def time_grid(self, num_steps: int, warp: Warp = WARPS["uniform"]) -> Float[Tensor, "edges"]:
        """num_steps + 1 falling times from 1 to 0 to sample at; see `time_grid`."""
        return time_grid(num_steps, warp)
