"""End turns that wait, on record and on every stream that follows them (API-5, APPR-4).

The record says how a turn ended, and the stream's last events are written from it. So both can be
done again after a crash, by any replica, and nobody waits for ever.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import msgspec

from gateway.domain import events
from gateway.domain.approvals import Batch
from gateway.domain.documents import NULL, encode, parse_document, raw
from gateway.domain.errors import Conflict, GatewayError
from gateway.domain.identity import Tenant
from gateway.domain.ports import ConversationStore, EventLog, Meter, Turn, TurnStore
from gateway.domain.turns import TurnState, read_state
from gateway.services.failures import doubt, ending
from gateway.services.following import RUNNING, Following

UNKEPT_TTL = 600
"""Seconds that the end of a held turn can be read where nothing is to be kept (STATE-4)."""

_ENDS = frozenset({"completed", "incomplete"})


class Endings:
    """Ends turns from outside their pipe."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        log: EventLog,
        following: Following,
        meter: Meter,
        tenants: Mapping[str, Tenant],
    ) -> None:
        self._turns = turns
        self._conversations = conversations
        self._log = log
        self._following = following
        self._meter = meter
        self._tenants = tenants

    async def end(self, batch: Batch, error: GatewayError, *, status: str = "failed") -> None:
        """End the turn of a batch, unless it has ended; in both cases its stream ends."""
        turn = await self._turns.read(batch.tenant, batch.turn_id)
        if turn is None:
            return
        if turn.head.status in RUNNING:
            turn = await self.record(turn, error, status=status)
            count(self._meter, read_state(batch.held), status)
        await self.close(turn, error)

    async def record(self, turn: Turn, error: GatewayError, *, status: str = "failed") -> Turn:
        """Put a turn on record as ended by an error."""
        shown = parse_document(turn.response) if turn.response else {}
        told = {"code": error.code or "server_error", "message": error.message}
        response = encode({**shown, "status": raw(status), "error": raw(told)})
        head = replace(turn.head, status=status, code=error.code or "")
        ended = replace(turn, head=head, response=response)
        await self._turns.record(ended, ttl=self._ttl(turn))
        if head.conversation:
            await self._conversations.unlock(head.tenant, head.conversation, head.id)
        return ended

    async def close(self, turn: Turn, error: GatewayError | None = None) -> None:
        """End the stream of a turn as its record says, if it was streamed and has not ended."""
        tenant, turn_id = turn.head.tenant, turn.head.id
        told = await self._following.told(tenant, turn_id)
        if told is None or told.ended:
            return
        if told.final:
            await self._log.append(tenant, turn_id, [], ttl=self._ttl(turn), end=True)
            return
        response = parse_document(turn.response)
        status = turn.head.status
        if status in _ENDS:
            kind = f"response.{status}"
            number = told.last + 1
            block = events.write(
                kind,
                {
                    "type": raw(kind),
                    "sequence_number": raw(number),
                    "response": raw(response),
                },
            )
        else:
            number = told.last + 2  # an error is told in two events
            block = ending(sequence=told.last + 1, error=error or _error(turn), response=response)
        await self._log.append(tenant, turn_id, [(number, block)], ttl=self._ttl(turn), end=True)

    def _ttl(self, turn: Turn) -> int:
        tenant = self._tenants.get(turn.head.tenant, Tenant(id=turn.head.tenant))
        return tenant.ttl if turn.items else UNKEPT_TTL


def count(meter: Meter, state: TurnState, status: str) -> float:
    """Count the end of a turn, and return how long it took in seconds."""
    seconds = time.time() - state.started_at
    meter.turn(
        upstream=state.upstream,
        model=state.model,
        status=status,
        streamed=state.streamed,
        legs=state.legs,
        seconds=seconds,
    )
    return seconds


class _Told(msgspec.Struct):
    code: str | None = None
    message: str = ""


def _error(turn: Turn) -> GatewayError:
    """Read the error of a turn that ended from its record."""
    told = msgspec.json.decode(parse_document(turn.response).get("error", NULL), type=_Told | None)
    if told is None:
        return GatewayError("The turn has failed.")
    return GatewayError(told.message, code=told.code)


def cancelled() -> Conflict:
    """The error of a turn that its caller cancelled."""
    return Conflict("The response was cancelled by its caller.", code="cancelled")


def abandoned(batch: Batch) -> tuple[GatewayError, str]:
    """Say how the turn of an abandoned batch ends: its error, and the response's status."""
    match batch.cause:
        case "caller":
            return cancelled(), "cancelled"
        case "timeout":
            return Conflict(
                "No approver answered in time, so the turn was taken back. Nothing was run; go "
                "on from the response before it.",
                code="approval_expired_rewound",
            ), "failed"
        case _:
            return (doubt() if _nobody_chose(batch) else _rewound()), "failed"


def _nobody_chose(batch: Batch) -> bool:
    steps = (step for one in batch.approvals for step in one.history)
    return any(step.event == "rewound" and step.actor == "timeout" for step in steps)


def _rewound() -> Conflict:
    return Conflict("The turn was taken back. Go on from the response before it.", code="rewound")
