"""One round of speaking: a part of each row's text, from noise to tokens, the best of several candidates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Generator, Tensor

from ..codecs.speech_layout import SpeechRow, lay_out, stacked_rows
from ..conditioning.guidance import guided, guided_by_parts, guided_within
from ..contracts import Denoiser
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from ..schedulers.flow_matching import FLOW, FlowRun, plan_flow
from .candidates import excess_losses
from .context_denoiser import ContextDenoiser
from .diffusion_core import AfterStep, diffuse

SHIFT_TOKENS = 100  # 5 s: one shift of the times for all lengths, or rows of a batch would depend on each other
SCORED_TIMES = (0.4, 0.6, 0.8)


def plan_speech(scheduler: SchedulerMixin, num_steps: int, device: torch.device) -> FlowRun:
    """A run for one part; the scheduler itself stays as it is."""
    return plan_flow(scheduler, num_steps, SHIFT_TOKENS, device=device)


@dataclass
class SpeechRound:
    """The rows of a round, each with its branches for guidance.

    Attributes:
        rows: candidates of a row one after the other.
        text_scale, voice_scale: see `guided_by_parts`.
        interval: noise levels at which guidance acts, see `guided_within`.
        eta: how far guidance stretches tokens, see `conditioning.guidance.turned`.
        num_passes: forward passes so far.

    Usage:
        speaking = SpeechRound(model, rows, bos_token_id, 2.0, 2.0, device)
        tokens = speaking.speak(plan_speech(scheduler, 8, device), generators, after_step)
    """

    model: UnifiedDiffusionModel
    rows: Sequence[SpeechRow]
    bos_token_id: int
    text_scale: float
    voice_scale: float
    device: torch.device
    interval: tuple[float, float] = (0.0, 1.0)
    eta: float = 1.0
    _branches: dict[str, ContextDenoiser] = field(default_factory=dict, init=False)

    @property
    def num_passes(self) -> int:
        """Forward passes so far, of all branches."""
        return sum(branch.num_passes for branch in self._branches.values())

    def speak(
        self, run: FlowRun, generators: Sequence[Generator], after_step: AfterStep
    ) -> list[Float[Tensor, "tokens width"]]:
        """The tokens of each row's sound; a row's noise is its generator's, whatever its batch."""
        width = self.model.config.modalities["audio"]["width"]
        noise = [
            FLOW.prior((1, row.num_tokens, width), generator)[0]
            for row, generator in zip(self.rows, generators, strict=True)
        ]
        x_0 = diffuse(self._guided(), run.step, stacked_rows(noise, self.device), run.times, after_step=after_step)
        return self._cut(x_0)

    def scores(self, sounds: Sequence[Float[Tensor, "tokens width"]]) -> list[float]:
        """How much worse the network knows each row's sound with its text than without; lower is better."""
        return excess_losses(self._branch("all"), self._branch("nothing"), sounds, SCORED_TIMES)

    def _guided(self) -> Denoiser:
        everything, nothing = self._asked("all"), self._asked("nothing")
        if all(row.reference is None for row in self.rows):  # the text is all there is
            steered = guided(everything, nothing, self.text_scale, self.eta)
        else:
            scales = self.text_scale, self.voice_scale
            steered = guided_by_parts(everything, self._asked("text"), nothing, *scales, self.eta)
        return guided_within(self.interval, steered, everything)

    def _asked(self, name: str) -> Denoiser:
        """A branch that is laid out when a step first asks it."""
        return lambda x_t, t, condition: self._branch(name)(x_t, t, condition)

    def _branch(self, name: str) -> ContextDenoiser:
        """The network behind a part of what is given, laid out and computed when it is first asked."""
        if name not in self._branches:
            change: dict[str, Callable[[SpeechRow], SpeechRow]] = {
                "all": lambda row: row,
                "text": lambda row: SpeechRow(row.phoneme_ids, row.num_tokens, row.places),
                "nothing": lambda row: SpeechRow((), row.num_tokens),
            }
            layout = lay_out([change[name](row) for row in self.rows], self.bos_token_id, self.device)
            branch = ContextDenoiser(self.model, "audio", context_modality="text")
            branch.remember_segments(layout.contexts)
            branch.place(layout.positions, layout.mask)
            self._branches[name] = branch
        return self._branches[name]

    def _cut(self, values: Float[Tensor, "batch tokens width"]) -> list[Float[Tensor, "tokens width"]]:
        return [value[: row.num_tokens] for value, row in zip(values, self.rows, strict=True)]
