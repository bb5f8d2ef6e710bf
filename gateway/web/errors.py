"""Errors in OpenAI's shape, made at this one place (API-5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from gateway.domain.documents import encode
from gateway.domain.errors import GatewayError, UpstreamRefused
from gateway.web.answers import passed_headers

logger = logging.getLogger("gateway.web")

_CODES = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
}


def error_body(
    message: str, *, kind: str, code: str | None, param: str | None = None
) -> dict[str, object]:
    """Write `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """How a caller is told of an error, whatever carries it."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def error_answer(exc: Exception) -> ErrorAnswer:
    """Write an error; one that is no `GatewayError` is a fault of ours, and is logged."""
    if isinstance(exc, UpstreamRefused):
        return _refusal(exc)
    if isinstance(exc, GatewayError):
        body = error_body(exc.message, kind=exc.type, code=exc.code, param=exc.param)
        return ErrorAnswer(exc.status_code, encode(body), exc.headers)
    logger.error("unexpected error", exc_info=exc)
    message = "The gateway made an error. It has been logged."
    body = error_body(message, kind="server_error", code="internal_error")
    return ErrorAnswer(500, encode(body))


def _response(answer: ErrorAnswer) -> Response[bytes]:
    return Response(
        content=answer.body,
        status_code=answer.status,
        media_type="application/json",
        headers=dict(answer.headers),
    )


def on_exception(_: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer with one of our own errors, or a fault whose text stays in the log."""
    return _response(error_answer(exc))


class _Error(msgspec.Struct):
    code: str | None = None
    type: str | None = None


class _Refusal(msgspec.Struct):
    error: _Error


def _refusal(exc: UpstreamRefused) -> ErrorAnswer:
    """Pass on an upstream's error whole; give one that is not in OpenAI's shape that shape.

    A 401 is about the gateway's credential, not the caller's; providers repeat parts of the key
    in its message, so the message is ours.
    """
    headers = passed_headers(exc.upstream_headers)
    try:
        error = msgspec.json.decode(exc.body, type=_Refusal).error
    except msgspec.DecodeError:
        error = None
    status = exc.status_code if exc.status_code >= 400 else 502  # no redirect is followed
    if error is not None and status != 401:
        return ErrorAnswer(status, exc.body, headers)
    message = (
        "The upstream refused the gateway's credential."
        if exc.status_code == 401
        else f"The upstream answered {exc.status_code}."
    )
    code = error.code if error is not None else None
    kind = error.type if error is not None else None
    body = error_body(message, kind=kind or "upstream_error", code=code or "upstream_error")
    return ErrorAnswer(status, encode(body), headers)


def on_http_error(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    """Answer with one of Litestar's errors: no route, wrong method, body too large."""
    kind, code = _CODES.get(exc.status_code, ("invalid_request_error", "invalid_request"))
    if exc.status_code >= 500:
        kind, code = "server_error", "internal_error"
    body = error_body(exc.detail, kind=kind, code=code)
    return _response(ErrorAnswer(exc.status_code, encode(body), exc.headers or {}))
