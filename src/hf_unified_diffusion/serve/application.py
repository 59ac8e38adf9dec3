"""The ASGI application: routes, health, metrics, and bounds on what comes in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from fastapi import FastAPI, HTTPException
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engine import ArrowEngine
from . import media_routes, text_routes
from .asking import services
from .errors import CLIENT_GONE, add_error_handlers, error_body
from .generation import Generation
from .metrics import Metrics
from .settings import ServeSettings


def create_app(engine: ArrowEngine, settings: ServeSettings | None = None) -> FastAPI:
    """The application over an engine: OpenAI's routes, /health and /metrics.

    Usage: `uvicorn.run(create_app(ArrowEngine.from_pretrained()))`
    """
    settings = ServeSettings() if settings is None else settings
    generation = Generation(engine, settings.max_waiting, settings.max_batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        generation.close()
        engine.close()

    app = FastAPI(title="hf_unified_diffusion", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.generation, app.state.settings = generation, settings
    add_error_handlers(app)
    app.include_router(text_routes.router)
    app.include_router(media_routes.router)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name}")(model)
    app.get("/health")(health)
    app.get("/metrics")(metrics)
    app.add_middleware(Bounded, max_body_bytes=settings.max_body_bytes, metrics=generation.metrics)
    return app


def card(http: HttpRequest) -> dict[str, object]:
    """The one model, as OpenAI lists them."""
    created = http.app.state.settings.folder.stat().st_mtime
    return {
        "id": http.app.state.settings.served_name,
        "object": "model",
        "created": int(created),
        "owned_by": "hf_unified_diffusion",
    }


async def models(http: HttpRequest) -> dict[str, object]:
    """What is served."""
    return {"object": "list", "data": [card(http)]}


async def model(name: str, http: HttpRequest) -> dict[str, object]:
    """One model by its name."""
    if name != card(http)["id"]:
        message = f"model must be {card(http)['id']!r}, got {name!r}"
        raise HTTPException(404, error_body(message, "invalid_request_error", "model", "model_not_found"))
    return card(http)


async def health(http: HttpRequest) -> JSONResponse:
    """200 while requests are taken; how many run or wait."""
    generation, settings = services(http)
    unfinished = generation.queue.num_unfinished
    return JSONResponse({"status": "ok", "unfinished": unfinished, "max_waiting": settings.max_waiting})


async def metrics(http: HttpRequest) -> Response:
    """In the text format of Prometheus."""
    return Response(services(http)[0].metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Bounded:
    """Refuses bodies above a size, and counts and times every request by its route."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, metrics: Metrics):
        self.app, self.max_body_bytes, self.metrics = app, max_body_bytes, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, size, status = perf_counter(), 0, CLIENT_GONE

        async def counted_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body_bytes:
                rule = f"a body must have at most {self.max_body_bytes} bytes, got more"
                raise HTTPException(413, error_body(rule, "invalid_request_error", code="body_too_large"))
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, counted_receive, watched_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(perf_counter() - began)
