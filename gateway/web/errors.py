"""Errors in OpenAI's shape, made at this one place (API-5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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


def _answer(status: int, body: object, headers: Mapping[str, str]) -> Response[bytes]:
    return Response(
        content=body if isinstance(body, bytes) else encode(body),
        status_code=status,
        media_type="application/json",
        headers=dict(headers),
    )


def on_gateway_error(_: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer with one of our own errors."""
    if isinstance(exc, UpstreamRefused):
        return _on_refusal(exc)
    if not isinstance(exc, GatewayError):  # registered for GatewayError only
        return on_exception(_, exc)
    body = error_body(exc.message, kind=exc.type, code=exc.code, param=exc.param)
    return _answer(exc.status_code, body, exc.headers)


class _Error(msgspec.Struct):
    code: str | None = None
    type: str | None = None


class _Refusal(msgspec.Struct):
    error: _Error


def _on_refusal(exc: UpstreamRefused) -> Response[bytes]:
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
        return _answer(status, exc.body, headers)
    message = (
        "The upstream refused the gateway's credential."
        if exc.status_code == 401
        else f"The upstream answered {exc.status_code}."
    )
    code = error.code if error is not None else None
    kind = error.type if error is not None else None
    body = error_body(message, kind=kind or "upstream_error", code=code or "upstream_error")
    return _answer(status, body, headers)


def on_http_error(_: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
    """Answer with one of Litestar's errors: no route, wrong method, body too large."""
    kind, code = _CODES.get(exc.status_code, ("invalid_request_error", "invalid_request"))
    if exc.status_code >= 500:
        kind, code = "server_error", "internal_error"
    body = error_body(exc.detail, kind=kind, code=code)
    return _answer(exc.status_code, body, exc.headers or {})


def on_exception(_: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    """Answer with a fault of ours, whose text stays in the log."""
    logger.error("unexpected error", exc_info=exc)
    message = "The gateway made an error. It has been logged."
    return _answer(500, error_body(message, kind="server_error", code="internal_error"), {})
