"""The score network behind a growing clean context: what a pipeline calls a denoiser."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..contracts import Condition, Segment
from ..modeling.adapters import per_row
from ..modeling.attention_rule import ContextCache
from ..modeling.control_pass import Control
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel


class ContextDenoiser:
    """A denoiser of canvases that remembers clean tokens.

    Tokens given to `remember` wait for the next pass, which computes them and the canvas at once, so finishing a
    block costs no pass of its own. Later passes read them from the cache.

    Args:
        modality: of the canvases.
        mask_token_id: of canvases of tokens, None for continuous ones.
        context_modality: of the clean tokens; by default that of the canvases.
        condition: what clean tokens and canvases attend to besides, in every pass; one row a row of the batch.
        adapter_names: the LoRA adapter of each row, see `modeling.adapters.per_row`; None: those active for all.

    Attributes:
        cache: keys and values of the context.
        controls: ControlNets at work, with their own keys and values of hint and context.
        num_passes: forward passes so far.
        next_logits: float (B, vocab), the causal prediction of the token after the context; None while there is none.

    Usage:
        denoiser = ContextDenoiser(model, "text", mask_token_id)
        denoiser.remember(prompt_ids)
        logits = denoiser(canvas_ids, t)
    """

    def __init__(
        self,
        model: UnifiedDiffusionModel,
        modality: str,
        mask_token_id: int | None = None,
        context_modality: str | None = None,
        controls: Sequence[Control] = (),
        condition: Condition | None = None,
        adapter_names: Sequence[str] | None = None,
    ):
        self.model, self.modality, self.mask_token_id = model, modality, mask_token_id
        self.context_modality = modality if context_modality is None else context_modality
        self.controls, self.condition, self.adapter_names = tuple(controls), condition, adapter_names
        self.cache = ContextCache()
        self.num_passes = 0
        self.next_logits: Float[Tensor, "batch vocab"] | None = None
        self._waiting: list[Segment] = []
        self._positions: Float[Tensor, "batch length *axes"] | None = None
        self._real: Bool[Tensor, "batch length"] | None = None

    def under(self, control: Control) -> "ContextDenoiser":
        """A denoiser of the same kind, without context yet, under one more ControlNet; see `conditioning.control`."""
        controls = (*self.controls, control)
        kind = (self.modality, self.mask_token_id, self.context_modality)
        return ContextDenoiser(self.model, *kind, controls, self.condition, self.adapter_names)

    @property
    def rows_are_alike(self) -> bool:
        """Whether rows of the same tokens are the same: none has a condition, ControlNet or adapter of its own."""
        return self.condition is None and not self.controls and self.adapter_names is None

    def remember(
        self,
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"] | None = None,
        positions: Float[Tensor, "batch length"] | None = None,
    ) -> None:
        """Let clean tokens join the context with the next pass; `mask` is False at padding."""
        self.remember_segments([Segment(self.context_modality, ids, positions=positions, mask=mask)])

    def remember_segments(self, segments: Sequence[Segment]) -> None:
        """Let clean segments of any modalities join the context with the next pass, in their order.

        Usage: `denoiser.remember_segments(lay_out(rows, bos_token_id).contexts)`
        """
        self._waiting = list(segments)

    def place(
        self,
        positions: Float[Tensor, "batch length *axes"] | None = None,
        real: Bool[Tensor, "batch length"] | None = None,
    ) -> None:
        """Where the canvases to come are, and which of their tokens are real; by default they follow the context."""
        self._positions, self._real = positions, real

    def __call__(
        self, x_t: Shaped[Tensor, "batch length *width"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch length out"]:
        """The clean sample, logits for tokens; for these the network is told the share of masks, as in training."""
        time = t if self.mask_token_id is None else self._share_of_masks(x_t)
        canvas = Segment(self.modality, x_t, time=time, positions=self._positions, mask=self._real)
        return self._forward([canvas], condition)[-1]

    def _share_of_masks(self, x_t: Int[Tensor, "batch length"]) -> Float[Tensor, "batch"]:
        masked = x_t == self.mask_token_id
        if self._real is None:
            return masked.float().mean(dim=1)
        return (masked & self._real).sum(dim=1) / self._real.sum(dim=1).clamp_min(1)

    def keep_rows(self, rows: Int[Tensor, "rows"]) -> None:
        """Go on with some rows of the batch only."""
        self.cache = self.cache.select(rows)
        self.controls = tuple(control.select(rows) for control in self.controls)
        self.condition = None if self.condition is None else self.condition.select(rows)
        self.next_logits = None if self.next_logits is None else self.next_logits[rows]
        if self.adapter_names is not None:
            self.adapter_names = [self.adapter_names[row] for row in rows.tolist()]

    def forget(self, count: Int[Tensor, "batch"]) -> None:
        """Take each row's last `count` tokens back out of the context."""
        for cache in (self.cache, *(control.cache for control in self.controls)):
            forget_last(cache, count)

    def read(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        """Commit clean tokens to the context now; gives the causal prediction of the token after each."""
        self.remember(ids, mask)
        return self._forward([])[-1]

    @property
    def can_look_ahead(self) -> bool:
        """Whether `read_ahead` works: not with ControlNets, whose contexts are longer, nor with an exported graph."""
        return not self.controls and isinstance(self.model, UnifiedDiffusionModel)

    def read_ahead(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None, first: int, size: int
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch prefixes size vocab"]]:
        """`read`, and in the same pass a canvas of `size` masks behind each prefix of the tokens.

        Args:
            first: tokens of the shortest prefix; the longest is all of them.

        Usage: `causal, ahead = denoiser.read_ahead(ids, None, first=1, size=2)`
        """
        batch, device = len(ids), ids.device
        prefixes = torch.arange(first, ids.shape[1] + 1, device=device)
        start = self.cache.next_position
        start = torch.zeros(batch, device=device) if start is None else start
        behind = prefixes[:, None].expand(-1, size)
        places = (behind + torch.arange(size, device=device)).flatten()
        number = torch.arange(1, len(prefixes) + 1, device=device)[:, None].expand(-1, size)
        canvases = Segment(
            self.modality,
            torch.full((batch, len(places)), self.mask_token_id, device=device),
            time=torch.ones(batch, device=device),
            positions=start[:, None] + places,
            canvas=number.flatten().expand(batch, -1),
            reach=(len(self.cache) + behind.flatten()).expand(batch, -1),
        )
        self.remember(ids, mask)
        causal, ahead = self._forward([canvases])
        return causal, ahead.unflatten(1, (len(prefixes), size))

    def _forward(self, canvases: list[Segment], condition: Condition | None = None) -> tuple[Tensor, ...]:
        waiting, self._waiting = self._waiting, []
        condition = self.condition if condition is None else condition
        segments = [*waiting, *canvases]
        options = {"condition": condition, "cache": self.cache, "controls": self.controls}
        with per_row(self.model, self.adapter_names):
            output = self.model(segments=segments, use_cache=bool(waiting), **options)
        self.num_passes += 1
        if waiting and waiting[-1].modality == self.context_modality:
            self.next_logits = last_real(output.predictions[len(waiting) - 1], waiting[-1].mask)
        return output.predictions


def last_real(
    values: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"] | None
) -> Float[Tensor, "batch width"]:
    """The value at each row's last token that is no padding."""
    if mask is None:
        return values[:, -1]
    last = (mask.sum(dim=1) - 1).clamp_min(0)
    return values[torch.arange(len(values), device=values.device), last]


def forget_last(cache: ContextCache, count: Int[Tensor, "batch"]) -> None:
    """Take each row's last `count` real tokens back out of a cache, in place; the cache becomes as short as it can.

    Usage: `forget_last(cache, torch.tensor([3]))`
    """
    batch, length, device = cache.keys[0].shape[0], len(cache), cache.keys[0].device
    document = cache.document
    if document is None:
        document = torch.zeros(batch, length, dtype=torch.int64, device=device)
    real = document >= 0
    kept = real & (real.cumsum(dim=1) <= (real.sum(dim=1) - count)[:, None])
    longest = int(kept.sum(dim=1).max())
    if bool(kept[:, :longest].all()):  # all rows keep the same first tokens
        cache.keys = [key[:, :, :longest] for key in cache.keys]
        cache.values = [value[:, :, :longest] for value in cache.values]
        cache.document = None if cache.document is None else cache.document[:, :longest]
    else:
        order = kept.logical_not().to(torch.int8).argsort(dim=1, stable=True)[:, :longest]
        where = order[:, None, :, None]
        cache.keys = [key.gather(2, where.expand(-1, *key.shape[1:2], -1, key.shape[3])) for key in cache.keys]
        cache.values = [
            value.gather(2, where.expand(-1, *value.shape[1:2], -1, value.shape[3])) for value in cache.values
        ]
        cache.document = document.gather(1, order).masked_fill(~kept.gather(1, order), -1)
    cache.next_position = cache.next_position - count


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """A model without dropout for a while; one in training goes back to it.

    Usage: `with evaluating(model): ...`
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
