"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

import logging
from concurrent.futures import CancelledError
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..request_queue import QueueFullError, RequestTimeoutError

logger = logging.getLogger(__name__)
CLIENT_GONE = 499  # nobody reads it; nginx counts such requests so


class ClientGoneError(Exception):
    """The client closed its connection before it was answered."""


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def described(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of what may go wrong; what nobody foresaw is logged, and told without its details."""
    match error:
        case QueueFullError():
            return 429, error_body(str(error), "requests", code="rate_limit_exceeded")
        case RequestTimeoutError():
            return 504, error_body(str(error), "timeout", code="timeout")
        case ClientGoneError() | CancelledError():
            return CLIENT_GONE, error_body("the client closed the connection", "cancelled", code="cancelled")
        case RequestValidationError():
            return 400, of_validation(error)
        case HTTPException():
            kind = "invalid_request_error" if error.status_code < 500 else "server_error"
            detail = error.detail
            return error.status_code, detail if isinstance(detail, dict) else error_body(str(detail), kind)
        case ValueError():
            return 400, error_body(str(error), "invalid_request_error")
    logger.error("a request failed", exc_info=error)
    return 500, error_body("the server failed at this request", "server_error", code="internal_error")


def of_validation(error: RequestValidationError) -> dict[str, Any]:
    """The first rule that a body broke."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body") or None
    if first["type"] == "extra_forbidden":
        return error_body(f"{place} is not supported here", "invalid_request_error", place, "unsupported_parameter")
    message = f"{place}: {first['msg']}" if place else first["msg"]
    return error_body(f"{message}, got {str(first.get('input'))[:200]!r}", "invalid_request_error", place)


def add_error_handlers(app: FastAPI) -> None:
    """Let the application answer errors in this shape."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        status, body = described(error)
        headers = {"Retry-After": str(request.app.state.generation.retry_after_s)} if status == 429 else {}
        return JSONResponse(body, status, headers)

    foreseen = QueueFullError, RequestTimeoutError, ClientGoneError, CancelledError
    for kind in (*foreseen, RequestValidationError, HTTPException, ValueError, Exception):
        app.add_exception_handler(kind, answer)
