"""`gateway.approval.*` and `gateway.continuation.*` events, for callers that ask (APPR-3).

They ask with `Gateway-Events: approvals`. The events carry no `sequence_number` and are not kept:
they tell of the approvals as they are now, and strict clients, which never ask, never see an
unknown event.
"""

from __future__ import annotations

from gateway.domain import events
from gateway.domain.approvals import Approval, ApprovalStatus, Batch, BatchStatus
from gateway.domain.documents import raw
from gateway.domain.errors import StoreUnavailable
from gateway.domain.ports import ApprovalStore
from gateway.services.callers import Caller
from gateway.services.records import show_approval

_MOST = 100

_STEPS = {
    BatchStatus.DISPATCHED: "started",
    BatchStatus.DONE: "completed",
    BatchStatus.FAILED: "failed",
    BatchStatus.ABANDONED: "failed",
    BatchStatus.INDETERMINATE: "indeterminate",
}
"""What a caller is told of a batch that has come to a state."""


def wants_notices(caller: Caller) -> bool:
    """Tell whether the caller asked for the events."""
    wanted = caller.headers.get("gateway-events", "")
    return "approvals" in {word.strip().lower() for word in wanted.split(",")}


class Notices:
    """What has changed about a turn's approvals since the last look."""

    def __init__(self, approvals: ApprovalStore, tenant: str, turn_id: str) -> None:
        self._approvals = approvals
        self._tenant = tenant
        self._turn_id = turn_id
        self._known: dict[str, int] = {}
        self._told: dict[str, tuple[int, str]] = {}

    async def look(self) -> bytes:
        """Write an event for each approval that is new or has changed, oldest first.

        Then one for each step of a continuation; two steps between two looks are both told.
        """
        try:
            found, _ = await self._approvals.list(
                self._tenant, status=None, turn_id=self._turn_id, limit=_MOST
            )
            ids = dict.fromkeys(one.batch_id for one in reversed(found))
            batches = [await self._approvals.batch(self._tenant, id_) for id_ in ids]
        except StoreUnavailable:
            return b""  # the stream itself waits for the store to come back
        told = [self._tell(approval) for approval in reversed(found)]
        told += [self._go_on(batch) for batch in batches if batch is not None]
        return b"".join(told)

    def _go_on(self, batch: Batch) -> bytes:
        """Write what is new of a batch: each attempt begins once, and ends in at most one way."""
        fence, before = self._told.get(batch.id, (0, ""))
        ended = _STEPS.get(batch.status, "")
        begun = ended not in ("", "failed") or batch.status is BatchStatus.FAILED
        told = b""
        if begun and fence < batch.fence:
            told += self._step(batch, "started")
            before = "started"
        if ended not in ("", "started") and ended != before:
            told += self._step(batch, ended)
        if told:
            self._told[batch.id] = (batch.fence if begun else fence, ended)
        return told

    def _step(self, batch: Batch, step: str) -> bytes:
        kind = f"gateway.continuation.{step}"
        continuation = {
            "response_id": self._turn_id,
            "batch": batch.id,
            "attempt": batch.fence,
            "status": batch.status.value,
        }
        return events.write(kind, {"type": raw(kind), "continuation": raw(continuation)})

    def _tell(self, approval: Approval) -> bytes:
        if approval.by == "policy" or self._known.get(approval.id) == approval.version:
            return b""
        new = approval.id not in self._known
        self._known[approval.id] = approval.version
        shown = b"" if not new else _write("gateway.approval.requested", approval)
        if approval.status is not ApprovalStatus.PENDING:
            return shown + _write("gateway.approval.resolved", approval)
        return shown if new else _write("gateway.approval.voted", approval)


def _write(kind: str, approval: Approval) -> bytes:
    return events.write(kind, {"type": raw(kind), "approval": raw(show_approval(approval))})
