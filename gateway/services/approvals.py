"""The approvals API: list, read, follow, decide and change (APPR-6)."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gateway.domain.approvals import (
    Approval,
    Event,
    Verdict,
    decided_with_others,
    is_approver,
    may_decide,
    reason_missing,
    revision_reason,
)
from gateway.domain.errors import (
    BadRequest,
    Forbidden,
    GatewayError,
    NotFound,
    StoreUnavailable,
    Unprocessable,
)
from gateway.domain.hints import inbox_hint
from gateway.domain.identity import Role
from gateway.domain.masking import is_masked
from gateway.domain.ports import (
    ApprovalStore,
    AuditLog,
    Hint,
    Meter,
    Once,
    TurnStore,
    VoteResult,
    Wake,
)
from gateway.services.answers import reason_required, refusal, vote_error
from gateway.services.callers import Caller, owned, response_not_found
from gateway.services.failpoints import Point, reached
from gateway.services.following import LOOK_AGAIN
from gateway.services.grants import Grants, Wanted
from gateway.services.refusals import Refusals, refusals_noted

logger = logging.getLogger("gateway.approvals")

Whose = Literal["all", "mine", "team"]

_PAGE = 100
_PAGES = 100
"""Most pages that one listing looks at for approvals that the caller may see."""

_LONGEST_REASON = 2000
_LONGEST_REVISION = 16_000

_CURSOR = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Decision:
    """One of many decisions of one request."""

    id: str
    verdict: Verdict
    fingerprint: str
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class News:
    """Something that a reader of the inbox is told.

    Attributes:
        cursor: Where to go on after it.
        event: `None` only tells where the stream begins.
        lost: Events before this are kept no more, so that a list must be read anew.
    """

    cursor: str
    event: Event | None = None
    approval: Approval | None = None
    lost: bool = False


class ApprovalService:
    """Approvals as people and machines decide them.

    Args:
        drained: Set when the process wants no more streams that another replica can go on with.
    """

    def __init__(
        self,
        *,
        approvals: ApprovalStore,
        grants: Grants,
        turns: TurnStore,
        audit: AuditLog,
        wake: Wake,
        meter: Meter,
        drained: asyncio.Event,
        refusals: Refusals,
    ) -> None:
        self.refusals = refusals
        self._turns = turns
        self._audit = audit
        self._wake = wake
        self._drained = drained
        self._approvals = approvals
        self._grants = grants
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
        chain: str | None = None,
        whose: Whose = "all",
    ) -> tuple[Sequence[Approval], bool]:
        """List the approvals that the caller may see, newest first.

        Args:
            chain: The id of the chain's first response.
            whose: "mine" are those that wait for the caller's own vote, "team" those that are
                asked of a group or role of the caller, or of the caller by name.
        """
        _require_sight(caller)
        seen: list[Approval] = []
        for _ in range(_PAGES):  # a page is full although some are not for this caller
            found, more = await self._approvals.list(
                caller.tenant.id,
                status=status,
                server=server,
                tool=tool,
                chain=chain,
                after=after,
                limit=_PAGE,
            )
            seen += (
                approval
                for approval in found
                if _sees(caller, approval) and _WHOSE[whose](caller, approval)
            )
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
        if head is None or not (_oversees(caller) or owned(head, caller)):
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

    @refusals_noted
    async def reveal(self, caller: Caller, approval_id: str) -> Approval:
        """Read an approval in order to show it without masks; the audit knows it before.

        Raises:
            Forbidden: `missing_role`.
            NotFound: Unknown, of another tenant, or none that the caller may see.
        """
        approval = await self.retrieve(caller, approval_id)
        actor = caller.principal
        if not actor.has(Role.REVEALER):
            raise Forbidden("This needs the role 'revealer'.", code="missing_role")
        await self._audit.note(
            caller.tenant.id,
            "approval.revealed",
            actor=f"subject:{actor.subject}",
            subject=approval.id,
            detail={"key": actor.key_id, "places": list(approval.masked.places)},
        )
        return approval

    async def counts(self, caller: Caller) -> Mapping[str, int] | None:
        """Count the tenant's approvals by status; `None` for who does not see them all."""
        if not _oversees(caller):
            return None
        return await self._approvals.counts(caller.tenant.id)

    def may_decide(self, caller: Caller, approval: Approval) -> bool:
        """Tell whether the caller may decide the approval now."""
        return approval.status == "pending" and may_decide(approval, caller.principal) is None

    @refusals_noted
    async def decide(
        self,
        caller: Caller,
        approval_id: str,
        *,
        verdict: Verdict,
        fingerprint: str,
        reason: str | None,
        version: int | None,
        revision: str | None = None,
        grant: Wanted | None = None,
        once: Once | None = None,
    ) -> Approval:
        """Count the caller's decision.

        Args:
            revision: With a deny: the arguments that would be approved, a JSON object. The model
                is told of them in a reason that is made here, and may make that call once.
            grant: With an approval: what is granted beside it.
            once: The request's `Idempotency-Key`.

        Raises:
            Forbidden: `not_an_approver`, `self_approval`, `masked_arguments`.
            Conflict: `already_decided`, `vote_conflict`, `fingerprint_mismatch`,
                `idempotency_key_reused`.
            Gone: `expired`.
            PreconditionFailed: `If-Match` names another version.
            Unprocessable: `reason_required`, `reason_too_long`, `arguments_too_long`,
                `invalid_arguments`, `revision_denied`, and those of a grant (see `Grants.plan`).
        """
        actor = caller.principal
        approval = await self._decidable(caller, approval_id)
        told = _reason(approval, verdict, reason, revision)
        if grant is not None and not _sees_all(caller, approval):
            raise Forbidden(
                "Arguments of this call are masked for you: decide it alone, without a grant.",
                code="masked_arguments",
            )
        given = None if grant is None else self._grants.plan(approval, actor, grant)
        if revision is not None:
            given = await self._grants.plan_revision(approval, actor, revision)
        async with self._grants.voted(approval, actor, given):
            result = await self._approvals.vote(
                caller.tenant.id,
                approval_id,
                actor=actor.subject,
                verdict=verdict,
                fingerprint=fingerprint,
                reason=told,
                version=version,
                revision=revision,
                once=once,
            )
            reached(Point.AFTER_VOTE)
            return self._changed(caller, approval_id, result, "voted")

    async def decide_together(
        self, caller: Caller, decisions: Sequence[Decision], *, key: str | None
    ) -> Sequence[Approval | GatewayError]:
        """Count many decisions, each by itself, and tell what became of each, in their order."""
        results: list[Approval | GatewayError] = []
        for decision in decisions:
            try:
                results.append(await self._decide_one_of_many(caller, decision, key))
            except GatewayError as exc:
                if isinstance(exc, StoreUnavailable):
                    raise  # of what follows nothing can be told either; a repeat does no harm
                results.append(exc)
        return results

    async def _decide_one_of_many(
        self, caller: Caller, decision: Decision, key: str | None
    ) -> Approval:
        async with self.refusals.noted(caller, decision.id, tried="decide"):
            approval = await self._decidable(caller, decision.id)
        if decision.verdict is Verdict.APPROVE and not decided_with_others(approval):
            raise Unprocessable(
                "This call must be approved by itself: several people decide it, or the tool may "
                "destroy something.",
                code="single_decision_required",
                param="decision",
            )
        return await self.decide(
            caller,
            decision.id,
            verdict=decision.verdict,
            fingerprint=decision.fingerprint,
            reason=decision.reason,
            version=None,
            once=None if key is None else Once(key, repr(decision).encode()),
        )

    @refusals_noted
    async def extend(
        self, caller: Caller, approval_id: str, *, seconds: float | None, version: int | None
    ) -> Approval:
        """Give an approval more time: as much as it had, unless the approver says.

        Raises:
            Forbidden: `not_an_approver`, `self_approval`.
            Conflict: `already_decided`, `too_many_extensions`.
            Gone: `expired`.
            Unprocessable: `beyond_retention`.
        """
        approval = await self._decidable(caller, approval_id)
        result = await self._approvals.extend(
            caller.tenant.id,
            approval_id,
            actor=caller.principal.subject,
            seconds=approval.timeout if seconds is None else seconds,
            version=version,
        )
        return self._changed(caller, approval_id, result, "extended")

    @refusals_noted
    async def escalate(self, caller: Caller, approval_id: str, *, version: int | None) -> Approval:
        """Ask the next approvers of the rule now, whom time would have added later.

        Raises:
            Forbidden: `not_an_approver`, `self_approval`.
            Conflict: `already_decided`, `no_escalation_left`.
            Gone: `expired`.
        """
        await self._decidable(caller, approval_id)
        result = await self._approvals.escalate(
            caller.tenant.id, approval_id, actor=caller.principal.subject, version=version
        )
        return self._changed(caller, approval_id, result, "escalated")

    @refusals_noted
    async def cancel(
        self, caller: Caller, approval_id: str, *, reason: str | None, version: int | None
    ) -> Approval:
        """Withdraw a request: who asks may, and an admin.

        Raises:
            Forbidden: `not_the_requester`.
            Conflict: `already_decided`.
            Gone: `expired`.
        """
        approval = await self.retrieve(caller, approval_id)
        mine = _is_own(caller, approval)
        if not mine and not caller.principal.has(Role.ADMIN):
            raise Forbidden(
                "Only who asks, or an admin, may cancel a request.", code="not_the_requester"
            )
        _check_length(reason)
        who = "requester" if mine else "administrator"
        result = await self._approvals.cancel(
            caller.tenant.id,
            approval_id,
            actor=caller.principal.subject,
            reason=reason or f"The {who} withdrew the request. Nobody refused it.",
            version=version,
        )
        return self._changed(caller, approval_id, result, "canceled")

    async def inbox(self, caller: Caller, *, after: str) -> AsyncGenerator[News, None]:
        """Follow what happens to the approvals that the caller may see, until the process drains.

        Args:
            after: The cursor of the last event that was read; "" begins now.

        Raises:
            BadRequest: The cursor is none.
        """
        _require_sight(caller)
        if after and _CURSOR.fullmatch(after) is None:
            raise BadRequest(
                "'Last-Event-ID' must be the id of an event of this stream.",
                code="invalid_value",
                param="Last-Event-ID",
            )
        begun = after or (await self._approvals.inbox(caller.tenant.id)).cursor
        return self._follow(caller, begun)

    async def _follow(self, caller: Caller, cursor: str) -> AsyncGenerator[News, None]:
        tenant = caller.tenant.id
        with self._wake.listen(inbox_hint(tenant)) as hint:
            yield News(cursor)
            while not self._drained.is_set():
                try:
                    page = await self._approvals.inbox(tenant, after=cursor)
                    if page.lost:
                        yield News(cursor if page.entries else page.cursor, lost=True)
                    for entry in page.entries:
                        approval = await self._approvals.get(tenant, entry.approval_id)
                        if approval is not None and _sees(caller, approval):
                            yield News(entry.cursor, entry.event, approval)
                        cursor = entry.cursor
                    cursor = page.cursor
                except StoreUnavailable:
                    await hint.wait(LOOK_AGAIN)  # the inbox outlives the store's restart
                    continue
                if not page.entries:
                    await self._wait(hint)

    async def _wait(self, hint: Hint) -> None:
        for _ in range(round(LOOK_AGAIN)):
            if self._drained.is_set() or await hint.wait(1.0):
                return

    async def _decidable(self, caller: Caller, approval_id: str) -> Approval:
        """Read an approval that the caller is one to decide, as things are now."""
        approval = await self.retrieve(caller, approval_id)
        cause = may_decide(approval, caller.principal)
        if cause is None and approval.by == "caller" and not _is_own(caller, approval):
            cause = "not_an_approver"  # another end user's, behind the same service
        if cause is not None:
            raise refusal(cause)
        return approval

    def _changed(self, caller: Caller, approval_id: str, result: VoteResult, what: str) -> Approval:
        approval = result.approval
        if result.problem is not None or approval is None:
            raise vote_error(result.problem or "not_found", approval)
        logger.info(
            "an approval was changed",
            extra={
                "approval": approval_id,
                "change": what,
                "status": approval.status.value,
                "key": caller.principal.key_id,
            },
        )
        if result.counted and approval.status != "pending":
            self._meter.approval(server=approval.server, outcome=approval.status.value)
            if what == "voted" and approval.by == "approver" and approval.decided_at:
                self._meter.decided(
                    server=approval.server,
                    outcome=approval.status.value,
                    seconds=approval.decided_at - approval.created_at,
                )
        return approval


