"""What pages say of approvals, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.console.render import Arguments, Piece, read_arguments, warnings
from gateway.console.sessions import Visitor
from gateway.domain.approvals import Approval, ApprovalStatus
from gateway.domain.documents import encode
from gateway.domain.errors import Unprocessable
from gateway.domain.grants import Scope
from gateway.domain.identity import Role
from gateway.domain.masking import Masked, mask

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
VIEWS = (("mine", "For me"), ("team", "My team"), ("all", "All"))
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
    "hold": "The turn stays held as long as it is kept, then the call is denied.",
    "rewind": "The turn goes back to before the call.",
}


_SCOPES = {
    Scope.ONCE: "this very call, with exactly these arguments, one more time",
    Scope.EXACT_ARGS: "this call with exactly these arguments, as often as it is asked",
    Scope.TOOL: "every call of this tool, whatever its arguments",
    Scope.SERVER: "every tool of this server that the same rule asks for, whatever its arguments",
}
_LIVES = (900, 3600, 8 * 3600, 24 * 3600)


@dataclass(frozen=True, slots=True)
class Change:
    """One argument that differs; `None` where there was or is none."""

    key: str
    before: Sequence[Piece] | None
    after: Sequence[Piece] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """The last approved call of the same tool, and how this one differs."""

    approval: Approval
    age: str
    changes: Sequence[Change]
    readable: bool


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
        masked: Where arguments are masked.
        voted: Whether the visitor has approved already and others are waited for.
        outcome: One sentence about a decided approval.
    """

    approval: Approval
    age: str
    left: str
    urgent: bool
    arguments: Arguments
    masked: Sequence[str]
    after_timeout: str
    voted: bool
    missing: int
    outcome: str
    destructive: bool
    claims: Sequence[tuple[str, str]]
    may_extend: bool
    may_escalate: bool


def is_destructive(approval: Approval) -> bool:
    """Whether the tool says that it destroys: a claim suffices to be careful."""
    return approval.annotations.destructive is True and approval.annotations.read_only is not True


def line(approval: Approval, now: float, *, decidable: bool) -> Line:
    """Say what the inbox shows."""
    left = approval.expires_at - now
    excerpt = approval.masked.text
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


def sheet(approval: Approval, now: float, subject: str, masked: Masked | None) -> Sheet:
    """Say what an approval's page shows to that visitor.

    Args:
        masked: The approval's arguments; `None` where nothing is to be masked.
    """
    approval = approval if masked is None else approval.shown(masked)
    left = approval.expires_at - now
    return Sheet(
        approval=approval,
        age=ago(now - approval.created_at),
        left=span(left),
        urgent=left < _URGENT,
        arguments=read_arguments(approval.arguments),
        masked=() if masked is None else masked.places,
        after_timeout=_AFTER_TIMEOUT[approval.on_timeout],
        voted=subject in approval.votes,
        missing=approval.quorum - len(approval.votes),
        outcome=_outcome(approval),
        destructive=is_destructive(approval),
        claims=claims(approval),
        may_extend=approval.extensions < approval.max_extensions,
        may_escalate=approval.level < len(approval.escalate),
    )


def claims(approval: Approval) -> list[tuple[str, str]]:
    """Put what the tool says of itself into words, each with how it looks."""
    told = approval.annotations
    said = (
        (told.read_only, "calm", "only reads"),
        (is_destructive(approval), "danger", "destructive"),
        (told.destructive is False, "calm", "not destructive"),
        (told.idempotent, "calm", "repeatable"),
        (told.open_world, "danger", "reaches the open world"),
    )
    return [(look, words) for holds, look, words in said if holds]


def compare(earlier: Approval, approval: Approval, now: float) -> Before:
    """Say how the arguments differ from those of an earlier call; what is masked, only that."""
    old, new = _values(earlier.arguments), _values(approval.arguments)
    old_shown = _values(mask(earlier.arguments, (*earlier.redact, *approval.redact)).text)
    new_shown = _values(approval.masked.text)
    changes = []
    if old is not None and new is not None and old_shown is not None and new_shown is not None:
        changes = [
            Change(key, old_shown.get(key), new_shown.get(key))
            for key in dict.fromkeys((*new, *old))
            if old.get(key) != new.get(key)
        ]
    return Before(
        approval=earlier,
        age=ago(now - (earlier.decided_at or earlier.created_at)),
        changes=changes,
        readable=old_shown is not None and new_shown is not None,
    )


def _values(arguments: str) -> dict[str, Sequence[Piece]] | None:
    rows = read_arguments(arguments).rows
    return None if rows is None else {row.key: row.value for row in rows}


def offers(approval: Approval) -> list[tuple[str, str]]:
    """List what may be granted beside an approval, from the narrowest, each in words."""
    terms = approval.grants
    alone = approval.quorum == 1 or terms.with_quorum
    widest = terms.widest(approval.annotations) if alone and approval.by == "approver" else None
    if widest is None or read_arguments(approval.arguments).rows is None:
        return []  # what cannot be shown whole is decided call by call
    return [(scope.value, said) for scope, said in _SCOPES.items() if scope.width <= widest.width]


def lives(approval: Approval) -> list[tuple[int, str]]:
    """List how long a grant may live."""
    most = approval.grants.max_ttl
    return [(each, span(each)) for each in _LIVES if each <= most] or [(int(most), span(most))]


def draft(approval: Approval) -> str:
    """Write the arguments out for changing, so that nothing in them is hidden; "" if unreadable."""
    try:
        document = json.loads(approval.arguments, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return ""
    return json.dumps(document, indent=2)


def _refuse_constant(text: str) -> object:
    raise ValueError(text)


def revision_of(text: str) -> str:
    """Read the arguments that a person asks for instead.

    Raises:
        Unprocessable: They are no JSON object.
    """
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise Unprocessable(f"The new arguments are not JSON: {exc}.", param="revision") from exc
    if not isinstance(document, dict):
        raise Unprocessable("The new arguments must be a JSON object.", param="revision")
    return text.strip()


def may_audit(visitor: Visitor) -> bool:
    """Whether the visitor may read the audit."""
    return visitor.caller.principal.has(Role.AUDITOR)


def may_cancel(visitor: Visitor, approval: Approval) -> bool:
    """Whether the visitor may withdraw the request."""
    principal = visitor.caller.principal
    mine = approval.requester == principal.subject and not approval.end_user
    return mine or principal.has(Role.ADMIN)


def proof(entries: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """Prepare the entries of the audit for reading."""
    wanted_keys = ("sequence", "time", "event", "outcome", "actor", "hash", "previous")
    return [
        {key: "" if (value := entry.get(key)) is None else str(value) for key in wanted_keys}
        for entry in (json.loads(encode(one)) for one in entries)
    ]


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
