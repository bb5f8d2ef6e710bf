"""The approvals API: list, read, decide (APPR-6)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from gateway.domain.approvals import Approval, Verdict, may_decide
from gateway.domain.errors import Forbidden, NotFound, Unprocessable
from gateway.domain.identity import Role
from gateway.domain.ports import ApprovalStore, Meter
from gateway.services.answers import refusal, vote_error
from gateway.services.callers import Caller

logger = logging.getLogger("gateway.approvals")


class ApprovalService:
    """Approvals as people and machines decide them."""

    def __init__(self, *, approvals: ApprovalStore, meter: Meter) -> None:
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
        found, more = await self._approvals.list(
            caller.tenant.id, status=status, server=server, tool=tool, after=after, limit=limit
        )
        return [approval for approval in found if _sees(caller, approval)], more

    async def of_turn(self, caller: Caller, turn_id: str) -> Sequence[Approval]:
        """List the approvals of one response."""
        _require_sight(caller)
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
        if cause is not None:
            raise refusal(cause)
        if verdict is Verdict.DENY and reason is not None and len(reason) > 2000:
            raise Unprocessable("'reason' has at most 2000 characters.", param="reason")
        result = await self._approvals.vote(
            caller.tenant.id,
            approval_id,
            actor=caller.principal.subject,
            verdict=verdict,
            fingerprint=fingerprint,
            reason=reason,
            version=version,
        )
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
    if may_decide(approval, principal) is None:
        return True
    return approval.requester == principal.subject and approval.end_user in ("", caller.end_user)