def _sees_all(caller: Caller, approval: Approval) -> bool:
    """Tell whether nothing of the arguments is masked, or the caller may see it nonetheless."""
    return caller.principal.has(Role.REVEALER) or not approval.masked.places


def _reason(
    approval: Approval, verdict: Verdict, reason: str | None, revision: str | None
) -> str | None:
    _check_length(reason)
    if revision is not None:
        if len(revision) > _LONGEST_REVISION:
            raise Unprocessable(
                f"'arguments' have at most {_LONGEST_REVISION} characters.",
                code="arguments_too_long",
                param="arguments",
            )
        if is_masked(revision):
            raise Unprocessable(
                "'arguments' hold a mask instead of a value.",
                code="invalid_arguments",
                param="arguments",
            )
        return revision_reason(approval.tool, revision, reason)
    if reason_missing(approval, verdict, reason):
        raise reason_required()
    return reason


def _check_length(reason: str | None) -> None:
    if reason is not None and len(reason) > _LONGEST_REASON:
        raise Unprocessable(
            f"'reason' has at most {_LONGEST_REASON} characters.",
            code="reason_too_long",
            param="reason",
        )


def _require_sight(caller: Caller) -> None:
    if not any(caller.principal.has(role) for role in Role):
        raise Forbidden("Your key has no role.", code="forbidden")


