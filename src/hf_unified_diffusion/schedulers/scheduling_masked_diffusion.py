"""The diffusers face of masked diffusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..hub import CardFacts, PushMixin
from ..processes.randomness import Generators, check_rows, uniform
from ..processes.schedules import find_schedule
from ..processes.times import find_warp, time_grid
from . import checks
from .commit import draw_remasked, entropy_bounded_count, planned_masks, ranks
from .draw import draw_masks


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: the canvas at the next timestep, dtype of the sample (batch, length).
        pred_original_sample: the clean canvas as drawn now: visible tokens kept, every mask filled, same dtype.
        pred_logits: the distribution that tokens were drawn from (after temperature, top-k and top-p, without the mask
            token) at masked positions, the model's own elsewhere; float (batch, length, vocab).
        confidence: the model's probability of the token drawn at masked positions; at visible ones what was passed in,
            else 1; float32 in [0, 1] (batch, length). Give it to the next step when remasking.
        entropy: of the model's distribution at masked positions, in nats, 0 elsewhere; float32 (batch, length).
        uncertainty: mean entropy of a row's masks over that of a uniform guess, in [0, 1]; float32 (batch,).
        committed: masks that became tokens in this step; bool (batch, length).
        remasked: tokens that became masks in this step; bool (batch, length).
    """

    prev_sample: Int[Tensor, "batch length"]
    pred_original_sample: Int[Tensor, "batch length"]
    pred_logits: Float[Tensor, "batch length vocab"]
    confidence: Float[Tensor, "batch length"]
    entropy: Float[Tensor, "batch length"]
    uncertainty: Float[Tensor, "batch"]
    committed: Bool[Tensor, "batch length"]
    remasked: Bool[Tensor, "batch length"]


