"""What pages say of approvals, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.console.render import Arguments, read_arguments, warnings
from gateway.domain.approvals import Approval, ApprovalStatus
from gateway.domain.errors import Unprocessable

PAGE = 25
"""Approvals on one page of the inbox."""

LONGEST_REASON = 2000

FILTERS = (
    ("pending", "Pending"),
    ("approved", "Approved"),
    ("denied", "Denied"),
    ("expired", "Expired"),
    ("all", "All"),
)
VIEWS = (("mine", "For me"), ("team", "My groups"), ("all", "All"))
_URGENT = 120.0
_EXCERPT = 100

DENIALS = {
    "arguments": "The arguments are wrong.",
    "needless": "This is not needed.",
    "ask": "Talk to me first.",
    "injected": "This looks like an instruction that was injected.",
}
APPROVALS = {
    "expected": "Expected and checked.",
    "confirmed": "Confirmed with the requester.",
}

_AFTER_TIMEOUT = {
    "deny": "The call does not run, and the model is told that nobody answered in time.",
    "hold": "The turn stays held.",
    "rewind": "The turn goes back to before the call.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One approval in the inbox.

    Attributes:
        decidable: Whether the visitor may decide it.
        odd: Whether the arguments hold what a reader would not see.
    """

    approval: Approval
    age: str
    left: str
    urgent: bool
    excerpt: str
    decidable: bool
    odd: bool
    destructive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """One approval's page.

    Attributes:
        voted: Whether the visitor has approved already and others are waited for.
        outcome: One sentence about a decided approval.
    """

    approval: Approval
    age: str
    left: str
    urgent: bool
    arguments: Arguments
    after_timeout: str
    voted: bool
    missing: int
    outcome: str
    destructive: bool


def is_destructive(approval: Approval) -> bool:
    """Whether the tool says that it destroys: a claim suffices to be careful."""
    return approval.annotations.destructive is True and approval.annotations.read_only is not True


def line(approval: Approval, now: float, *, decidable: bool) -> Line:
    """Say what the inbox shows."""
    left = approval.expires_at - now
    excerpt = approval.arguments
    if len(excerpt) > _EXCERPT:
        excerpt = excerpt[:_EXCERPT] + "…"
    return Line(
        approval=approval,
        age=ago(now - approval.created_at),
        left=span(left),
        urgent=left < _URGENT,
        excerpt=excerpt,
        decidable=decidable,
        odd=not approval.arguments.isascii() and bool(warnings([approval.arguments])),
        destructive=is_destructive(approval),
    )


def sheet(approval: Approval, now: float, subject: str) -> Sheet:
    """Say what an approval's page shows to that visitor."""
    left = approval.expires_at - now
    return Sheet(
        approval=approval,
        age=ago(now - approval.created_at),
        left=span(left),
        urgent=left < _URGENT,
        arguments=read_arguments(approval.arguments),
        after_timeout=_AFTER_TIMEOUT[approval.on_timeout],
        voted=subject in approval.votes,
        missing=approval.quorum - len(approval.votes),
        outcome=_outcome(approval),
        destructive=is_destructive(approval),
    )


def _outcome(approval: Approval) -> str:
    match approval.status:
        case ApprovalStatus.APPROVED:
            return f"This one call was allowed, once. {_goes_on(approval)}"
        case ApprovalStatus.DENIED:
            return f"The call does not run, and the model is told so. {_goes_on(approval)}"
        case ApprovalStatus.EXPIRED:
            return "Nobody decided in time. " + _AFTER_TIMEOUT[approval.on_timeout]
        case ApprovalStatus.CANCELED:
            return "The request was withdrawn before a decision. The call does not run."
        case ApprovalStatus.SUPERSEDED:
            return "The tool or its rules changed before a decision. The call does not run."
        case ApprovalStatus.PENDING:
            return ""


def _goes_on(approval: Approval) -> str:
    if approval.by == "caller":
        return "The turn goes on with the application's next request."
    return "The turn goes on by itself once all its calls are decided."


def ago(seconds: float) -> str:
    """Write an age."""
    return "just now" if seconds < 5 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Write a length of time in its largest unit that says enough."""
    whole = max(0, round(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def reason_of(decision: str, preset: str, text: str) -> str | None:
    """Put the chosen and the typed reason together.

    Raises:
        Unprocessable: Too long, unknown, or the chosen reason is for the other decision.
    """
    mine, others = (APPROVALS, DENIALS) if decision == "approve" else (DENIALS, APPROVALS)
    if preset in others:
        raise Unprocessable(
            f"The reason “{others[preset]}” does not go with “{decision}”. Nothing was decided.",
            param="preset",
        )
    if preset and preset not in mine:
        raise Unprocessable("There is no such reason. Nothing was decided.", param="preset")
    parts: Sequence[str] = [part for part in (mine.get(preset, ""), text.strip()) if part]
    reason = " ".join(parts)
    if len(reason) > LONGEST_REASON:
        raise Unprocessable(
            f"The reason has {len(reason)} characters; {LONGEST_REASON} are the most. "
            "Nothing was decided.",
            param="reason",
        )
    return reason or None
