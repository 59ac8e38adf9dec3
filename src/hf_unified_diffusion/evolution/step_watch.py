"""What is seen of each denoising step: how long it took, and how sure the network was."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from torch import Tensor


class StepWatch:
    """What the engine sees of each denoising step: its time, and how sure the network was.

    Attributes:
        step_ms: milliseconds of each step.
        uncertainty: mean entropy in nats of the network's predictions for the canvas, at each step.
    """

    def __init__(self, step: Callable[[], None], callback: Callable | None, measured: bool):
        self.step, self.callback, self.measured = step, callback, measured
        self.step_ms: list[float] = []
        self.uncertainty: list[float] = []
        self._last = perf_counter()

    def callback_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's arguments for being watched; takes the caller's own names out of `options`."""
        names = options.pop("callback_on_step_end_tensor_inputs", None)
        if self.measured:
            names = tuple(dict.fromkeys((*(names or ("sample",)), "logits")))
        watched: dict[str, Any] = {"callback_on_step_end": self}
        return watched if names is None else {**watched, "callback_on_step_end_tensor_inputs": names}

    def __call__(self, pipe: Any, index: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Called by the pipeline after each step."""
        self.step()
        now = perf_counter()
        self.step_ms.append(1000 * (now - self._last))
        if self.measured:
            log_probs = tensors["logits"].float().log_softmax(dim=-1)
            entropy = -(log_probs.exp() * log_probs).nan_to_num().sum(dim=-1)
            self.uncertainty.append(entropy.mean().item())
        self._last = perf_counter()
        return tensors if self.callback is None else self.callback(pipe, index, t, tensors)
