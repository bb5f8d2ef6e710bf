"""A person's choice for a held turn that cannot go on by itself: retry or rewind (APPR-5)."""

from __future__ import annotations

import logging
from typing import Literal

from gateway.domain.approvals import Batch, BatchStatus, may_decide
from gateway.domain.errors import Conflict
from gateway.domain.identity import Role
from gateway.domain.ports import ApprovalStore, TurnHead, TurnStore
from gateway.services.answers import refusal
from gateway.services.callers import Caller, owned, response_not_found
from gateway.services.records import Answer, Records

logger = logging.getLogger("gateway.approvals")

Action = Literal["retry", "rewind"]

_GOES_ON = frozenset(
    {BatchStatus.READY, BatchStatus.CLAIMED, BatchStatus.DISPATCHED, BatchStatus.DONE}
)
_REASON = "The turn was taken back by a person."


class Resumption:
    """Retries or rewinds turns."""

    def __init__(self, *, turns: TurnStore, approvals: ApprovalStore, records: Records) -> None:
        self._turns = turns
        self._approvals = approvals
        self._records = records

    async def choose(self, caller: Caller, response_id: str, action: Action) -> Answer:
        """Retry or rewind a turn whose answers are in doubt, or rewind one that is held.

        A retry may run a tool a second time, so it is for those who may decide every approval
        that a person gave, and for admins. A rewind runs nothing: the turn's own caller may
        choose it as well.

        Raises:
            NotFound: The caller may not know of the response.
            Forbidden: `not_an_approver`, `self_approval`.
            Conflict: `not_indeterminate`, `already_continued`.
        """
        head = await self._turns.head(caller.tenant.id, response_id)
        batch = None
        if head is not None and head.batch:
            batch = await self._approvals.batch(head.tenant, head.batch)
        if head is None or not _sees(caller, head, batch):
            raise response_not_found(response_id)
        cause = _refused(caller, head, batch)
        own = owned(head, caller) and caller.principal.has(Role.CALLER)
        if cause is not None and (action == "retry" or not own):
            raise refusal(cause)
        if batch is None:
            raise _not_in_doubt(head)
        _check(head, batch, action)
        by = f"subject:{caller.principal.subject}"
        if action == "retry":
            changed = await self._approvals.retry(head.tenant, batch.id, by=by)
        else:
            changed = await self._approvals.rewind(head.tenant, batch.id, by=by, reason=_REASON)
        if not changed:
            raise _too_late(head)
        logger.info(
            "a person chose for a turn in doubt",
            extra={
                "turn": head.id,
                "batch": batch.id,
                "action": action,
                "key": caller.principal.key_id,
            },
        )
        return await self._records.wait(head.tenant, head.id, seconds=0)


def _sees(caller: Caller, head: TurnHead, batch: Batch | None) -> bool:
    """Tell whether the caller may know of the turn: its own, or one that it has a say in."""
    if caller.principal.has(Role.APPROVER) or owned(head, caller):
        return True
    approvals = batch.approvals if batch else ()
    return any(
        one.by == "approver" and may_decide(one, caller.principal) is None for one in approvals
    )


def _refused(caller: Caller, head: TurnHead, batch: Batch | None) -> str | None:
    """Say why the caller may not have the answers of a batch sent again, or `None`."""
    if caller.principal.has(Role.ADMIN):
        return None
    asked = [one for one in (batch.approvals if batch else ()) if one.by != "policy"]
    if not asked or not all(owned(head, caller) for one in asked if one.by == "caller"):
        return "not_an_approver"
    causes = (may_decide(one, caller.principal) for one in asked)
    return next((cause for cause in causes if cause is not None), None)


def _check(head: TurnHead, batch: Batch, action: Action) -> None:
    if batch.status is BatchStatus.INDETERMINATE:
        return
    if batch.status in _GOES_ON and batch.fence > 1:
        raise _too_late(head)
    if batch.status is BatchStatus.ABANDONED:
        raise _too_late(head)
    held = any(one.on_timeout == "hold" for one in batch.approvals)
    if action == "retry" or batch.status is not BatchStatus.WAITING or not held:
        raise _not_in_doubt(head)


def _not_in_doubt(head: TurnHead) -> Conflict:
    return Conflict(
        f"The response '{head.id}' is not in doubt: there is nothing to choose.",
        code="not_indeterminate",
        param="id",
    )


def _too_late(head: TurnHead) -> Conflict:
    return Conflict(
        f"Somebody has chosen for the response '{head.id}' already.",
        code="already_continued",
        param="id",
    )