class MaskedDiffusionScheduler(PushMixin, SchedulerMixin, ConfigMixin):
    """Uncovers a canvas of masks step by step (arXiv:2406.07524), the surest tokens first.

    `timesteps` are mask probabilities in (0, 1], falling: what the network is told as its time. A step from one to the
    next (after the last: 0) leaves that share of a row's masks, rounded, and commits at least one token while any is
    masked, so that no mask is left after the last step. `entropy_bound` or `confidence_threshold` commit more than the
    plan where the model is sure; with as many steps as masks the plan is one token and they alone decide.

    A row's result depends on that row alone if it has its own generator (`spawn_generators`). One generator for a
    batch serves its rows in turn, so that what a row draws depends on the rows before it.

    Args:
        mask_token_id: id of the mask token.
        num_inference_steps: steps until `set_timesteps` says otherwise.
        schedule: "linear", "cosine" or "log_linear", or (time, mask probability) points of a custom one.
        spacing: "uniform", "quadratic" or "cosine" times.
        ordering: "confidence", "margin", "entropy" or "random": which masks come first.
        temperature: of the drawn tokens; 0 takes the likeliest. Ordering looks at the model's own distribution.
        top_k: how many tokens may be drawn; 0 for all.
        top_p: the mass of the tokens that may be drawn, in (0, 1].
        entropy_bound: nats of information that tokens committed together may share (arXiv:2505.24857), or None.
        confidence_threshold: tokens with a higher probability are committed at once (arXiv:2505.22618), or None.
        remask_rate: share of committed tokens hidden again in each step (ReMDM, arXiv:2503.00307); `canvas_mask` must
            then say which positions are not given. The plan may then be to commit none.

    Raises:
        ValueError: for settings out of range.

    Usage:
        `scheduler = MaskedDiffusionScheduler(mask_token_id=9); scheduler.set_timesteps(8)`
        `for t in scheduler.timesteps: sample = scheduler.step(model(sample, t), t, sample).prev_sample`
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        num_inference_steps: int = 16,
        schedule: str | Sequence[Sequence[float]] = "linear",
        spacing: str = "uniform",
        ordering: str = "confidence",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        entropy_bound: float | None = None,
        confidence_threshold: float | None = None,
        remask_rate: float = 0.0,
    ):
        checks.check_integer(mask_token_id, "mask_token_id", 0)
        checks.check_sampling(temperature, top_k, top_p)
        checks.check_committing(ordering, entropy_bound, confidence_threshold, remask_rate)
        self._schedule, self._warp = find_schedule(schedule), find_warp(spacing)
        self.set_timesteps(num_inference_steps)

    def card_facts(self) -> CardFacts:
        """The settings."""
        return CardFacts(
            what="Settings of a scheduler of masked diffusion.",
            usage="from hf_unified_diffusion import MaskedDiffusionScheduler\n\n"
            'scheduler = MaskedDiffusionScheduler.from_pretrained("{repo_id}")',
            numbers={key: value for key, value in self.config.items() if not key.startswith("_")},
        )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Plan the steps: how many, or the exact mask probabilities.

        Args:
            num_inference_steps: at least 1; leave out when `timesteps` are given.
            device: where `self.timesteps` (float32) lives.
            timesteps: mask probabilities in (0, 1], strictly falling.

        Raises:
            ValueError: for steps or timesteps out of range, or both given.
        """
        if timesteps is None:
            num_steps = checks.check_integer(num_inference_steps, "num_inference_steps", 1)
            levels = self._schedule.noise(time_grid(num_steps, self._warp))[:-1].tolist()
        elif num_inference_steps is not None:
            raise ValueError(f"num_inference_steps must be None when timesteps are given, got {num_inference_steps}")
        else:
            levels = [float(t) for t in timesteps]
        checks.check_timesteps(levels)
        self.num_inference_steps = len(levels)
        self.timesteps = torch.tensor(levels, dtype=torch.float32, device=device)
        self._levels = [*levels, 0.0]
        self._masks_left: Tensor | None = None

    @property
    def all_committed(self) -> bool:
        """Whether the last step left no mask in any row: the loop may stop early."""
        return self._masks_left is not None and not bool(self._masks_left)

    def mask_fraction(
        self, sample: Int[Tensor, "batch length"], canvas_mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch"]:
        """The share of each row's canvas that is masked, float32 in [0, 1].

        The time to tell the network when tokens are committed ahead of the plan, where rows differ.

        Usage: `logits = model(sample, timestep=scheduler.mask_fraction(sample, canvas_mask)).logits`
        """
        canvas = torch.ones_like(sample, dtype=torch.bool) if canvas_mask is None else canvas_mask
        masked = (sample == self.config.mask_token_id) & canvas
        return masked.sum(1) / canvas.sum(1).clamp_min(1)

    @torch.no_grad()
    def step(
        self,
        model_output: Float[Tensor, "batch length vocab"],
        timestep: float | Float[Tensor, ""],
        sample: Int[Tensor, "batch length"],
        *,
        canvas_mask: Bool[Tensor, "batch length"] | None = None,
        confidence: Float[Tensor, "batch length"] | None = None,
        generator: Generators | None = None,
        proposal: Int[Tensor, "batch length"] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        """Draw a token for every mask and commit the planned ones, or more where the model is sure.

        Args:
            model_output: logits of the clean tokens; the mask token's are ignored.
            timestep: one of `self.timesteps`.
            sample: the canvas, int64 or int32.
            canvas_mask: True where tokens are generated; others are never touched, masks or not. Default: everywhere.
            confidence: `confidence` of the previous step; remasking then prefers what was least sure.
            generator: one, or one per row; None draws from torch's global one.
            proposal: a clean canvas like the sample whose tokens were drawn together; masks become its tokens, and
                confidence and order are still those of model_output.
            temperature, top_k, top_p: for this step instead of the config's.
            return_dict: False gives the fields of the output as a tuple.

        Raises:
            ValueError: for wrong dtypes or shapes, a timestep that is not planned, logits that are NaN or leave no
                token possible, sampling settings out of range, or remasking without canvas_mask.
        """
        config = self.config
        settings = (
            config.temperature if temperature is None else temperature,
            config.top_k if top_k is None else top_k,
            config.top_p if top_p is None else top_p,
        )
        self._check_step(model_output, sample, canvas_mask, confidence, proposal, generator)
        checks.check_sampling(*settings)
        level, next_level = self._levels_at(timestep)
        canvas = torch.ones_like(sample, dtype=torch.bool) if canvas_mask is None else canvas_mask
        masked = (sample == config.mask_token_id) & canvas
        draw = draw_masks(model_output, masked, config.mask_token_id, config.ordering, settings, generator, proposal)

        kept = torch.ones(sample.shape, device=sample.device) if confidence is None else confidence.float()
        sureness = _with_rows(kept, masked, draw.confidence)
        entropy = _with_rows(torch.zeros_like(sureness), masked, draw.entropy)
        masks_next = planned_masks(masked.sum(1), level, next_level)
        remasked = self._choose_remasked(canvas & ~masked, sureness, masks_next, generator)
        committed = self._choose_committed(masked, draw.scores, sureness, entropy, masks_next - remasked.sum(1))

        clean = _with_rows(sample, masked, draw.tokens)
        prev_sample = torch.where(committed, clean, sample).masked_fill(remasked, config.mask_token_id)
        self._masks_left = ((prev_sample == config.mask_token_id) & canvas).any()
        guess = torch.tensor(model_output.shape[-1] - 1, device=sample.device).clamp_min(2).log()
        output = MaskedDiffusionSchedulerOutput(
            prev_sample=prev_sample,
            pred_original_sample=clean,
            pred_logits=_with_rows(model_output, masked, draw.logits),
            confidence=sureness,
            entropy=entropy,
            uncertainty=entropy.sum(1) / masked.sum(1).clamp_min(1) / guess,
            committed=committed,
            remasked=remasked,
        )
        return output if return_dict else output.to_tuple()

    def add_noise(
        self,
        original_samples: Int[Tensor, "batch length"],
        noise: Float[Tensor, "batch length"] | Generators,
        timesteps: Float[Tensor, "batch"],
        canvas_mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Int[Tensor, "batch length"]:
        """Hide each token of the canvas with its row's probability.

        Args:
            original_samples: clean tokens, int64 or int32.
            noise: numbers in [0, 1), one per token, or the generator (or one per row) to draw them.
            timesteps: mask probabilities in (0, 1].
            canvas_mask: True where tokens may be hidden. Default: everywhere.

        Raises:
            ValueError: for wrong dtypes or shapes, or timesteps outside (0, 1].

        Usage: `noisy = scheduler.add_noise(ids, generator, torch.full((len(ids),), 0.5))`
        """
        checks.check_sample(original_samples)
        checks.check_like_sample(canvas_mask, original_samples, "canvas_mask", floating=False)
        if timesteps.shape != original_samples.shape[:1] or not timesteps.is_floating_point():
            raise ValueError(f"timesteps must be float (batch,), got {timesteps.dtype} {tuple(timesteps.shape)}")
        if not ((timesteps > 0) & (timesteps <= 1)).all():
            raise ValueError(f"timesteps must be in (0, 1], got {timesteps.tolist()}")
        if not isinstance(noise, Tensor):
            noise = uniform(tuple(original_samples.shape), noise, original_samples.device)
        checks.check_like_sample(noise, original_samples, "noise", floating=True)
        hidden = noise < timesteps[:, None]
        if canvas_mask is not None:
            hidden &= canvas_mask
        return original_samples.masked_fill(hidden, self.config.mask_token_id)

    def _check_step(self, model_output, sample, canvas_mask, confidence, proposal, generator) -> None:
        checks.check_sample(sample)
        checks.check_proposal(proposal, sample)
        checks.check_logits(model_output, sample, self.config.mask_token_id)
        checks.check_like_sample(canvas_mask, sample, "canvas_mask", floating=False)
        checks.check_like_sample(confidence, sample, "confidence", floating=True)
        check_rows(generator, len(sample))
        rate = self.config.remask_rate
        if rate > 0 and canvas_mask is None:
            raise ValueError(f"canvas_mask must say which tokens are not given when remask_rate is {rate}, got None")

    def _levels_at(self, timestep: float | Tensor) -> tuple[float, float]:
        """The mask probabilities that a step runs between, in float64."""
        t = float(timestep)
        if not 0 < t <= 1:
            raise ValueError(f"timestep must be in (0, 1], got {t}")
        step = min(range(self.num_inference_steps), key=lambda i: abs(self._levels[i] - t))
        if abs(self._levels[step] - t) > 1e-6:
            raise ValueError(f"timestep must be one of scheduler.timesteps {self.timesteps.tolist()}, got {t}")
        return self._levels[step], self._levels[step + 1]

    def _choose_remasked(self, visible: Tensor, confidence: Tensor, most: Tensor, generator) -> Tensor:
        if self.config.remask_rate == 0:
            return torch.zeros_like(visible)
        return draw_remasked(visible, confidence, self.config.remask_rate, most, generator)

    def _choose_committed(
        self, masked: Tensor, scores: Tensor, confidence: Tensor, entropy: Tensor, still_masked: Tensor
    ) -> Tensor:
        """The masks that become tokens; `still_masked` is how many of a row's the plan leaves."""
        grid = torch.full(masked.shape, -torch.inf, dtype=scores.dtype, device=masked.device)
        rank = ranks(_with_rows(grid, masked, scores))
        count = masked.sum(1) - still_masked
        if self.config.remask_rate == 0:
            count = count.clamp_min(1)  # a step that commits nothing would only repeat itself
        if self.config.entropy_bound is not None:
            count = torch.maximum(count, entropy_bounded_count(entropy, rank, masked, self.config.entropy_bound))
        committed = rank < count[:, None]
        if self.config.confidence_threshold is not None:
            committed |= confidence > self.config.confidence_threshold
        return committed & masked


def _with_rows(grid: Tensor, masked: Tensor, entries: Tensor) -> Tensor:
    """A copy of grid with `entries` at the masked positions, in row-major order."""
    filled = grid.clone()
    filled[masked] = entries.to(grid.dtype)
    return filled
