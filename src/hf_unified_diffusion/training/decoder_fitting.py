"""Training a `LocalDecoder` behind a frozen trunk: what the trunk says of noisy speech is computed once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from ..codecs.speech_layout import lay_out, stacked_rows
from ..contracts import Segment
from ..modeling.local_decoder import LocalDecoder
from ..modeling.modeling_unified_diffusion import UnifiedDiffusionModel
from .flow_layout import FLOW
from .speech_data import SpeechBatch

SHORTEST_TIME = 0.02
# The error counts as 1 / (t^power + floor^power). As that of the velocity, 2, it was learned at little noise alone, and
# speech was worse.
TIME_POWER, TIME_FLOOR = 1.5, 0.05


@dataclass(frozen=True)
class HeardRows:
    """What a decoder reads of noisy clips and what it should say, clip after clip.

    Attributes:
        hidden: bfloat16 (tokens, hidden), what the trunk says.
        estimate: bfloat16 (tokens, width), of x_0, without the decoder.
        x_t, x_0: bfloat16 (tokens, width).
        time: float32 (clips,).
        lengths: int64 (clips,), tokens of each.
    """

    hidden: Float[Tensor, "tokens hidden"]
    estimate: Float[Tensor, "tokens width"]
    x_t: Float[Tensor, "tokens width"]
    x_0: Float[Tensor, "tokens width"]
    time: Float[Tensor, "clips"]
    lengths: Int[Tensor, "clips"]

    @staticmethod
    def joined(parts: "Sequence[HeardRows]") -> "HeardRows":
        """All clips of the parts, in their order."""
        return HeardRows(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(HeardRows)))

    def save(self, path: Path) -> None:
        """Write them as safetensors; the file appears whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        save_file({each.name: getattr(self, each.name).contiguous() for each in fields(self)}, partial)
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> "HeardRows":
        """What `save` wrote."""
        return HeardRows(**load_file(path))


@dataclass(frozen=True)
class HeardBatch:
    """Pieces of clips as one batch, as in `HeardRows`; `mask` says which tokens are real, others are zeros."""

    hidden: Float[Tensor, "batch length hidden"]
    estimate: Float[Tensor, "batch length width"]
    x_t: Float[Tensor, "batch length width"]
    x_0: Float[Tensor, "batch length width"]
    time: Float[Tensor, "batch"]
    mask: Bool[Tensor, "batch length"]

    def with_dropout(self, share: float, generator: Generator) -> "HeardBatch":
        """A share of what the trunk says zeroed and the rest scaled up, as `nn.Dropout` does, by a generator's numbers.

        What the trunk says of the few clips at hand is easily learned by heart.
        """
        kept = (torch.rand(self.hidden.shape, generator=generator) >= share).to(self.hidden.dtype)
        return replace(self, hidden=self.hidden * kept / (1 - share))

    def errors(self, decoder: LocalDecoder | None) -> Float[Tensor, "batch"]:
        """Mean squared error of x_0 of each piece, by the decoder; without one, of the estimate that it reads."""
        clean = self.estimate.float()
        if decoder is not None:
            clean = decoder(self.hidden, clean, self.x_t.float(), self.time, self.mask)
        squares = (clean.float() - self.x_0.float()).square().mean(dim=2) * self.mask
        return squares.sum(dim=1) / self.mask.sum(dim=1)


