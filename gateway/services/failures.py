"""What becomes of a turn that failed: its error, its batch, its last event (API-5, APPR-5)."""

from __future__ import annotations

import contextlib
import logging
import secrets
from dataclasses import dataclass

import msgspec

from gateway.domain import events
from gateway.domain.approvals import ApprovalStatus, Batch, BatchStatus
from gateway.domain.documents import Document
from gateway.domain.errors import (
    GatewayError,
    SecretUnavailable,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnreachable,
)
from gateway.domain.own_response import own_response
from gateway.services.settlement import Running

logger = logging.getLogger("gateway.turns")

AUTOMATIC = 2
"""Most times that lost answers are sent again without asking anybody."""

TRIES = 5
"""Most times that answers are sent which the upstream refuses before it does any work."""

LONGEST_WAIT = 300.0
"""Most seconds that an upstream may ask to wait before the next try."""


def batch_after(running: Running, error: GatewayError) -> BatchStatus:
    """Say what the batch of a turn that nobody waits for becomes; the turn ends with the error.

    Only where nothing can have run may its caller send the same answers once more (APPR-5).
    """
    if not running.dispatched or ran_nothing(error):
        return BatchStatus.FAILED if running.held else BatchStatus.READY
    return BatchStatus.INDETERMINATE if isinstance(error, UpstreamError) else BatchStatus.FAILED


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What becomes of a batch whose continuation failed in a held turn.

    Attributes:
        status: `ready` (the same answers are sent again by themselves), `indeterminate` (they may
            have been carried out) or `failed` (the turn ends with the error).
        delay: Seconds until they are sent again, for `ready`.
    """

    status: BatchStatus
    delay: float = 0.0


def aftermath(batch: Batch, error: GatewayError, *, dispatched: bool) -> Aftermath:
    """Say what becomes of the batch of a held turn after an error (APPR-5).

    The first leg of a background turn is sent again only while the upstream is unreachable or
    busy; nobody is asked about a lost one, which fails with its error (STREAM-3).
    """
    if not isinstance(error, UpstreamError | SecretUnavailable):
        return Aftermath(BatchStatus.FAILED)
    if not batch.approvals and not _comes_again(error):
        return Aftermath(BatchStatus.FAILED)
    if dispatched and not ran_nothing(error):
        return Aftermath(BatchStatus.INDETERMINATE)
    wait = max(backoff(batch.fence), _asked_to_wait(error))
    if batch.fence >= TRIES or wait > LONGEST_WAIT:
        return Aftermath(BatchStatus.FAILED)
    return Aftermath(BatchStatus.READY, wait)


def ran_nothing(error: GatewayError) -> bool:
    """Tell whether an upstream's error proves that it did no work."""
    refused = isinstance(error, UpstreamRefused) and error.status_code < 500
    return refused or isinstance(error, UpstreamUnreachable)


def _comes_again(error: GatewayError) -> bool:
    busy = isinstance(error, UpstreamRefused) and error.status_code == 429
    return busy or isinstance(error, UpstreamUnreachable | SecretUnavailable)


def repeated_alone(batch: Batch) -> bool:
    """Tell whether a batch in doubt is sent again without asking anybody (APPR-5).

    Only if each tool that it lets run may run twice, by a word that can be trusted. The fence
    counts the attempts, so that also those of replicas that died are counted.
    """
    approved = (one for one in batch.approvals if one.status is ApprovalStatus.APPROVED)
    return batch.fence <= AUTOMATIC and all(one.annotations.repeatable for one in approved)


def approves(batch: Batch) -> bool:
    """Tell whether a batch lets any tool run."""
    return any(one.status is ApprovalStatus.APPROVED for one in batch.approvals)


def backoff(attempt: int) -> float:
    """Return the seconds to wait before another attempt: 0.5, 1, 2, 4, …"""
    return 0.5 * float(2 ** max(attempt - 1, 0))


def _asked_to_wait(error: GatewayError) -> float:
    if not isinstance(error, UpstreamRefused):
        return 0.0
    headers = error.upstream_headers
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return max(float(headers[name]) * unit, 0.0)
    return 0.0


def doubt() -> UpstreamDisconnected:
    """The error for answers that were sent, and of which nothing came back."""
    return UpstreamDisconnected(
        "The answer to the approvals was lost after it was sent; what ran is not known.",
        code="continuation_indeterminate",
    )


def lost() -> UpstreamDisconnected:
    """The error for a background turn whose replica ended after the request was sent."""
    return UpstreamDisconnected(
        "The replica that ran the response stopped after it had sent the request; what came of it "
        "is not known, and it is not sent a second time.",
        code="background_lost",
    )


def ending(*, sequence: int, error: GatewayError, response: Document) -> bytes:
    """Write the last frames of a stream whose turn ended with an error (API-5)."""
    return events.error_frames(
        sequence=sequence,
        kind=error.type,
        code=error.code,
        message=error.message,
        response=response,
    )


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
    state = running.state
    known = state.turn_id or "resp_" + secrets.token_hex(24)
    return own_response(msgspec.structs.replace(state, turn_id=known), status="failed")
