"""Texts while they are written, as server-sent events."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..codecs.text_codec import TextCodec
from .errors import described

HIDDEN = "░"  # a token of a draft that is still masked
BROKEN = "�"  # the first bytes of a character whose others are not written yet


@dataclass(frozen=True)
class Told:
    """What a streamer saw: new text, or a draft of what may follow."""

    text: str = ""
    draft: str | None = None


class TextStreamer(BaseStreamer):
    """Turns tokens into text that only grows: what may still be cut or completed is held back.

    Args:
        opening: text of the prompt that is written again, and not told.
        stop: strings that end the text; what may become one is held back.
        is_final: whether tokens that are written stay; if not, only drafts are told.
        with_drafts: whether canvases are told.
        tell: gets what is seen, in the thread that writes.
    """

    def __init__(
        self,
        codec: TextCodec,
        opening: str,
        stop: list[str],
        is_final: bool,
        with_drafts: bool,
        mask_token_id: int,
        tell: Callable[[Told], None],
    ):
        self.codec, self.opening, self.stop = codec, opening, stop
        self.is_final, self.with_drafts, self.mask_token_id, self.tell = is_final, with_drafts, mask_token_id, tell
        self.ids: list[int] | None = None  # None until the prompt was put
        self.told = 0

    def put(self, value: Tensor) -> None:
        """The prompt first, then tokens that stay."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.tolist()
        text = self.codec.decode(self.ids)[len(self.opening) :]
        sure = len(text.rstrip(BROKEN))
        sure -= max((held for held in range(1, sure + 1) if self._may_stop(text[sure - held : sure])), default=0)
        if self.is_final and sure > self.told:
            self.tell(Told(text[self.told : sure]))
            self.told = sure

    def put_draft(self, value: Tensor) -> None:
        """A canvas, some of its tokens still masked."""
        if not self.with_drafts:
            return
        shown, run = "", []
        for token in [*value[0].tolist(), self.mask_token_id]:
            if token != self.mask_token_id:
                run.append(token)
                continue
            shown, run = shown + (self.codec.decode(run) if run else "") + HIDDEN, []
        self.tell(Told(draft=shown[: -len(HIDDEN)]))

    def end(self) -> None:
        """The rest is in the result."""

    def _may_stop(self, text: str) -> bool:
        return any(len(text) < len(stop) and stop.startswith(text) for stop in self.stop)


class Channel:
    """What a thread tells, read by a coroutine; ends when the request does."""

    def __init__(self) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Queue[Told | None]()

    def tell(self, told: Told | None) -> None:
        """Called by any thread; None is the end."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._told.put_nowait, told)

    async def __aiter__(self) -> AsyncIterator[Told]:
        while (told := await self._told.get()) is not None:
            yield told


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def events(chunks: AsyncGenerator[Mapping[str, Any]]) -> AsyncGenerator[str]:
    """Chunks as events, then the end; an error on the way is the last event. Closed early, it closes the chunks."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield event(chunk)
    except Exception as error:  # the status is sent already
        yield event(described(error)[1])
        return
    yield "data: [DONE]\n\n"


class EventStream(StreamingResponse):
    """Server-sent events that end as soon as the client is gone.

    From version 2.4 of the ASGI specification on, Starlette notices that only when it has something to send, and a step
    may be long: here it always listens.
    """

    def __init__(self, told: AsyncGenerator[str]):
        super().__init__(told, media_type="text/event-stream")
        self.told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.told):
            await super().__call__({**scope, "asgi": {**scope.get("asgi", {}), "spec_version": "2.3"}}, receive, send)
