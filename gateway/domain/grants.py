"""Grants: a person's word for calls that are yet to come (APPR-8).

A grant answers, in a person's place, what one rule would ask. It is bound to that rule, to the
server's identity, to the tool's pinned definition, and to a chain, a principal or the tenant, and
it ends by time, uses, revocation, drift, a rule that forbids it now, or the end of its chain. It
answers nothing that another rule asks, and never a deny.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal, NoReturn

import msgspec
import rfc8785

from gateway.domain.calls import Annotations, Call

BoundTo = Literal["chain", "principal", "tenant"]
"""For whom: one chain of one principal, all chains of the principal (with its end user), or the
tenant. A principal is a subject and an end user."""

GrantStatus = Literal["waiting", "active", "used_up", "expired", "revoked", "dropped"]
"""`waiting`: the decision that it came with has not ended its approval yet. `dropped`: what it was
bound to has changed."""


class Scope(StrEnum):
    """Which calls, from the narrowest to the widest.

    `once` is the same tool with the same arguments, one more time; `exact_args` the same as often
    as its uses allow; `tool` any arguments; `server` any tool that the same rule asks for.
    """

    ONCE = "once"
    EXACT_ARGS = "exact_args"
    TOOL = "tool"
    SERVER = "server"

    @property
    def width(self) -> int:
        """Greater is wider."""
        return _WIDTH[self]

    @property
    def exact(self) -> bool:
        """Whether the arguments must be the same."""
        return self.width <= _WIDTH[Scope.EXACT_ARGS]


_WIDTH = {scope: width for width, scope in enumerate(Scope, 1)}


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """What a rule lets people grant.

    Attributes:
        max_scope: The widest scope; `None` forbids grants.
        max_scope_destructive: The same for tools that are destructive or open-world, or do not
            say, on a word that can be trusted, that they are neither.
        max_ttl: Most seconds that a grant lives.
        max_uses: Most uses of a grant; `None` means that time alone ends it.
        with_quorum: Whether one of several approvers may grant alone.
    """

    max_scope: Scope | None = Scope.EXACT_ARGS
    max_scope_destructive: Scope | None = Scope.EXACT_ARGS
    max_ttl: float = 3600.0
    max_uses: int | None = None
    with_quorum: bool = False

    def widest(self, annotations: Annotations) -> Scope | None:
        """Return the widest scope for a tool; `None` when there is none."""
        if harmless(annotations):
            return self.max_scope
        if self.max_scope is None or self.max_scope_destructive is None:
            return None
        return min(self.max_scope, self.max_scope_destructive, key=lambda scope: scope.width)


USUAL_TERMS = GrantTerms()
"""What a rule lets people grant that says nothing of it."""


def harmless(annotations: Annotations) -> bool:
    """Tell whether a tool can be trusted to neither destroy nor reach the open world.

    What an untrusted server claims, or any server leaves open, makes no tool harmless.
    """
    mild = annotations.read_only is True or annotations.destructive is False
    return annotations.verified and mild and annotations.open_world is False


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatigue:
    """When people are asked too often to read what they are asked.

    Attributes:
        asks: Most questions for one principal and tool within `window` seconds.
        action: "suggest" a grant to the approver, or "deny" what is beyond.
    """

    asks: int = 20
    window: float = 600.0
    action: Literal["suggest", "deny"] = "suggest"

    @property
    def reason(self) -> str:
        """Tell the model the true cause of a denial."""
        return (
            f"People were asked about this tool {self.asks} times within "
            f"{round(self.window / 60, 1):g} min, and are not asked again so soon. This is not a "
            "human refusal. Do not retry the call; tell the user that it was not asked for."
        )


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One grant.

    Attributes:
        id: `grt_…`.
        rule: The rule whose question it answers.
        subject, end_user: The principal that it is for; "" where it is bound to the tenant.
        chain_id: The response id of the chain's first turn; "" where it is not bound to one.
        tool, definition_hash, args_hash: "" where the scope does not say.
        made_by: Subject of the person that granted; `approval_id` where it came with a decision.
        waits_for: The vote of its maker with which it comes into force; "" for none. It is on
            record before the vote, so that the model cannot be quicker than the grant.
        ttl: Seconds that it lives; times are seconds since the epoch, by the store's clock.
        max_uses: `None` means that time alone ends it; `uses` is how often it was used.
        ended: Why it is `dropped`: `drift`, `policy`, `chain` or `approval`.
        ended_by: Subject of the person that revoked it.
    """

    id: str
    tenant: str
    scope: Scope
    bound_to: BoundTo
    rule: str
    server: str
    server_identity: str
    made_by: str
    ttl: float
    tool: str = ""
    definition_hash: str = ""
    args_hash: str = ""
    subject: str = ""
    end_user: str = ""
    chain_id: str = ""
    approval_id: str = ""
    waits_for: Literal["", "approve", "deny"] = ""
    reason: str | None = None
    max_uses: int | None = None
    created_at: float = 0.0
    expires_at: float = 0.0
    uses: int = 0
    status: GrantStatus = "active"
    ended: str = ""
    ended_by: str = ""

    @property
    def name(self) -> str:
        """Name what it answers; a call looks for it by the same text (`names`)."""
        return _name(
            self.bound_to,
            (self.subject, self.end_user, self.chain_id),
            (self.rule, self.server, self.tool, self.args_hash),
        )

    @property
    def pin(self) -> str:
        """Write what must not have changed since."""
        return _pin(self.server_identity, self.definition_hash)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A grant that would answer a call: its name, and what must be true of it.

    Attributes:
        policy: "use"; "skip" where the tool's annotations do not let a grant of this scope answer;
            "drop" where the rule has come to forbid it.
    """

    name: str
    pin: str
    policy: Literal["use", "skip", "drop"]


def candidates(call: Call, rule: str, terms: GrantTerms) -> Iterator[Candidate]:
    """Name the grants that would answer a call that `rule` asks for, the narrowest first.

    Arguments that cannot be brought into the one canonical form match no exact grant.
    """
    arguments = args_hash(call.arguments)
    widest = terms.widest(call.annotations)
    for scope in (Scope.EXACT_ARGS, Scope.TOOL, Scope.SERVER):
        if scope.exact and arguments is None:
            continue
        bound = bound_call(call, rule, scope, arguments or "")
        policy = _policy(scope, terms.max_scope, widest)
        for bound_to, principal in _principals(call):
            yield Candidate(
                _name(bound_to, principal, (rule, call.server, bound.tool, bound.args_hash)),
                _pin(call.server_identity, bound.definition_hash),
                policy,
            )


@dataclass(frozen=True, slots=True)
class BoundCall:
    """What of a call a grant of some scope is bound to."""

    rule: str
    tool: str
    definition_hash: str
    args_hash: str


def bound_call(call: Call, rule: str, scope: Scope, arguments: str) -> BoundCall:
    """Leave out what a scope does not say."""
    if scope is Scope.SERVER:
        return BoundCall(rule, "", "", "")
    return BoundCall(rule, call.tool, call.definition_hash, arguments if scope.exact else "")


def _policy(
    scope: Scope, most: Scope | None, widest: Scope | None
) -> Literal["use", "skip", "drop"]:
    # `once` and `exact_args` share a name; a `once` is stored as one use of its arguments.
    least = Scope.ONCE if scope.exact else scope
    if most is None or most.width < least.width:
        return "drop"
    return "use" if widest is not None and widest.width >= least.width else "skip"


def _principals(call: Call) -> Iterator[tuple[BoundTo, tuple[str, str, str]]]:
    if call.chain.id:
        yield "chain", (call.subject, call.end_user, call.chain.id)
    yield "principal", (call.subject, call.end_user, "")
    yield "tenant", ("", "", "")


def _name(bound_to: BoundTo, principal: tuple[str, str, str], what: tuple[str, ...]) -> str:
    # A JSON array is injective, so that no two different grants have one name.
    return json.dumps(["gw-grant-v1", bound_to, *principal, *what], separators=(",", ":"))


def _pin(server_identity: str, definition_hash: str) -> str:
    return json.dumps([server_identity, definition_hash], separators=(",", ":"))


def args_hash(arguments: str) -> str | None:
    """Hash the arguments in their one canonical form (RFC 8785): `sha256:<hex>`.

    Returns:
        `None` when they have none: no JSON object, a key twice, a number that readers disagree
        about, half of a surrogate pair.
    """
    try:
        value = _strict.decode(arguments)
        if not isinstance(value, dict):
            return None
        canonical = rfc8785.dumps(value)
    except (ArithmeticError, ValueError, RecursionError):
        return None
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 32:
        raise ValueError("too long for any number that readers agree about")
    return int(text)


def _refuse(_: str) -> NoReturn:
    raise ValueError("not a number")


def _number(text: str) -> float:
    value = float(text)
    if Decimal(text) != Decimal(repr(value)):
        raise ValueError("more digits than readers agree about")
    return value


_strict = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_integer, parse_float=_number, parse_constant=_refuse
)


def new_grant_id() -> str:
    """Make a grant id: `grt_` and 128 random bits."""
    return "grt_" + secrets.token_hex(16)


def grant_id_of(approval_id: str, actor: str) -> str:
    """Name the one grant that an actor can make with an approval, so that a repeat makes none."""
    text = json.dumps([approval_id, actor])
    return "grt_" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
