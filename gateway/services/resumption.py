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
from gateway.services.refusals import Refusals

logger = logging.getLogger("gateway.approvals")

Action = Literal["retry", "rewind"]

_REASON = "The turn was taken back by a person."


class Resumption:
    """Retries or rewinds turns."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        approvals: ApprovalStore,
        records: Records,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._turns = turns
        self._approvals = approvals
        self._records = records

    async def choose(
        self, caller: Caller, response_id: str, action: Action, *, once: str = ""
    ) -> Answer:
        """Retry or rewind a turn whose answers are in doubt, or rewind one that is held.

        A retry may run a tool a second time, so it is for those who may decide every approval
        that a person gave, and for admins. A rewind runs nothing: the turn's own caller may
        choose it as well.

        Args:
            once: An `Idempotency-Key`: repeated, it answers again and changes nothing.

        Raises:
            NotFound: The caller may not know of the response.
            Forbidden: `not_an_approver`, `self_approval`.
            Conflict: `not_indeterminate`, `already_continued`.
        """
        async with self._refusals.noted(caller, response_id, tried=action):
            return await self._choose(caller, response_id, action, once)

    async def _choose(self, caller: Caller, response_id: str, action: Action, once: str) -> Answer:
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
        if batch.status is BatchStatus.WAITING and not _is_held(batch, action):
            raise _not_in_doubt(head)
        by = f"subject:{caller.principal.subject}"
        if action == "retry":
            changed = await self._approvals.retry(head.tenant, batch.id, by=by, once=once)
        else:
            changed = await self._approvals.rewind(
                head.tenant, batch.id, by=by, reason=_REASON, once=once
            )
        if not changed:
            raise _too_late(head) if _chosen(batch) else _not_in_doubt(head)
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


def _is_held(batch: Batch, action: Action) -> bool:
    """Tell whether a batch waits without end, and is to be given up."""
    return action == "rewind" and any(one.on_timeout == "hold" for one in batch.approvals)


def _chosen(batch: Batch) -> bool:
    """Tell whether somebody has chosen before: the batch was in doubt, or is given up."""
    return batch.status in (BatchStatus.INDETERMINATE, BatchStatus.ABANDONED) or batch.fence > 1


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
