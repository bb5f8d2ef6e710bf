"""Responses as the gateway keeps them, and how they are shown (STATE-7, APPR-3)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from gateway.domain.approvals import Approval, ApprovalStatus, Batch
from gateway.domain.documents import encode, parse_document, raw
from gateway.domain.ports import ApprovalStore, Turn, TurnStore
from gateway.services.callers import response_not_found
from gateway.services.following import RUNNING, Following

PENDING_HEADER = {"gateway-approval": "pending"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A JSON answer: status, headers that pass, body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class EventStream:
    """A stream for the caller: headers that pass, and its events; close it when done.

    Attributes:
        close: Releases what the events would have released, had they been begun.
    """

    headers: Mapping[str, str]
    events: AsyncGenerator[bytes, None]
    close: Callable[[], Awaitable[None]] | None = None

    async def aclose(self) -> None:
        """End the stream, begun or not, and whatever feeds it."""
        await self.events.aclose()
        if self.close is not None:
            await self.close()


def show_approval(approval: Approval) -> dict[str, object]:
    """Show an approval in a response's `gateway` field: what a caller needs to wait for it."""
    return {
        "id": approval.id,
        "status": approval.status.value,
        "approval_request_id": approval.request_id,
        "server_label": approval.server,
        "name": approval.tool,
        "expires_at": approval.expires_at,
        "by": approval.by,
        "url": f"/v1/approvals/{approval.id}",
    }


def gateway_field(batch: Batch) -> dict[str, object]:
    """Write the `gateway` field of a response with approvals (APPR-3)."""
    return {
        "approvals": [show_approval(approval) for approval in batch.approvals],
        "continuation": batch.status.value,
    }


class Records:
    """Reads recorded responses."""

    def __init__(self, *, turns: TurnStore, approvals: ApprovalStore, following: Following) -> None:
        self._turns = turns
        self._approvals = approvals
        self._following = following

    async def wait(self, tenant: str, turn_id: str, *, seconds: float) -> Answer:
        """Answer with a held turn as it is after up to `seconds`."""
        if seconds > 0:
            await self._following.until_settled(tenant, turn_id, seconds=seconds)
        turn = await self._turns.read(tenant, turn_id)
        if turn is None:
            raise response_not_found(turn_id)
        return await self.show(turn)

    async def show(self, turn: Turn) -> Answer:
        """Show a recorded response, with the state of its open approvals."""
        head = turn.head
        if not head.batch:
            return Answer(body=turn.response)
        batch = await self._approvals.batch(head.tenant, head.batch)
        if batch is None or not batch.approvals:
            return Answer(body=turn.response)
        shown = {**parse_document(turn.response), "gateway": raw(gateway_field(batch))}
        waits = head.status in RUNNING and any(
            approval.status is ApprovalStatus.PENDING for approval in batch.approvals
        )
        return Answer(headers=PENDING_HEADER if waits else {}, body=encode(shown))

    async def end(self, turn: Turn, *, status: str, ttl: int) -> None:
        """Note that a turn of which the upstream keeps the response has ended."""
        await self._turns.record(replace(turn, head=replace(turn.head, status=status)), ttl=ttl)