@torch.no_grad()
def heard_rows(
    model: UnifiedDiffusionModel, batch: SpeechBatch, times: Float[Tensor, "copies clips"], generator: Generator
) -> HeardRows:
    """What a network says of the sounds of a batch, each noised to some times: behind one context that many canvases.

    Args:
        model: a decoder that it has is left out.
        times: in [0, 1], of each copy of each clip.

    Usage: `heard_rows(model, source.batch(0, seed=0), torch.rand(6, len(batch.rows)), generator)`
    """
    layout, x_0 = lay_out(batch.rows, batch.bos_token_id), stacked_rows(batch.sounds, "cpu")
    real = torch.ones(x_0.shape[:2], dtype=torch.bool) if layout.mask is None else layout.mask
    noisy = [FLOW.corrupt(x_0, t, generator) for t in times]
    canvases = [
        Segment(
            batch.modality,
            x_t,
            time=t,
            positions=layout.positions,
            mask=layout.mask,
            canvas=torch.full(x_0.shape[:2], number + 1),
        )
        for number, (x_t, t) in enumerate(zip(noisy, times, strict=True))
    ]
    segments = [segment.to(model.device) for segment in (*layout.contexts, *canvases)]
    hidden, _ = model.features(segments)
    parts = []
    for x_t, t, segment, features in zip(
        noisy, times, segments[-len(canvases) :], hidden[-len(canvases) :], strict=True
    ):
        estimate = model.estimate(features, segment, decoded=False)
        told = (tensor.cpu().to(torch.bfloat16)[real] for tensor in (features, estimate, x_t, x_0))
        hidden_rows, estimate_rows, noisy_rows, clean_rows = told
        parts.append(HeardRows(hidden_rows, estimate_rows, noisy_rows, clean_rows, t.float(), real.sum(dim=1)))
    return HeardRows.joined(parts)


def piece_of(rows: HeardRows, starts: Int[Tensor, "batch"], lengths: Int[Tensor, "batch"], time: Tensor) -> HeardBatch:
    """Pieces that begin at some tokens, each of its length and its clip's time."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    places = (starts[:, None] + torch.arange(mask.shape[1])).clamp(max=len(rows.x_0) - 1)
    hidden, estimate, x_t, x_0 = (
        tensor[places] * mask[..., None] for tensor in (rows.hidden, rows.estimate, rows.x_t, rows.x_0)
    )
    return HeardBatch(hidden, estimate, x_t, x_0, time, mask)


def random_pieces(rows: HeardRows, count: int, tokens: int, generator: Generator) -> HeardBatch:
    """Pieces of at most so many tokens, of clips drawn by their lengths.

    Usage: `random_pieces(rows, count=24, tokens=24, generator=generator)`
    """
    clips = torch.multinomial(rows.lengths.float(), count, replacement=True, generator=generator)
    lengths = rows.lengths[clips].clamp(max=tokens)
    room = rows.lengths[clips] - lengths + 1
    offsets = (torch.rand(count, generator=generator) * room).long()
    starts = rows.lengths.cumsum(0)[clips] - rows.lengths[clips]
    return piece_of(rows, starts + offsets, lengths, rows.time[clips])


def weighted_loss(errors: Float[Tensor, "batch"], time: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
    """The errors of x_0, each the heavier the less noise there was, see `TIME_POWER`."""
    return (errors / (time**TIME_POWER + TIME_FLOOR**TIME_POWER)).mean()


@torch.no_grad()
def errors_by_time(rows: HeardRows, decoder: LocalDecoder | None, clips_at_once: int = 8) -> dict[float, float]:
    """Mean squared error of x_0 over all numbers at each time that clips have, see `HeardBatch.errors`."""
    ends, found = rows.lengths.cumsum(0), {}
    for time in rows.time.unique().tolist():
        total, tokens = 0.0, 0
        for clips in (rows.time == time).nonzero()[:, 0].split(clips_at_once):
            lengths = rows.lengths[clips]
            batch = piece_of(rows, ends[clips] - lengths, lengths, rows.time[clips])
            total += float((batch.errors(decoder) * lengths).sum())
            tokens += int(lengths.sum())
        found[round(time, 4)] = total / tokens
    return found


def drawn_times(copies: int, clips: int, generator: Generator) -> Float[Tensor, "copies clips"]:
    """Times of all copies of clips, uniform, those of one clip spread evenly (stratified)."""
    places = (torch.arange(copies)[:, None] + torch.rand(copies, clips, generator=generator)) / copies
    return SHORTEST_TIME + (1 - SHORTEST_TIME) * places
