"""Approvals: batches, votes, the inbox (APPR-4 to APPR-7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

from gateway.domain.approvals import REVALIDATION, Approval, Batch, BatchStatus, Event, Verdict

VoteProblem = Literal[
    "not_found",
    "already_decided",
    "vote_conflict",
    "fingerprint_mismatch",
    "version_mismatch",
    "expired",
    "idempotency_key_reused",
    "too_many_extensions",
    "beyond_retention",
    "no_escalation_left",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteResult:
    """What became of a vote or another change of an approval.

    Attributes:
        approval: As it is now; as it was then, where an `Idempotency-Key` is repeated.
        problem: Why nothing was changed, if so.
        counted: Whether this very call changed something; false for a repeat.
    """

    approval: Approval | None
    problem: VoteProblem | None = None
    counted: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Once:
    """An `Idempotency-Key`, and the body of the request that it came with."""

    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """Something that happened to an approval; what it says is read from the approval itself."""

    cursor: str
    event: Event
    approval_id: str


@dataclass(frozen=True, slots=True)
class InboxPage:
    """A part of a tenant's inbox.

    Attributes:
        cursor: Where to go on.
        lost: Whether events before this page are kept no more.
    """

    entries: Sequence[InboxEntry]
    cursor: str
    lost: bool = False


class ApprovalStore(Protocol):
    """Approvals and batches; every transition is one atomic function by the store's clock."""

    async def open_batch(
        self,
        *,
        tenant: str,
        batch_id: str,
        turn_id: str,
        approvals: Sequence[Approval],
        held: bytes,
        ttl: int,
        claim_lease: float | None = None,
    ) -> Batch:
        """Create a batch with its approvals; `created_at` and `expires_at` are set here.

        Approvals that come with a final status are born decided. With none pending the batch is
        `ready` with one continuation job, or, with `claim_lease`, claimed by the caller at once
        with fence 1 and no job. A batch that exists is returned unchanged, so that a repeat
        does no harm. Every transition from here on puts an event into the outbox for approvals
        with `by == "approver"`, and into the inbox. The turn is kept as long as the batch.
        """
        ...

    async def get(self, tenant: str, approval_id: str) -> Approval | None:
        """Read an approval; one that is past its time is expired first."""
        ...

    async def list(
        self,
        tenant: str,
        *,
        status: str | None,
        server: str | None = None,
        tool: str | None = None,
        chain: str | None = None,
        turn_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[Sequence[Approval], bool]:
        """List approvals, newest first, and tell whether there are more.

        Args:
            chain: The id of the chain's first response.
        """
        ...

    async def counts(self, tenant: str) -> Mapping[str, int]:
        """Count approvals by status, in one round trip; those just expired may still count."""
        ...

    async def by_request(self, tenant: str, request_ids: Sequence[str]) -> Mapping[str, Approval]:
        """Find approvals by the upstream's request ids (`mcpr_…`)."""
        ...

    async def vote(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        verdict: Verdict,
        fingerprint: str,
        reason: str | None,
        version: int | None = None,
        revision: str | None = None,
        once: Once | None = None,
    ) -> VoteResult:
        """Count one vote; whether the actor may vote was checked before.

        One deny decides, approvals count up to the quorum. The same vote again by the same
        actor changes nothing and is no problem. The last pending approval that is decided makes
        the batch ready with exactly one continuation job. Approvals with `by == "caller"` make
        no job: the caller's next request continues.

        Args:
            version: The vote counts only for this version of the approval.
            revision: The arguments that the voter asks for instead, as JSON.
            once: The same key with the same body within 24 hours gets the same answer again.
        """
        ...

    async def extend(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        seconds: float,
        version: int | None = None,
    ) -> VoteResult:
        """Give a pending approval more time: as often as its rule says, within its retention."""
        ...

    async def escalate(
        self, tenant: str, approval_id: str, *, actor: str, version: int | None = None
    ) -> VoteResult:
        """Add the approvers of the next level now; time does the same by the rule's `after`."""
        ...

    async def cancel(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        reason: str,
        version: int | None = None,
    ) -> VoteResult:
        """Withdraw a pending approval for somebody who may; the model is told so."""
        ...

    async def supersede(
        self, tenant: str, approval_id: str, *, cause: str, by: str = REVALIDATION
    ) -> VoteResult:
        """Withdraw a pending approval whose ground has gone: a drifted tool, a new rule."""
        ...

    async def inbox(self, tenant: str, *, after: str = "", limit: int = 100) -> InboxPage:
        """Read what happened to approvals after a cursor; without one, only tell where now is."""
        ...

    async def expire_due(self, tenant: str) -> Sequence[str]:
        """Do what time has brought: expire, escalate, warn. Returns the ids that expired."""
        ...

    async def batch(self, tenant: str, batch_id: str) -> Batch | None:
        """Read a batch with its approvals and what it holds."""
        ...

    async def claim(self, tenant: str, batch_id: str, *, lease: float) -> Batch | None:
        """Claim a ready batch, or one whose lease lapsed before dispatch, for `lease` seconds.

        `None` when there is nothing to claim. A batch whose lease lapsed after dispatch becomes
        `indeterminate` and is not claimed: its request may have arrived (APPR-5).
        """
        ...

    async def renew(self, tenant: str, batch_id: str, *, fence: int, lease: float) -> bool:
        """Extend a claim; false when the fence is no longer ours."""
        ...

    async def dispatch(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        superseded: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Write `dispatched`, before the request is sent; false when it must not be sent.

        Args:
            superseded: Ids of approvals that were given and hold no more, each with the cause;
                they are put on record as `superseded` in the same step.
        """
        ...

    async def forget(self, tenant: str, batch_id: str) -> None:
        """Delete the turn that a batch holds, unless it may still go on (STATE-4)."""
        ...

    async def finish(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        status: BatchStatus,
        next_response_id: str | None = None,
        upstream_request: str = "",
        delay: float = 0.0,
    ) -> bool:
        """End a claim as `done`, `failed` or `indeterminate`, or give it back as `ready`.

        What is `done` holds its turn no more: that is on record, or held by the next batch.
        `ready` is for a continuation of which nothing ran: it may be claimed once more, and its
        job comes after `delay` seconds.
        `upstream_request` is the upstream's own id of the request that was sent, for the audit.
        """
        ...

    async def abandon(
        self, tenant: str, batch_id: str, *, reason: str, running: bool = False
    ) -> bool:
        """Cancel a waiting batch and its pending approvals; false when it is past waiting.

        For the turn's own caller, who ends the turn itself: no job is made.

        Args:
            running: Cancel it as well while it runs, for a turn in background: its worker is
                given a hint, and cannot renew its claim.
        """
        ...

    async def retry(self, tenant: str, batch_id: str, *, by: str, once: str = "") -> bool:
        """Send the answers of an `indeterminate` batch once more: `ready`, with a new job.

        Where the caller itself answered there is no job: it sends its answers again.

        What the first request ran may run again. So the gateway does this by itself only where
        every approved tool bears it, else for a person who was told (APPR-5).

        Args:
            by: `subject:…`, or `policy:…` where no person chose.
            once: An `Idempotency-Key`: the same one by the same person changes nothing more.

        Returns:
            False when the batch is not in doubt (any more).
        """
        ...

    async def rewind(
        self, tenant: str, batch_id: str, *, by: str, reason: str, once: str = ""
    ) -> bool:
        """Give up a `waiting` or `indeterminate` batch: `abandoned`, with `cause` "rewind".

        The chain goes on from the turn before. Pending approvals are canceled. As after a
        time-out with `on_timeout = "rewind"` (`cause` "timeout"), a continuation job is made, and
        whoever takes it finds the batch abandoned and ends the turn.

        Args:
            by: `subject:…`, or `timeout` where nobody chose in time.
            once: As for `retry`.

        Returns:
            False when the batch is past that.
        """
        ...
