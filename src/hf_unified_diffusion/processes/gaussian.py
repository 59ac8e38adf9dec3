"""Flow matching: a straight line from the clean sample to Gaussian noise."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .checks import check_continuous, check_interval, check_time, over
from .randomness import Generators, first_of, normal
from .schedules import LINEAR, Schedule

Sample = Float[Tensor, "batch *shape"]


@dataclass(frozen=True)
class GaussianFlow:
    """x_t = (1 - sigma) x_0 + sigma noise with sigma = noise(t) (arXiv:2209.03003; arXiv:2210.02747).

    The network predicts x_0; `velocity` and `clean` convert to and from dx/dsigma = noise - x_0. Times are float
    tensors, (batch,) or with more leading axes of the sample, when tokens have their own.

    Attributes:
        schedule: standard deviation of the noise as a function of time.

    Raises:
        ValueError: by its methods, for wrong shapes, dtypes and times.

    Usage: `x_t = GaussianFlow().corrupt(latents, t, generator)`
    """

    schedule: Schedule = LINEAR

    def noise_std(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The standard deviation of the noise in x_t, the factor on it."""
        return self.schedule.noise(t)

    def signal(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The factor on x_0 in x_t."""
        return self.schedule.signal(t)

    def prior(self, shape: tuple[int, ...], generator: Generators) -> Sample:
        """x_1, standard normal, float32, on the generator's device."""
        return normal(shape, generator, first_of(generator).device)

    def corrupt(self, x_0: Sample, t: Float[Tensor, "batch ..."], generator: Generators) -> Sample:
        """A point on the line from x_0 to fresh noise; the dtype is that of x_0."""
        check_continuous(x_0, "x_0")
        check_time(t, x_0)
        sigma = over(self.noise_std(t), x_0)
        x_t = (1 - sigma) * x_0 + sigma * normal(tuple(x_0.shape), generator, x_0.device)
        return x_t.to(x_0.dtype)

    def reverse(
        self,
        clean: Sample,
        x_t: Sample,
        t: Float[Tensor, "batch ..."],
        s: Float[Tensor, "batch ..."],
        generator: Generators,
    ) -> Sample:
        """Go along the line through x_t and `clean` from t to s: one Euler step, exact if `clean` is.

        It draws nothing; the generator is there because every process has one.
        """
        check_continuous(x_t, "x_t")
        check_interval(t, s, x_t)
        sigma_t, sigma_s = over(self.noise_std(t), x_t), over(self.noise_std(s), x_t)
        x_s = clean + (sigma_s / sigma_t) * (x_t - clean)
        return x_s.to(x_t.dtype)

    def loss(self, clean: Sample, x_0: Sample, x_t: Sample, t: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch"]:
        """Mean squared error of the predicted x_0, per sample."""
        check_time(t, x_t)
        return (clean - x_0).square().flatten(1).mean(1)

    def loss_weight(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The factor that turns the error of x_0 into the error of the velocity, 1 / sigma^2; infinite at t=0."""
        return self.noise_std(t).pow(-2)

    def velocity(self, clean: Sample, x_t: Sample, t: Float[Tensor, "batch ..."]) -> Sample:
        """dx/dsigma along the line through `clean` and x_t: (x_t - clean) / sigma, for t above 0."""
        check_interval(t, t, x_t)
        return (x_t - clean) / over(self.noise_std(t), x_t)

    def clean(self, velocity: Sample, x_t: Sample, t: Float[Tensor, "batch ..."]) -> Sample:
        """The x_0 that a velocity points away from: x_t - sigma velocity."""
        check_time(t, x_t)
        return x_t - over(self.noise_std(t), x_t) * velocity

    def noise(self, clean: Sample, x_t: Sample, t: Float[Tensor, "batch ..."]) -> Sample:
        """The noise at the far end of the line through `clean` and x_t, for t above 0."""
        return clean + self.velocity(clean, x_t, t)