def _sees(caller: Caller, approval: Approval) -> bool:
    """Approvers and auditors see their tenant's approvals, callers those of their own turns."""
    if _oversees(caller):
        return True
    if approval.by != "caller" and may_decide(approval, caller.principal) is None:
        return True
    return _is_own(caller, approval)


def _oversees(caller: Caller) -> bool:
    return caller.principal.has(Role.APPROVER) or caller.principal.has(Role.AUDITOR)


def _assigned(caller: Caller, approval: Approval) -> bool:
    """Tell whether the caller is one whose vote an approval waits for."""
    if approval.by == "caller":
        return _is_own(caller, approval)
    voted = caller.principal.subject in approval.votes
    return not voted and may_decide(approval, caller.principal) is None


def _asked_of(caller: Caller, approval: Approval) -> bool:
    """Tell whether an approval was asked of the caller or a group of it, decided or not."""
    return approval.by == "approver" and is_approver(approval.approvers, caller.principal)


_WHOSE: dict[Whose, Callable[[Caller, Approval], bool]] = {
    "all": lambda _caller, _approval: True,
    "mine": _assigned,
    "team": _asked_of,
}


def _is_own(caller: Caller, approval: Approval) -> bool:
    """Tell whether the approval is about the caller's own turn, for the same end user."""
    mine = approval.requester == caller.principal.subject
    return mine and approval.end_user in ("", caller.end_user)
