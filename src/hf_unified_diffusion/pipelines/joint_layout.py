"""The sequence of a joint request: what is given as clean segments, what is wanted as canvases on the same clock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..codecs.clock import audio_positions, phoneme_positions, spread_evenly
from ..codecs.picture_positions import image_positions
from ..codecs.text_codec import pad_right
from ..contracts import Segment


@dataclass(frozen=True)
class JointLayout:
    """Where everything is. A row's prompt comes first, and all that belongs to a clip begins after it.

    Attributes:
        prompt_ids: of each row, the token that begins them included.
        clip_tokens: of the clip, 1/20 s each; None without one.
        phoneme_ids: of each row, or None.
        phoneme_places: of the same, on the clock of the clip (`durations.phoneme_places`); or None.
        given: modality -> clean tokens, float (B, n, width).
        grid: rows and columns of the picture's tokens, or None.
        guided: whether every row is there a second time, without what is given.
        pad_token_id: fills shorter rows.
    """

    prompt_ids: Sequence[Sequence[int]]
    clip_tokens: int | None
    phoneme_ids: Sequence[Sequence[int]] | None
    phoneme_places: Sequence[Sequence[float]] | None
    given: Mapping[str, Float[Tensor, "batch tokens width"]]
    grid: tuple[int, int] | None
    guided: bool
    pad_token_id: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.prompt_ids)

    @property
    def prompts(self) -> list[list[int]]:
        """Of all rows of a pass: under guidance those of nothing given follow, which only begin."""
        rows = [list(ids) for ids in self.prompt_ids]
        return rows + [ids[:1] for ids in rows] * self.guided

    def contexts(self) -> list[Segment]:
        """The clean segments of all rows of a pass."""
        ids, mask = pad_right(self.prompts, self.pad_token_id, self.device)
        segments = [Segment("text", ids, mask=mask)]
        if self.phoneme_ids is not None and self.phoneme_places is not None:
            segments.append(self._phonemes(self.phoneme_ids, self.phoneme_places))
        for modality, tokens in self.given.items():
            values = tokens.to(self.device)
            values = torch.cat([values, torch.zeros_like(values)]) if self.guided else values
            segments.append(
                Segment(modality, values, positions=self.places(modality), mask=self._seen(values.shape[1]))
            )
        return segments

    def places(self, modality: str, count: int = 0) -> Float[Tensor, "rows tokens 3"]:
        """Where the tokens of a modality are in all rows of a pass; `count` of them for text."""
        if modality == "image" and self.grid is not None:
            at_zero = image_positions(*self.grid, start=0)
        elif self.clip_tokens is None:
            at_zero = audio_positions(count, start=0)  # text alone: one after the other
        elif modality == "text":
            at_zero = phoneme_positions(spread_evenly(count, self.clip_tokens), start=0)
        else:
            at_zero = audio_positions(self.clip_tokens, start=0)
        return (at_zero + self._starts()[:, None, None]).to(self.device)

    def _starts(self) -> Float[Tensor, "rows"]:
        """Where the clips of all rows of a pass begin."""
        return torch.tensor([len(ids) for ids in self.prompts], dtype=torch.float32)

    def _phonemes(self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[float]]) -> Segment:
        """Each row's phonemes at the times of the clip; none in the rows of nothing given."""
        ids, mask = pad_right(rows, self.pad_token_id, self.device)
        at = [
            phoneme_positions(row, float(start)) for row, start in zip(places, self._starts()[: len(rows)], strict=True)
        ]
        positions = torch.stack([padded(row, ids.shape[1]) for row in at]).to(self.device)
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        if self.guided:
            ids, positions = ids.repeat(2, 1), positions.repeat(2, 1, 1)
            real = torch.cat([real, torch.zeros_like(real)])
        elif mask is None:
            return Segment("text", ids, positions=positions)
        return Segment("text", ids, positions=positions, mask=real)

    def _seen(self, tokens: int) -> Tensor | None:
        """Which clean tokens of a pass are real: those of the rows to which they are given."""
        if not self.guided:
            return None
        seen = torch.zeros(2 * len(self), tokens, dtype=torch.bool, device=self.device)
        seen[: len(self)] = True
        return seen


def padded(positions: Float[Tensor, "tokens 3"], length: int) -> Float[Tensor, "length 3"]:
    """Positions followed by zeros."""
    return torch.nn.functional.pad(positions, (0, 0, 0, length - len(positions)))
