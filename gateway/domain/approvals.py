"""Approvals and their batches: states, fingerprints, who may decide (APPR-1, APPR-5 to APPR-7).

    approval   pending → approved | denied | expired | canceled | superseded
    batch      waiting → ready → claimed → dispatched → done | failed | indeterminate
               waiting → abandoned          by the caller, by time (`rewind`), by a person
               indeterminate → ready | abandoned        a person's retry or rewind

A batch is all approval requests of one upstream response; upstream wants them answered together.
The transitions themselves are atomic functions in the store; this module holds what can be
decided without it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from gateway.domain.calls import UNANNOTATED, Annotations
from gateway.domain.grants import USUAL_TERMS, GrantTerms
from gateway.domain.identity import Principal, Role
from gateway.domain.masking import Masked, mask
from gateway.domain.registry import Trust
from gateway.domain.terms import Escalation, OnTimeout, ReasonRequired


class ApprovalStatus(StrEnum):
    """Where an approval is; every status but `pending` is final."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELED = "canceled"
    SUPERSEDED = "superseded"


class BatchStatus(StrEnum):
    """Where the continuation of a turn is."""

    WAITING = "waiting"
    READY = "ready"
    CLAIMED = "claimed"
    DISPATCHED = "dispatched"
    DONE = "done"
    FAILED = "failed"
    INDETERMINATE = "indeterminate"
    ABANDONED = "abandoned"


class Verdict(StrEnum):
    """What a person says."""

    APPROVE = "approve"
    DENY = "deny"


Event = Literal[
    "requested",
    "voted",
    "escalated",
    "extended",
    "expiring",
    "resolved",
    "rewound",
    "retried",
]

Abandonment = Literal["", "caller", "timeout", "rewind"]
"""Why a batch was given up: canceled by its caller, by `on_timeout`, or by a person."""


REVALIDATION = "policy:revalidation"
"""Who withdraws an approval that holds no more when it is about to be used (APPR-7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One line of an approval's history.

    Attributes:
        at: Seconds since the epoch, by the store's clock.
        status: The approval's status after it.
        actor: `subject:…`, `policy:…`, `grant:…`, `timeout`, or `None` where nobody is known.
        reason: What the actor said.
    """

    event: Event
    at: float
    status: ApprovalStatus
    actor: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One `mcp_approval_request` of an upstream, and its answer.

    Attributes:
        id: Ours, `apr_…`; `request_id` is the upstream's, `mcpr_…`.
        turn_id: The response id that the caller sees; `response_id` the leg that asked.
        batch_id: Equal to `response_id`; the tenant scopes it.
        definition_hash: Of the tool's pinned definition when it was asked for, or "" (MCP-5).
        annotations, trust: What the tool said of itself, and whether its server is vouched for.
        chain_id: The response id of the chain's first turn.
        arguments: The raw JSON text from the upstream, never re-encoded.
        requester: Subject of the principal whose turn asks.
        end_user: The end user that the turn is for, or "".
        description: What the tool says that it does, when its definition was known.
        rule_version: The hash of the rules that asked.
        by: Who answers: "approver", "caller" (the native flow), or "policy" (born decided).
        grants: What people may grant instead of deciding each call; as it was when created.
        redact: JSON pointers to arguments that are masked for who decides.
        suggest_grant: Whether people were asked the like so often that a grant would be better.
        created_at: Seconds since the epoch, by the store's clock; so are the other times.
        approvers: Those of the levels of escalation so far; `escalate` holds all levels.
        level: How often it was escalated.
        extensions: How often it was given more time.
        decided_by: `subject:…`, `grant:<id>`, `policy:<rule>` or `timeout`.
        votes: Subjects that approved so far.
        revision: The arguments that a person asked for instead, as JSON.
        history: What happened so far, the oldest first.
        version: Rises with every change; the ETag.
    """

    id: str
    tenant: str
    batch_id: str
    turn_id: str
    response_id: str
    request_id: str
    upstream: str
    server: str
    server_identity: str
    tool: str
    arguments: str
    fingerprint: str
    requester: str
    end_user: str = ""
    definition_hash: str = ""
    annotations: Annotations = UNANNOTATED
    trust: Trust = "untrusted"
    chain_id: str = ""
    description: str | None = None
    rule: str = "default"
    rule_version: str = ""
    rule_reason: str | None = None
    by: Literal["approver", "caller", "policy"] = "approver"
    approvers: tuple[str, ...] = ()
    quorum: int = 1
    allow_self: bool = False
    on_timeout: OnTimeout = "deny"
    timeout: float = 1800.0
    escalate: tuple[Escalation, ...] = ()
    max_extensions: int = 3
    reason_required: ReasonRequired = "never"
    level: int = 0
    extensions: int = 0
    grants: GrantTerms = USUAL_TERMS
    redact: tuple[str, ...] = ()
    suggest_grant: bool = False
    created_at: float = 0.0
    expires_at: float = 0.0
    status: ApprovalStatus = ApprovalStatus.PENDING
    decided_by: str | None = None
    decided_at: float | None = None
    reason: str | None = None
    votes: tuple[str, ...] = ()
    revision: str | None = None
    version: int = 1
    history: tuple[Transition, ...] = ()

    @property
    def masked(self) -> Masked:
        """The arguments as they are shown to who decides."""
        return mask(self.arguments, self.redact)

    def shown(self, masked: Masked) -> Approval:
        """Write the approval as who decides sees it: arguments masked, wherever they stand.

        Args:
            masked: Its own `masked`, which is worth reading once.
        """
        revision = self.revision and mask(self.revision, self.redact).text

        def told(reason: str | None) -> str | None:
            if not (reason and revision and self.revision):
                return reason
            return reason.replace(self.revision, revision)

        return replace(
            self,
            arguments=masked.text,
            revision=revision,
            reason=told(self.reason),
            history=tuple(replace(line, reason=told(line.reason)) for line in self.history),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All approvals of one upstream response, and the continuation that answers them.

    Attributes:
        id: The upstream response id of the leg that asked.
        open: How many approvals are still pending.
        fence: Rises with every claim; a holder of an older one can do nothing.
        held: What is needed to go on with the turn (opaque here; encrypted at rest).
        cause: Why it was abandoned, else "".
    """

    id: str
    tenant: str
    turn_id: str
    status: BatchStatus
    open: int
    fence: int
    approvals: tuple[Approval, ...]
    held: bytes = b""
    next_response_id: str | None = None
    cause: Abandonment = ""


