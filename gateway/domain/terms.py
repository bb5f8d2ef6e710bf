"""How a person decides: what a rule says of it, and what an approval keeps of that (APPR-6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gateway.domain.grants import USUAL_TERMS, GrantTerms

OnTimeout = Literal["deny", "hold", "rewind"]
ReasonRequired = Literal["never", "deny", "always"]


@dataclass(frozen=True, slots=True)
class Escalation:
    """Who else may decide once nobody has for a while.

    Attributes:
        after: Seconds since the approval was asked for.
        to: `role:NAME`, `group:NAME` or `subject:NAME`, in addition to those before.
    """

    after: float
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ApprovalTerms:
    """How a person decides.

    Attributes:
        by: "approver" (the gateway owns the answer) or "caller" (the native flow).
        approvers: `role:NAME`, `group:NAME` or `subject:NAME`; any of them may decide.
        timeout: Seconds until nobody's answer becomes an answer.
        on_timeout: "deny" answers the call; "hold" waits as long as the turn is kept; "rewind"
            gives the turn up, so that the chain goes on from the turn before it.
        escalate: In the order of time.
        max_extensions: How often approvers may give themselves more time.
        reason_required: For which decisions a person must say why.
        grants: What people may grant instead of deciding each call.
        redact: JSON pointers to arguments that are masked for who decides.
    """

    by: Literal["approver", "caller"] = "approver"
    approvers: tuple[str, ...] = ("role:approver",)
    quorum: int = 1
    allow_self: bool = False
    timeout: float = 30 * 60.0
    on_timeout: OnTimeout = "deny"
    escalate: tuple[Escalation, ...] = ()
    max_extensions: int = 3
    reason_required: ReasonRequired = "never"
    grants: GrantTerms = USUAL_TERMS
    redact: tuple[str, ...] = ()

    @property
    def everyone(self) -> tuple[str, ...]:
        """All who may ever decide, escalations included."""
        return widened(self.approvers, self.escalate)


DEFAULT_TERMS = ApprovalTerms()
"""Where no rule says otherwise."""


def widened(approvers: Iterable[str], escalations: Iterable[Escalation]) -> tuple[str, ...]:
    """Return approvers and those that escalations add, each once."""
    added = (name for escalation in escalations for name in escalation.to)
    return tuple(dict.fromkeys((*approvers, *added)))
