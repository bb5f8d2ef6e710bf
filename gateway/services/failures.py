"""What becomes of a turn that failed: its error, its batch, its last event (API-5, APPR-5)."""

from __future__ import annotations

import logging
import secrets

import msgspec

from gateway.domain import events
from gateway.domain.approvals import BatchStatus
from gateway.domain.documents import Document, raw
from gateway.domain.errors import (
    GatewayError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnreachable,
)
from gateway.services.settlement import Running

logger = logging.getLogger("gateway.turns")


def batch_after(running: Running, error: GatewayError) -> BatchStatus:
    """Say what a batch becomes when its continuation failed (APPR-5).

    Only where nothing can have run may the same approvals be continued once more. A held turn
    ends with the error, so nobody would.
    """
    refused = isinstance(error, UpstreamRefused) and error.status_code < 500
    if not running.dispatched or refused or isinstance(error, UpstreamUnreachable):
        return BatchStatus.FAILED if running.held else BatchStatus.READY
    return BatchStatus.INDETERMINATE if isinstance(error, UpstreamError) else BatchStatus.FAILED


def as_error(exc: Exception) -> GatewayError:
    """Choose the error that a caller is told in a stream for whatever went wrong."""
    if isinstance(exc, UpstreamRefused):
        return refused_in_stream(exc)
    if isinstance(exc, GatewayError):
        return exc
    if isinstance(exc, events.FrameTooLarge):
        return UpstreamDisconnected("The upstream sent an event that is too large.")
    if isinstance(exc, events.MalformedFrame):
        return UpstreamDisconnected(
            "The upstream sent an event that cannot be read.", code="upstream_malformed"
        )
    logger.error("unexpected error in a stream", exc_info=exc)
    return GatewayError("The gateway made an error. It has been logged.")


class _Error(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


def refused_in_stream(exc: UpstreamRefused) -> UpstreamRefused:
    """Give an HTTP error of the upstream its own code and message, for an event (API-5)."""
    try:
        error = msgspec.json.decode(exc.body, type=_ErrorBody).error
    except msgspec.DecodeError:
        return exc
    if exc.status_code != 401:  # providers repeat parts of the gateway's own key there
        exc.message = error.message or exc.message
    exc.code = error.code or exc.code
    exc.type = error.type or exc.type
    return exc


def unknown_response(running: Running) -> Document:
    """Stand in for a response that the upstream never opened."""
    return {
        "id": raw(running.state.turn_id or "resp_" + secrets.token_hex(24)),
        "object": raw("response"),
        "created_at": raw(int(running.state.started_at)),
        "model": raw(running.state.model),
        "output": raw([]),
        "parallel_tool_calls": raw(True),
        "tool_choice": raw("auto"),
        "tools": raw([]),
    }
