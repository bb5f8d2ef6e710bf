"""What a rule says, and what all of them say of a call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from gateway.domain.registry import Trust
from gateway.domain.terms import DEFAULT_TERMS, ApprovalTerms

if TYPE_CHECKING:
    from gateway.domain.rules.arguments import Pointer
    from gateway.domain.rules.conditions import Facts
    from gateway.domain.rules.predicates import Predicate


class Effect(StrEnum):
    """What a rule says, from the least to the most restrictive."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


STRICTNESS = {Effect.ALLOW: 0, Effect.ASK: 1, Effect.DENY: 2}


class RuleError(Exception):
    """A rule cannot be evaluated for a call; the text holds no value of an argument."""


class Expression(Protocol):
    """A compiled `when` (see `adapters/cel.py`)."""

    @property
    def source(self) -> str:
        """The text of the configuration."""
        ...

    def holds(self, facts: Facts) -> bool:
        """Evaluate it.

        Raises:
            RuleError: It has no answer for this call, or one that is not true or false.
        """
        ...


@dataclass(frozen=True, slots=True)
class ArgumentTest:
    """What must be true of the argument at a JSON pointer: all of the predicates."""

    pointer: Pointer
    predicates: tuple[Predicate, ...]

    @property
    def document(self) -> dict[str, Any]:
        """As the configuration writes it."""
        return {predicate.name: predicate.operand for predicate in self.predicates}


@dataclass(frozen=True, slots=True)
class PrincipalMatch:
    """For whom a call is; `None` means that it does not matter, and all others must fit.

    Attributes:
        tenants, groups, roles: Any of the names; case-sensitive.
        subjects, end_users: Any of the patterns. The end user is what the caller says.
    """

    tenants: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    roles: frozenset[str] | None = None
    subjects: tuple[str, ...] | None = None
    end_users: tuple[str, ...] | None = None

    @property
    def document(self) -> dict[str, list[str]]:
        """As the configuration writes it."""
        named = {
            "tenants": self.tenants and sorted(self.tenants),
            "groups": self.groups and sorted(self.groups),
            "roles": self.roles and sorted(self.roles),
            "subjects": self.subjects,
            "end_users": self.end_users,
        }
        return {name: list(values) for name, values in named.items() if values}


@dataclass(frozen=True, slots=True)
class Match:
    """Which calls a rule is about: all that is written must fit.

    Attributes:
        server, tool: Patterns with `*`, `?` and `[…]`, case-sensitive.
        annotations: Wanted values by name (`read_only`, `destructive`, …); see `conditions`.
        trust: The server's trust is one of these; empty means any.
        chain: Wanted values of `saw_untrusted` and `saw_private`.
        when: An expression over the whole call.
    """

    server: str = "*"
    tool: str = "*"
    args: tuple[ArgumentTest, ...] = ()
    annotations: tuple[tuple[str, bool], ...] = ()
    trust: frozenset[Trust] = frozenset()
    principal: PrincipalMatch = PrincipalMatch()
    chain: tuple[tuple[str, bool], ...] = ()
    when: Expression | None = None

    @property
    def can_fail(self) -> bool:
        """Whether evaluating it can end in an error, which then asks."""
        return bool(self.args) or self.when is not None

    @property
    def document(self) -> dict[str, Any]:
        """As the configuration writes it, without what it leaves open."""
        written = {
            "args": {str(test.pointer): test.document for test in self.args},
            "annotations": dict(self.annotations),
            "trust": sorted(self.trust),
            "principal": self.principal.document,
            "chain": dict(self.chain),
        }
        return {
            "server": self.server,
            "tool": self.tool,
            **{name: value for name, value in written.items() if value},
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the configuration.

    Attributes:
        mode: "shadow" is evaluated and reported, and decides nothing.
        on_error: What a call gets when the rule cannot be evaluated for it; `None` means deny
            where a deny rule meets a tool that may destroy, else ask.
    """

    id: str
    match: Match
    effect: Effect
    approval: ApprovalTerms = DEFAULT_TERMS
    reason: str | None = None
    mode: Literal["enforce", "shadow"] = "enforce"
    on_error: Literal["ask", "deny"] | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say of one call, and which rule said it.

    Attributes:
        rule: The id of the deciding rule, or `default`.
        reason: The rule's own text; shown to people, and told to the model on a deny.
        errors: What could not be evaluated, `RULE: WHY` each; such a ruling is never an allow.
        matched: The ids of all rules that match, those in shadow mode too.
        shadow: The ruling if shadow rules were in force, where it is another one.
        version: The hash of the rules that said so.
    """

    effect: Effect
    rule: str
    approval: ApprovalTerms = DEFAULT_TERMS
    reason: str | None = None
    errors: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    shadow: Ruling | None = None
    version: str = ""

    @property
    def strictness(self) -> tuple[int, bool, int]:
        """An order: by effect; among asks a person other than the caller, then the quorum."""
        terms = self.approval
        return STRICTNESS[self.effect], terms.by == "approver", terms.quorum


@dataclass(frozen=True, slots=True)
class RuleFault:
    """What is wrong with a rule as it is written.

    Attributes:
        path: The key inside the rule; "" where the rule as a whole is the fault.
        index: The rule's place, from 0; `None` where it is about none of them.
        rule: The rule's id, where it has one.
        line: Where it stands in a text, if it came as one.
    """

    path: str
    message: str
    index: int | None = None
    rule: str | None = None
    line: int | None = None


class InvalidRules(Exception):
    """Rules that cannot be used."""

    def __init__(self, faults: Iterable[RuleFault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(f"{fault.path}: {fault.message}" for fault in self.faults))


def strictest(rulings: Iterable[Ruling]) -> Ruling:
    """Choose the most restrictive ruling; the first of equals."""
    return max(rulings, key=lambda ruling: ruling.strictness)
