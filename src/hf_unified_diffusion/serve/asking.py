"""From a request's body to what the engine is asked for, and waiting for it while the client stays."""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi import Request as HttpRequest

from ..engine import DEFAULT_NEW_TOKENS
from ..pipelines.text_inputs import LARGEST_SEED
from ..request_queue import Request
from .bodies import Generated, TextBody
from .errors import ClientGoneError, error_body
from .generation import Ask, Generation, Made
from .settings import ServeSettings


def services(http: HttpRequest) -> tuple[Generation, ServeSettings]:
    """What the application was made with."""
    return http.app.state.generation, http.app.state.settings


def check_model(http: HttpRequest, name: str | None) -> None:
    """404 for the name of another model."""
    served = http.app.state.settings.served_name
    if name not in (None, served):
        message = f"model must be {served!r}, got {name!r}"
        raise HTTPException(404, error_body(message, "invalid_request_error", "model", "model_not_found"))


def given(**options: Any) -> dict[str, Any]:
    """Options without what was left out."""
    return {name: value for name, value in options.items() if value not in (None, [])}


def text_options(body: TextBody, max_tokens: int | None, **more: Any) -> dict[str, Any]:
    """The engine's options of a text."""
    return given(
        max_new_tokens=max_tokens or DEFAULT_NEW_TOKENS,
        num_steps=body.num_steps,
        guidance_scale=body.guidance_scale,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        **more,
    )


def asks_for(prompts: Sequence[str], body: Generated, modality: str, options: dict[str, Any]) -> list[Ask]:
    """One row for each choice of each prompt; from one seed choice after choice has the next one."""
    first = secrets.randbelow(LARGEST_SEED) if body.seed is None else body.seed
    rows = [prompt for prompt in prompts for _ in range(body.n)]
    return [Ask(prompt, modality, (first + row) % LARGEST_SEED, options) for row, prompt in enumerate(rows)]


async def disconnected(http: HttpRequest) -> None:
    """Return when the client is gone; its body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def while_connected(http: HttpRequest, work: Awaitable[Any]) -> Any:
    """The result of some work.

    Raises:
        ClientGoneError: the client went away first.
    """
    gone, working = asyncio.ensure_future(disconnected(http)), asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working not in done:
            raise ClientGoneError
        return working.result()
    finally:
        for task in (gone, working):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def made_for(http: HttpRequest, asks: list[Ask], timeout_s: float | None) -> list[Made]:
    """Queue rows and wait for them; who goes away, or fails, leaves nothing running.

    Raises:
        QueueFullError, RequestTimeoutError, ValueError: as the engine does.
        ClientGoneError: the client went away.
    """
    generation, settings = services(http)
    requests = generation.submit_all(asks, settings.timeout_s if timeout_s is None else timeout_s)
    try:
        return list(await while_connected(http, asyncio.gather(*(wrapped(request) for request in requests))))
    except (ClientGoneError, asyncio.CancelledError):  # Ray Serve cancels
        generation.metrics.cancelled.inc()
        raise
    finally:
        for request in requests:
            request.cancel()


async def wrapped(request: Request) -> Made:
    """A request as a coroutine."""
    return await request
