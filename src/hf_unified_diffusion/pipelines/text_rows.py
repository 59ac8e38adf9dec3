"""The rows of a text while it is written: what each has so far, and when it ends."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..codecs.text_codec import TextCodec
from .text_inputs import TextRows

# (prompt, completion) -> how many characters of the completion stay, None while it may go on
EndRule = Callable[[str, str], int | None]


def stop_at(stop: Sequence[str]) -> EndRule:
    """End a completion before the first of some strings.

    Usage: `stop_at(["\\n\\n"])("1, 2,", " 3.\\n\\nNext")  # 3`
    """

    def end(prompt: str, completion: str) -> int | None:
        places = [place for place in (completion.find(text) for text in stop) if place >= 0]
        return min(places, default=None)

    return end


class RowWriter:
    """Collects what is written for each row, and knows when a row has ended.

    Attributes:
        ids: the tokens of each row so far.
        finished: whether a row ended by its end token or a rule.
        at_bound: what stays of a row that did not, asked by `close`; all of it where this is None or says None.
        goes_on: whether a row is still wanted; one that is not gets no more.
    """

    def __init__(
        self,
        codec: TextCodec,
        rows: TextRows,
        most: int,
        end_rules: Sequence[EndRule] = (),
        streamer: BaseStreamer | None = None,
        at_bound: EndRule | None = None,
        goes_on: Callable[[int], bool] | None = None,
    ):
        self.codec, self.rows, self.most = codec, rows, most
        self.end_rules, self.streamer, self.at_bound = end_rules, streamer, at_bound
        self.goes_on = goes_on
        self.cut: dict[int, int] = {}  # row -> characters that stay
        self.ids: list[list[int]] = [[] for _ in rows.prompts]
        self.finished = [False] * len(rows)

    def of_rows(self, rows: TextRows) -> "RowWriter":
        """An empty writer of other rows."""
        return RowWriter(self.codec, rows, self.most, self.end_rules, self.streamer, self.at_bound)

    def take(self, row: int, other: "RowWriter", of: int = 0) -> None:
        """Take over as a row what another writer has of one of its own."""
        self.ids[row], self.finished[row] = other.ids[of], other.finished[of]
        if of in other.cut:
            self.cut[row] = other.cut[of]

    @property
    def remaining(self) -> list[int]:
        """How many tokens each row may still get."""
        return [0 if done else self.most - len(ids) for ids, done in zip(self.ids, self.finished, strict=True)]

    def extend(
        self,
        rows: Sequence[int],
        tokens: Int[Tensor, "some length"],
        count: Int[Tensor, "some"],
        ended: Bool[Tensor, "some"],
    ) -> None:
        """Add the first `count` tokens to each of `rows`, as far as there is room; `ended` rows take no more."""
        for row, new, size, is_end in zip(rows, tokens.tolist(), count.tolist(), ended.tolist(), strict=True):
            room, before = self.remaining[row], len(self.ids[row])
            self.ids[row] += new[: min(size, room)]
            self.finished[row] = is_end and size < room
            self._apply_end_rules(row)
            if self.goes_on is not None and not self.goes_on(row):
                self.finished[row] = True
            if self.streamer is not None:
                self.streamer.put(torch.tensor(self.ids[row][before:], dtype=torch.int64))

    def completion(self, row: int) -> str:
        """The text of a row, up to where a rule ends it."""
        text = self._text(self.ids[row], row)
        return text[: self.cut.get(row, self._end(row, text))]

    def close(self) -> None:
        """Cut the rows that reached the bound as `at_bound` says."""
        for row, finished in enumerate(self.finished):
            if finished or self.at_bound is None:
                continue
            end = self.at_bound(self.rows.prompts[row], self._text(self.ids[row], row))
            if end is not None:
                self.cut[row] = end
                self._drop_after(row, end)

    def _text(self, ids: list[int], row: int) -> str:
        return self.codec.decode(ids)[len(self.rows.openings[row]) :]

    def _end(self, row: int, text: str) -> int | None:
        ends = [end for end in (rule(self.rows.prompts[row], text) for rule in self.end_rules) if end is not None]
        return min(ends, default=None)

    def _apply_end_rules(self, row: int) -> None:
        """Drop the tokens after the one that reaches the end; the text is then cut to the character."""
        if not self.end_rules:
            return
        end = self._end(row, self._text(self.ids[row], row))
        if end is None:
            return
        self.finished[row] = True
        self._drop_after(row, end)

    def _drop_after(self, row: int, end: int) -> None:
        size = next(n for n in range(len(self.ids[row]) + 1) if len(self._text(self.ids[row][:n], row)) >= end)
        del self.ids[row][size:]
