"""Filling canvases of tokens: what the text pipelines share between their calls of the loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from ..contracts import Denoiser
from ..schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler
from .constrained_rows import ConstrainedRows
from .diffusion_core import diffuse

# (step index, t, canvas, logits) -> the canvas to go on with, and whether to
OnStep = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, bool]]


@dataclass
class CanvasFiller:
    """Fills canvases of masks by a scheduler, one generator a row, and closes rows at their end token.

    Attributes:
        scheduler: with the settings of this request.
        generators: one per row.
        end_token_ids: tokens that end a row; none for canvases of fixed length.
        pad_token_id: what follows an end.
        on_step: called after each step.
        constrained: the rows as a constraint sees them, None without one.
        num_steps: steps so far.
        draft_logits: float (B, n, vocab), what the last step drew tokens from.
    """

    scheduler: MaskedDiffusionScheduler
    generators: Sequence[Generator]
    end_token_ids: Sequence[int]
    pad_token_id: int
    on_step: OnStep
    constrained: ConstrainedRows | None = None
    num_steps: int = 0
    draft_logits: Tensor | None = field(default=None, init=False)

    def fill(
        self,
        denoiser: Denoiser,
        canvas: Int[Tensor, "batch length"],
        open_tokens: Bool[Tensor, "batch length"],
        num_steps: int,
    ) -> Int[Tensor, "batch length"]:
        """The canvas without masks; only `open_tokens` change. Masks stay only where `on_step` broke off."""
        scheduler, mask_token_id = self.scheduler, self.scheduler.config.mask_token_id
        scheduler.set_timesteps(num_steps, device=canvas.device)
        confidence: Float[Tensor, "batch length"] | None = None

        def step(clean: Tensor, t: Tensor, x_t: Tensor) -> Tensor:
            nonlocal confidence
            proposal = None
            if self.constrained is not None:
                clean, proposal = self.constrained.condition(clean, x_t, self.generators)
            options = {"confidence": confidence, "generator": self.generators, "proposal": proposal}
            output = scheduler.step(clean, t, x_t, canvas_mask=open_tokens, **options)
            confidence, self.draft_logits = output.confidence, output.pred_logits
            return output.prev_sample

        def after_step(t: Tensor, x_t: Tensor, clean: Tensor) -> tuple[Tensor, bool]:
            nonlocal open_tokens
            x_t, goes_on = self.on_step(self.num_steps, t, x_t, clean)
            self.num_steps += 1
            ended = self.ends(x_t)[0]
            x_t, open_tokens = self.close(x_t, open_tokens), open_tokens & ~ended[:, None]
            return x_t, goes_on and bool(((x_t == mask_token_id) & open_tokens).any())

        return diffuse(denoiser, step, canvas, scheduler.timesteps, after_step=after_step)

    def ends(self, canvas: Int[Tensor, "batch length"]) -> tuple[Bool[Tensor, "batch"], Int[Tensor, "batch"]]:
        """Whether a row has its end token with all before it written, and how many tokens precede that or a mask."""
        stops = torch.tensor(self.end_token_ids, dtype=canvas.dtype, device=canvas.device)
        first_end = first_true(torch.isin(canvas, stops))
        first_mask = first_true(canvas == self.scheduler.config.mask_token_id)
        return first_end < first_mask, torch.minimum(first_end, first_mask)

    def close(
        self, canvas: Int[Tensor, "batch length"], open_tokens: Bool[Tensor, "batch length"]
    ) -> Int[Tensor, "batch length"]:
        """Padding instead of whatever follows the end of an ended row."""
        ended, length = self.ends(canvas)
        after = torch.arange(canvas.shape[1], device=canvas.device) > length[:, None]
        return canvas.masked_fill(ended[:, None] & after & open_tokens, self.pad_token_id)


def first_true(holds: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch"]:
    """Where a row is first True; its length if nowhere."""
    return torch.where(holds.any(dim=1), holds.long().argmax(dim=1), holds.shape[1])
