"""An application over a tiny network, asked in process: by OpenAI's client, or message by message."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import torch
from fastapi import FastAPI
from openai import AsyncOpenAI

from hf_unified_diffusion import ArrowEngine, MaskedDiffusionScheduler
from hf_unified_diffusion.serve import ServeSettings, create_app
from tests.codecs.vaes import tiny_dc
from tests.tiny import tiny_model, tiny_tokenizer

MODEL = "tiny"


def tiny_engine() -> ArrowEngine:
    """Writes bytes, draws pictures of 32 pixels a token, and speaks noise."""
    model = tiny_model(bos_token_id=0, max_position_embeddings=512)
    with torch.no_grad():
        for name in ("image", "audio"):
            model.heads[name].weight.normal_(0, 0.1)
    return ArrowEngine(model, MaskedDiffusionScheduler(mask_token_id=257), tiny_tokenizer(), vae=tiny_dc(128))


def application(**settings: Any) -> FastAPI:
    """An application with an engine of its own."""
    return create_app(tiny_engine(), ServeSettings(model_name=MODEL, **settings))


@pytest.fixture(scope="module")
def app():
    app = application()
    yield app
    app.state.generation.close()
    app.state.generation.engine.close()


def http_client(app: FastAPI) -> httpx2.AsyncClient:
    """Any request, in process; what the application raises is answered, as a server would."""
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=30)


def openai_client(app: FastAPI) -> AsyncOpenAI:
    """OpenAI's own client, which does not try again."""
    return AsyncOpenAI(api_key="none", base_url="http://server/v1", http_client=http_client(app), max_retries=0)


class Held:
    """Keeps an application's queue busy, so that what is asked meanwhile waits.

    Usage: `with Held(app) as held_queue: ...; await held_queue.until(3)`
    """

    def __init__(self, app: FastAPI):
        self.queue, self.released = app.state.generation.queue, threading.Event()

    def __enter__(self) -> "Held":
        begun = threading.Event()
        self.queue.submit(lambda step: (begun.set(), self.released.wait(30)))
        assert begun.wait(30)
        return self

    async def until(self, waiting: int) -> None:
        """Return when so many wait."""
        while self.queue.num_unfinished < 1 + waiting:
            await asyncio.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self.released.set()


class Connection:
    """A client of one request that reads message after message and may go away.

    Usage: `await Connection(app, "/v1/completions", body).run(until=lambda connection: len(connection.sent) > 2)`
    """

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]):
        self.app, self.sent, self.is_gone = app, [], False
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        self.received = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def run(self, leave: Callable[["Connection"], Any]) -> None:
        """Send the request; the client is gone when `leave(self)` returns."""

        async def receive():
            if self.received:
                return self.received.pop(0)
            await leave(self)
            self.is_gone = True
            return {"type": "http.disconnect"}

        async def send(message):
            self.sent.append(message)

        await self.app(self.scope, receive, send)