def new_approval_id() -> str:
    """Make an approval id: `apr_` and 128 random bits."""
    return "apr_" + secrets.token_hex(16)


def fingerprint(
    *,
    tenant: str,
    principal: str,
    chain_id: str,
    response_id: str,
    request_id: str,
    server: str,
    server_identity: str,
    tool: str,
    definition_hash: str,
    arguments: str,
) -> str:
    """Bind an approval to exactly one call (APPR-7).

    A JSON array is injective: no two different inputs give the same text, which joining with
    separators does not promise. The arguments enter as the raw text that upstream sent.
    """
    parts = [
        "gw-approval-v1",
        tenant,
        principal,
        chain_id,
        response_id,
        request_id,
        server,
        server_identity,
        tool,
        definition_hash,
        hashlib.sha256(arguments.encode("utf-8", "surrogatepass")).hexdigest(),
    ]
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def may_decide(approval: Approval, actor: Principal) -> str | None:
    """Tell why the actor may not decide the approval, or `None` when it may.

    Returns:
        `not_an_approver`, `self_approval` or `None`. Requester and actor are compared by
        subject, so a second key of the same person changes nothing.
    """
    if approval.by == "caller":
        return None if actor.subject == approval.requester else "not_an_approver"
    if approval.by == "policy" or not is_approver(approval.approvers, actor):
        return "not_an_approver"
    mine = actor.subject == approval.requester
    mine = mine or (approval.end_user != "" and actor.subject == approval.end_user)
    return "self_approval" if mine and not approval.allow_self else None


def is_approver(approvers: Iterable[str], actor: Principal) -> bool:
    """Tell whether an actor is among approvers, by subject, group or role."""
    """Tell whether a principal is among `role:…`, `group:…` and `subject:…`."""
    names = {f"subject:{actor.subject}"}
    names.update(f"group:{group}" for group in actor.groups)
    names.update(f"role:{role}" for role in Role if actor.has(role))
    return not names.isdisjoint(approvers)


def reason_missing(approval: Approval, verdict: Verdict, reason: str | None) -> bool:
    """Tell whether the rule wants a reason that the decision does not give."""
    wanted = approval.reason_required == "always" or (
        approval.reason_required == "deny" and verdict is Verdict.DENY
    )
    return wanted and not (reason or "").strip()


def decided_with_others(approval: Approval) -> bool:
    """Tell whether an approval may be given in one go with others.

    Not where several people must look, and only for tools of which somebody who vouches for them
    says that they destroy nothing.
    """
    says = approval.annotations
    harmless = says.verified and (says.read_only is True or says.destructive is False)
    return approval.quorum == 1 and harmless


def revision_reason(tool: str, arguments: str, reason: str | None) -> str:
    """Tell the model which call would be allowed instead of the one that is denied."""
    text = f"Denied as it is. Call {tool} again with exactly these arguments: {arguments}"
    return f"{text}\nReason: {reason}" if reason else text


def _span(seconds: float) -> str:
    """Write a length of time in its largest unit that is exact enough."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= (size if unit == "min" else 2 * size):
            return f"{round(seconds / size)} {unit}"
    return f"{round(seconds)} s"


def withdrawn(batch: Batch) -> dict[str, str]:
    """Name the approvals of a checked batch that hold no more, each with what the model is told."""
    return {
        one.id: answer(one)[1] or ""
        for one in batch.approvals
        if one.status is ApprovalStatus.SUPERSEDED
    }


def _waited(approval: Approval) -> float:
    """How long there was to decide, extensions included."""
    return approval.expires_at - approval.created_at or approval.timeout


def answer(approval: Approval) -> tuple[bool, str | None]:
    """Say what the upstream is told of a decided approval: approve or not, and the true cause.

    An expiry is never told as a human refusal.
    """
    match approval.status:
        case ApprovalStatus.APPROVED:
            return True, None
        case ApprovalStatus.DENIED:
            return False, approval.reason or "Denied."
        case ApprovalStatus.EXPIRED:
            return False, (
                f"No approver answered within {_span(_waited(approval))}. "
                "This is not a human refusal. "
                "Do not retry the call; tell the user that it was not approved in time."
            )
        case ApprovalStatus.CANCELED:
            return False, approval.reason or "The request was canceled before a decision."
        case ApprovalStatus.SUPERSEDED:
            return False, approval.reason or "The tool or its rules changed before a decision."
        case ApprovalStatus.PENDING:
            raise ValueError("a pending approval has no answer")
