"""`gateway.approval.*` events, for callers that ask with `Gateway-Events: approvals` (APPR-3).

They carry no `sequence_number` and are not kept: they tell of the approvals as they are now, and
strict clients, which never ask, never see an unknown event.
"""

from __future__ import annotations

from gateway.domain import events
from gateway.domain.approvals import Approval, ApprovalStatus
from gateway.domain.documents import raw
from gateway.domain.errors import StoreUnavailable
from gateway.domain.ports import ApprovalStore
from gateway.services.callers import Caller
from gateway.services.records import show_approval

_MOST = 100


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

    async def look(self) -> bytes:
        """Write an event for each approval that is new or has changed, oldest first."""
        try:
            found, _ = await self._approvals.list(
                self._tenant, status=None, turn_id=self._turn_id, limit=_MOST
            )
        except StoreUnavailable:
            return b""  # the stream itself waits for the store to come back
        return b"".join(self._tell(approval) for approval in reversed(found))

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
