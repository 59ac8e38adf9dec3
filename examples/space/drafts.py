"""What is seen of a text while it is written: given, finished, drafted and still hidden pieces."""

import html
from collections.abc import Callable, Iterator
from itertools import groupby

from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

HIDDEN = "░"
Piece = tuple[str, str]  # kind, text


class DraftStreamer(BaseStreamer):
    """Hands on the pieces of a text at every step: (kind, text), of the kinds given, written, draft and hidden.

    Usage: `pipe("Once", streamer=DraftStreamer(tokenizer, print))`
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, on_change: Callable[[list[Piece]], None], given: str, suffix: str = ""
    ):
        self.tokenizer, self.on_change, self.given, self.suffix = tokenizer, on_change, given, suffix
        self.written: list[int] = []
        self.got_prompt = False

    def put(self, value: Tensor) -> None:
        """Tokens that stay: first those of the prompt, then those of each finished block."""
        if self.got_prompt:
            self.written += value.tolist()
            self.on_change(self.pieces([]))
        self.got_prompt = True

    def put_draft(self, value: Tensor) -> None:
        """The canvas as it is after a step."""
        self.on_change(self.pieces(value[0].tolist()))

    def end(self) -> None:
        """Nothing is held back."""

    def pieces(self, canvas: list[int]) -> list[Piece]:
        """All that there is by now, in order."""
        found = [("given", self.given), ("written", self.decode(self.written)), *self.runs(canvas)]
        return [*found, ("given", self.suffix)]

    def runs(self, canvas: list[int]) -> Iterator[Piece]:
        """Runs of hidden and of drafted tokens."""
        mask = self.tokenizer.mask_token_id
        for is_hidden, run in groupby(canvas, key=lambda token: token == mask):
            ids = list(run)
            yield ("hidden", HIDDEN * len(ids)) if is_hidden else ("draft", self.decode(ids))

    def decode(self, ids: list[int]) -> str:
        """Text of tokens, without end tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def as_html(pieces: list[Piece]) -> str:
    """Pieces as coloured text; whatever they hold is escaped."""
    spans = [f'<span class="{kind}">{html.escape(text)}</span>' for kind, text in pieces if text]
    return f'<div class="paper">{"".join(spans)}</div>'
