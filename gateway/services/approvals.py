"""The approvals API: list, read, decide (APPR-6)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gateway.domain.approvals import Approval, Verdict, may_decide
from gateway.domain.errors import Forbidden, NotFound, Unprocessable
from gateway.domain.identity import Role
from gateway.domain.ports import ApprovalStore, Meter, TurnStore
from gateway.services.answers import refusal, vote_error
from gateway.services.callers import Caller, owned, response_not_found
from gateway.services.failpoints import Point, reached

logger = logging.getLogger("gateway.approvals")

_PAGE = 100
_PAGES = 100
"""Most pages that one listing looks at for approvals that the caller may see."""

_LONGEST_REASON = 2000


class ApprovalService:
    """Approvals as people and machines decide them."""

    def __init__(self, *, approvals: ApprovalStore, turns: TurnStore, meter: Meter) -> None:
        self._turns = turns
        self._approvals = approvals
        self._meter = meter

    async def list(
        self,
        caller: Caller,
        *,
        status: str | None,
        server: str | None,
        tool: str | None,
        after: str | None,
        limit: int,
    ) -> tuple[Sequence[Approval], bool]:
        """List the approvals that the caller may see, newest first."""
        _require_sight(caller)
        seen: list[Approval] = []
        for _ in range(_PAGES):  # a page is full although some are not for this caller
            found, more = await self._approvals.list(
                caller.tenant.id, status=status, server=server, tool=tool, after=after, limit=_PAGE
            )
            seen += (approval for approval in found if _sees(caller, approval))
            if not more or len(seen) > limit:
                break
            after = found[-1].id
        return seen[:limit], len(seen) > limit

    async def of_turn(self, caller: Caller, turn_id: str) -> Sequence[Approval]:
        """List the approvals of one response.

        Raises:
            NotFound: The tenant has no such response.
        """
        _require_sight(caller)
        head = await self._turns.head(caller.tenant.id, turn_id)
        oversees = caller.principal.has(Role.APPROVER) or caller.principal.has(Role.AUDITOR)
        if head is None or not (oversees or owned(head, caller)):
            raise response_not_found(turn_id)
        found, _ = await self._approvals.list(
            caller.tenant.id, status=None, turn_id=turn_id, limit=100
        )
        return [approval for approval in found if _sees(caller, approval)]

    async def retrieve(self, caller: Caller, approval_id: str) -> Approval:
        """Read one approval.

        Raises:
            NotFound: Unknown, of another tenant, or none that the caller may see.
        """
        approval = await self._approvals.get(caller.tenant.id, approval_id)
        if approval is None or not _sees(caller, approval):
            raise NotFound(
                f"There is no approval '{approval_id}'.", code="approval_not_found", param="id"
            )
        return approval

    def may_decide(self, caller: Caller, approval: Approval) -> bool:
        """Tell whether the caller may decide the approval now."""
        return approval.status == "pending" and may_decide(approval, caller.principal) is None

    async def decide(
        self,
        caller: Caller,
        approval_id: str,
        *,
        verdict: Verdict,
        fingerprint: str,
        reason: str | None,
        version: int | None,
    ) -> Approval:
        """Count the caller's decision.

        Raises:
            Forbidden: `not_an_approver`, `self_approval`.
            Conflict: `already_decided`, `vote_conflict`, `fingerprint_mismatch`.
            Gone: `expired`.
            PreconditionFailed: `If-Match` names another version.
        """
        approval = await self.retrieve(caller, approval_id)
        cause = may_decide(approval, caller.principal)
        if cause is None and approval.by == "caller" and not _is_own(caller, approval):
            cause = "not_an_approver"  # another end user's, behind the same service
        if cause is not None:
            raise refusal(cause)
        if reason is not None and len(reason) > _LONGEST_REASON:
            raise Unprocessable(
                f"'reason' has at most {_LONGEST_REASON} characters.",
                code="reason_too_long",
                param="reason",
            )
        result = await self._approvals.vote(
            caller.tenant.id,
            approval_id,
            actor=caller.principal.subject,
            verdict=verdict,
            fingerprint=fingerprint,
            reason=reason,
            version=version,
        )
        reached(Point.AFTER_VOTE)
        if result.problem is not None:
            raise vote_error(result.problem, result.approval)
        if result.approval is None:
            raise NotFound(f"There is no approval '{approval_id}'.", code="approval_not_found")
        logger.info(
            "an approval was voted on",
            extra={
                "approval": approval_id,
                "verdict": verdict.value,
                "status": result.approval.status.value,
                "key": caller.principal.key_id,
            },
        )
        if result.approval.status != "pending":
            self._meter.approval(
                server=result.approval.server, outcome=result.approval.status.value
            )
        return result.approval


def _require_sight(caller: Caller) -> None:
    if not any(caller.principal.has(role) for role in Role):
        raise Forbidden("Your key has no role.", code="forbidden")


def _sees(caller: Caller, approval: Approval) -> bool:
    """Approvers and auditors see their tenant's approvals, callers those of their own turns."""
    principal = caller.principal
    if principal.has(Role.APPROVER) or principal.has(Role.AUDITOR):
        return True
    if approval.by != "caller" and may_decide(approval, principal) is None:
        return True
    return _is_own(caller, approval)


def _is_own(caller: Caller, approval: Approval) -> bool:
    """Tell whether the approval is about the caller's own turn, for the same end user."""
    mine = approval.requester == caller.principal.subject
    return mine and approval.end_user in ("", caller.end_user)
