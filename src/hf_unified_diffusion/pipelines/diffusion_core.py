"""The one loop. It knows no modality, no guidance, no memory: those are inside the denoiser and the step."""

from collections.abc import Callable

from jaxtyping import Float, Shaped
from torch import Tensor

from ..contracts import Condition, Denoiser

Sample = Shaped[Tensor, "batch *shape"]
# (clean, t, x_t) -> x_s, a scheduler's step with its settings bound
Step = Callable[[Tensor, Float[Tensor, ""], Sample], Sample]
# (t, x_s, clean) -> x_s as the loop goes on with it, and whether it does
AfterStep = Callable[[Float[Tensor, ""], Sample, Tensor], tuple[Sample, bool]]


def diffuse(
    denoiser: Denoiser,
    step: Step,
    x_t: Sample,
    timesteps: Float[Tensor, "steps"],
    condition: Condition | None = None,
    after_step: AfterStep | None = None,
) -> Sample:
    """From noise to a sample: ask what is clean, step, repeat.

    Args:
        denoiser: (x_t, t (B,), condition) -> estimate of the clean sample.
        step: (clean, t, x_t) -> x_s, the sample at the next time.
        x_t: a sample of the prior, or a partly clean one.
        timesteps: falling times in (0, 1], one per step.
        condition: handed to the denoiser.
        after_step: (t, x_s, clean) -> (x_s, whether to go on); may change the sample, or end the loop.

    Usage:
        step = lambda clean, t, x_t: scheduler.step(clean, t, x_t).prev_sample
        x_0 = diffuse(denoiser, step, x_1, scheduler.timesteps)
    """
    for t in timesteps:
        clean = denoiser(x_t, t.expand(x_t.shape[0]), condition)
        x_t = step(clean, t, x_t)
        if after_step is not None:
            x_t, goes_on = after_step(t, x_t, clean)
            if not goes_on:
                break
    return x_t
