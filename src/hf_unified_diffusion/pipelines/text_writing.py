"""Writing: block after block, by checked drafts, or one canvas between given tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..codecs.text_codec import pad_right
from ..conditioning.guidance import beginning_with
from ..contracts import Condition, Denoiser
from .canvas_filling import CanvasFiller
from .context_denoiser import ContextDenoiser
from .draft_check import Sampling, Verdict, check_draft
from .guided_context import GuidedContext
from .text_inputs import LONGEST_AHEAD
from .text_rows import RowWriter

Allowed = Bool[Tensor, "batch vocab"]
Context = ContextDenoiser | GuidedContext


def remember_rows(denoiser: ContextDenoiser, rows: list[list[int]], pad_token_id: int, device: torch.device) -> None:
    """Give a denoiser each row's tokens as context; nothing where all rows are empty.

    Candidates begin alike: what several rows share is computed once, in a pass of its own.
    """
    if not any(rows):
        return
    alike = {tuple(row): number for number, row in enumerate(dict.fromkeys(map(tuple, rows)))}
    if len(alike) == len(rows) or not denoiser.rows_are_alike:
        denoiser.remember(*pad_right(rows, pad_token_id, device))
        return
    denoiser.read(*pad_right([list(row) for row in alike], pad_token_id, device))
    denoiser.keep_rows(torch.tensor([alike[tuple(row)] for row in rows], device=device))


def place_between(
    context: ContextDenoiser,
    read_ids: list[list[int]],
    suffix_ids: list[list[int]],
    length: int,
    pad_token_id: int,
    device: torch.device,
) -> None:
    """What comes before and the suffix as one context, with room for a canvas of `length` between their positions."""
    ids = [[*before, *after] for before, after in zip(read_ids, suffix_ids, strict=True)]
    starts = torch.tensor([len(before) for before in read_ids], device=device)[:, None]
    context.place(positions=(starts + torch.arange(length, device=device)).float())
    if any(ids):
        tokens, mask = pad_right(ids, pad_token_id, device)
        index = torch.arange(tokens.shape[1], device=device)
        positions = index + length * (index >= starts)
        context.remember(tokens, mask, positions.float())


def write_canvas(
    writer: RowWriter,
    filler: CanvasFiller,
    denoiser: Denoiser,
    canvas: Int[Tensor, "batch length"],
    num_steps: int,
    opening: Allowed | None,
) -> None:
    """One canvas of fixed length; its masks are filled, its other tokens stay. An interrupt leaves the masks out."""
    mask_token_id = filler.scheduler.config.mask_token_id
    denoiser = denoiser if opening is None else beginning_with(denoiser, opening)
    canvas = filler.fill(denoiser, canvas, canvas == mask_token_id, num_steps)
    for row, tokens in enumerate(canvas):
        kept = tokens[tokens != mask_token_id]
        writer.ids[row] = kept.tolist()
        if writer.streamer is not None:
            writer.streamer.put(kept.cpu())


def write_blocks(
    writer: RowWriter,
    filler: CanvasFiller,
    denoiser: Denoiser,
    context: Context,
    plan: Sequence[tuple[int, int]],
    opening: Allowed | None,
    device: torch.device,
) -> None:
    """Block diffusion (arXiv:2503.09573): each block sees the finished ones, which the next pass commits.

    Args:
        plan: (tokens, steps) of each block.
        opening: which tokens each row may begin with; None for any.
    """
    mask_token_id = filler.scheduler.config.mask_token_id
    rows = list(range(len(writer.ids)))
    for size, num_steps in plan:
        canvas = torch.full((len(rows), size), mask_token_id, device=device)
        begun = denoiser if opening is None else beginning_with(denoiser, opening)
        canvas, opening = filler.fill(begun, canvas, torch.ones_like(canvas, dtype=torch.bool), num_steps), None
        ended, count = filler.ends(canvas)
        writer.extend(rows, canvas, count, ended)
        if bool((canvas == mask_token_id).any()):  # interrupted
            return
        if filler.constrained is not None:
            filler.constrained.advance([tokens[:n] for tokens, n in zip(canvas.tolist(), count.tolist(), strict=True)])
        rows, index = still_open(writer, filler, context, rows, device)
        if not rows:
            return
        context.remember(canvas[index])


def still_open(
    writer: RowWriter,
    filler: CanvasFiller,
    context: Context,
    rows: list[int],
    device: torch.device,
) -> tuple[list[int], Int[Tensor, "some"]]:
    """The rows that go on, and their places among `rows`; context and generators forget the others."""
    places = [place for place, row in enumerate(rows) if writer.remaining[row] > 0]
    index = torch.tensor(places, dtype=torch.int64, device=device)
    if 0 < len(places) < len(rows):
        filler.generators = [filler.generators[place] for place in places]
        if filler.constrained is not None:
            filler.constrained.keep(places)
        context.keep_rows(index)
    return [rows[place] for place in places], index


@dataclass
class CheckedWriting:
    """Drafts of a block, each checked by the causal path (see `draft_check`).

    A round drafts in `num_steps` passes, of which the first carries the one token that the last check wrote, and checks
    in one more. Short drafts of one step are made ahead instead: the pass that checks a draft reads canvases behind
    each of its prefixes too, and the one behind what is accepted gives the next draft. A round is then one pass.

    Usage: `CheckedWriting(writer, filler, context, 32, 1, torch.device("cpu")).run(None)  # the acceptance rate`
    """

    writer: RowWriter
    filler: CanvasFiller
    context: Context
    block_length: int
    num_steps: int
    device: torch.device
    _next_token: Int[Tensor, "some 1"] | None = field(default=None, init=False)  # written, and not read yet
    _ahead: Float[Tensor, "some length vocab"] | None = field(default=None, init=False)

    @property
    def looks_ahead(self) -> bool:
        """Whether drafts are made ahead: n tokens need (n + 1)^2 masks in the pass."""
        return self.num_steps == 1 and self.block_length <= LONGEST_AHEAD and self.context.can_look_ahead

    def run(self, opening: Allowed | None) -> float:
        """Write all rows; gives the share of drafted tokens that were kept."""
        rows, num_drafted, num_accepted = list(range(len(self.writer.ids))), 0, 0
        mask_token_id = self.filler.scheduler.config.mask_token_id
        while rows:
            draft, real = self.draft(rows, opening)
            if bool((draft == mask_token_id).any()):  # interrupted
                break
            verdict, opening = self.check(draft, real, opening), None
            num_drafted += int(real.sum())
            num_accepted += int(verdict.accepted.sum())
            written = torch.cat([draft, draft[:, :1]], dim=1)
            written = written.scatter(1, verdict.accepted[:, None], verdict.next_token[:, None])
            beyond = torch.arange(written.shape[1], device=self.device) > verdict.accepted[:, None]
            ended, count = self.filler.ends(written.masked_fill(beyond, mask_token_id))
            self.writer.extend(rows, written, count, ended)
            if self.filler.constrained is not None:
                kept = zip(written.tolist(), count.tolist(), self.filler.constrained.room, strict=True)
                self.filler.constrained.advance([tokens[: min(n, room)] for tokens, n, room in kept])
            rows, index = still_open(self.writer, self.filler, self.context, rows, self.device)
            self._go_on(verdict.next_token[index, None], index)
        return num_accepted / max(1, num_drafted)

    def draft(self, rows: list[int], opening: Allowed | None) -> tuple[Tensor, Bool[Tensor, "some length"]]:
        """A block for each row, shorter where there is less room, and which of its tokens count."""
        room = torch.tensor([self.writer.remaining[row] for row in rows], device=self.device)
        place = torch.arange(min(self.block_length, int(room.max())), device=self.device)
        real = place < room[:, None]
        mask_token_id = self.filler.scheduler.config.mask_token_id
        canvas = torch.full(real.shape, mask_token_id, device=self.device).masked_fill(~real, self.filler.pad_token_id)
        self.context.place(real=None if bool(real.all()) else real)
        denoiser: Denoiser = self.context if self._ahead is None else self._foreseen
        denoiser = denoiser if opening is None else beginning_with(denoiser, opening)
        draft = self.filler.fill(denoiser, canvas, real, self.num_steps)
        return draft, real & (place <= self.filler.ends(draft)[1][:, None])  # nothing counts after an end token

    def check(self, draft: Tensor, real: Bool[Tensor, "some length"], opening: Allowed | None) -> Verdict:
        """What the causal path says of a draft; the context keeps what it accepts."""
        config, context = self.filler.scheduler.config, self.context
        target = self._causal(draft, real)
        if opening is not None:
            first = target[:, :1].masked_fill(~opening[:, None], -torch.inf)
            target = torch.cat([first, target[:, 1:]], dim=1)
        if self.filler.constrained is not None:
            target = target.masked_fill(~self.filler.constrained.allowed_next(draft, real), -torch.inf)
        sampling = Sampling(config.temperature, config.top_k, config.top_p)
        # Tokens drawn together have no probabilities of their own, as those of several passes have none.
        is_independent = self.num_steps == 1 and self.filler.constrained is None
        draft_logits = self.filler.draft_logits if is_independent else None
        verdict = check_draft(draft, real, target, draft_logits, sampling, self.filler.generators)
        context.forget(real.sum(dim=1) - verdict.accepted)
        if self._ahead is not None:
            self._ahead = self._ahead[torch.arange(len(draft), device=self.device), verdict.accepted]
        return verdict

    def _causal(self, draft: Tensor, real: Bool[Tensor, "some length"]) -> Float[Tensor, "some length+1 vocab"]:
        """What the causal path predicts at each token of a draft and after it; what is ahead of it is noted."""
        context, mask = self.context, None if bool(real.all()) else real
        if self._next_token is None:
            first = sure_of(draft[:, 0], context) if context.next_logits is None else context.next_logits
            logits = self._read(draft, mask, first=0)
            return torch.cat([first[:, None], logits], dim=1)
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        return self._read(torch.cat([self._next_token, draft], dim=1), mask, first=1)

    def _read(self, ids: Tensor, mask: Tensor | None, first: int) -> Tensor:
        if not self.looks_ahead:
            return self.context.read(ids, mask)
        # the first mask is the token that the check is about to write
        logits, ahead = self.context.read_ahead(ids, mask, first, self.block_length + 1)
        self._ahead = ahead[:, :, 1:]
        return logits

    def _foreseen(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        assert self._ahead is not None
        return self._ahead[:, : x_t.shape[1]]

    def _go_on(self, next_token: Int[Tensor, "some 1"], index: Int[Tensor, "some"]) -> None:
        """With the rows of an index; what the check wrote is read by the next pass."""
        if self._ahead is None:
            self.context.remember(next_token)
        else:
            self._next_token, self._ahead = next_token, self._ahead[index]


def sure_of(tokens: Int[Tensor, "batch"], context: Context) -> Tensor:
    """Logits that leave no choice: before the first token there is no causal prediction to check it by."""
    vocab_size = context.model.config.vocab_size
    sure = torch.full((len(tokens), vocab_size), -torch.inf, device=tokens.device)
    return sure.scatter(1, tokens[:, None], 0.0)
