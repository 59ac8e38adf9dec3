"""Two growing contexts as one, guided: what one of them has read more is exaggerated, on canvases and causally."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..conditioning.guidance import pushed_away
from ..contracts import Condition
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .context_denoiser import ContextDenoiser


class GuidedContext:
    """A denoiser with a memory of clean tokens, pushed away from one that has read less: null + scale (context - null).

    With a negative prompt this is classifier-free guidance (arXiv:2207.12598), with a context that only one has read
    context-aware decoding (arXiv:2305.14739). The causal predictions, by which drafts are checked, are guided alike.
    Both remember the same from now on; what they begin with is given to each before.

    Args:
        context: has read all.
        null: has read less; ControlNets and conditions may be missing too.
        scale: 1 is the context alone, 0 the null, above 1 exaggerates.

    Usage:
        denoiser = GuidedContext(context, null, scale=2.0)
        logits = denoiser(canvas_ids, t)
    """

    def __init__(self, context: "ContextDenoiser | GuidedContext", null: ContextDenoiser, scale: float):
        self.context, self.null, self.scale = context, null, scale

    @property
    def model(self) -> UnifiedDiffusionModel:
        """The network."""
        return self.context.model

    @property
    def num_passes(self) -> int:
        """Forward passes of both so far."""
        return self.context.num_passes + self.null.num_passes

    @property
    def next_logits(self) -> Float[Tensor, "batch vocab"] | None:
        """The causal prediction of the token after the context; unguided where the null has read nothing yet."""
        clean, null = self.context.next_logits, self.null.next_logits
        return clean if clean is None or null is None else self._mix(clean, null)

    def __call__(
        self, x_t: Int[Tensor, "batch length"], t: Float[Tensor, "batch"], condition: Condition | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        """Guided logits of a canvas; the null never sees the condition."""
        return self._mix(self.context(x_t, t, condition), self.null(x_t, t, None))

    def remember(self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None = None) -> None:
        """Let clean tokens join both contexts with the next pass; `mask` is False at padding."""
        self.context.remember(ids, mask)
        self.null.remember(ids, mask)

    def place(self, real: Bool[Tensor, "batch length"] | None = None) -> None:
        """Which tokens of the canvases to come are real."""
        self.context.place(real=real)
        self.null.place(real=real)

    def keep_rows(self, rows: Int[Tensor, "rows"]) -> None:
        """Go on with some rows of the batch only."""
        self.context.keep_rows(rows)
        self.null.keep_rows(rows)

    def forget(self, count: Int[Tensor, "batch"]) -> None:
        """Take each row's last `count` tokens back out of both contexts."""
        self.context.forget(count)
        self.null.forget(count)

    def read(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        """Commit clean tokens to both contexts now; gives the guided causal prediction of the token after each."""
        return self._mix(self.context.read(ids, mask), self.null.read(ids, mask))

    @property
    def can_look_ahead(self) -> bool:
        """See `ContextDenoiser`."""
        return self.context.can_look_ahead and self.null.can_look_ahead

    def read_ahead(
        self, ids: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None, first: int, size: int
    ) -> tuple[Float[Tensor, "batch length vocab"], Float[Tensor, "batch prefixes size vocab"]]:
        """See `ContextDenoiser`; both are guided."""
        clean, null = (one.read_ahead(ids, mask, first, size) for one in (self.context, self.null))
        return self._mix(clean[0], null[0]), self._mix(clean[1], null[1])

    def _mix(self, clean: Tensor, null: Tensor) -> Tensor:
        return pushed_away(clean.float(), null.float(), self.scale)
