"""What must be true of a call for a rule to match it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from gateway.domain.calls import Call
from gateway.domain.rules.arguments import parse_arguments
from gateway.domain.rules.model import ArgumentTest, Effect, PrincipalMatch, Rule, RuleError
from gateway.domain.rules.predicates import Predicate

CAREFUL = {"read_only": False, "destructive": True, "idempotent": False, "open_world": True}
"""What is assumed of a tool that does not say: MCP's own defaults."""


@dataclass(slots=True)
class Facts:
    """A call, with its arguments read once.

    Attributes:
        fault: Why the arguments cannot be read, or `None`.
    """

    call: Call
    fault: str | None = field(init=False, default=None)
    _arguments: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._arguments = parse_arguments(self.call.arguments)
        except RuleError as exc:
            self.fault = f"the arguments are unclear: {exc}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments.

        Raises:
            RuleError: They cannot be read.
        """
        if self.fault is not None:
            raise RuleError(self.fault)
        return self._arguments

    def document(self, arguments: object) -> dict[str, Any]:
        """Write the call for an engine, with the arguments in the form that it takes."""
        call = self.call
        said = msgspec.structs.asdict(call.annotations)
        return {
            "args": arguments,
            "server": call.server,
            "tool": call.tool,
            "trust": call.trust,
            "annotations": {name: value for name, value in said.items() if value is not None},
            "principal": {
                "tenant": call.tenant,
                "subject": call.subject,
                "roles": sorted(call.roles),
                "groups": sorted(call.groups),
                "end_user": call.end_user,
            },
            "chain": {
                "saw_untrusted": call.chain.saw_untrusted,
                "saw_private": call.chain.saw_private,
            },
        }

    @property
    def destructive(self) -> bool:
        """Whether the tool may destroy, as far as can be trusted."""
        said = self.call.annotations
        harmless = said.destructive is False or said.read_only is True
        return not (said.verified and harmless)


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must be true.

    Attributes:
        text: What it wants, for people.
        holds: Answers, or raises `RuleError`.
    """

    text: str
    holds: Callable[[Facts], bool]


def conditions(rule: Rule) -> tuple[Condition, ...]:
    """Compile what a rule wants beyond server and tool; the cheap ones come first."""
    return tuple(_conditions(rule))


def _conditions(rule: Rule) -> Iterator[Condition]:
    match = rule.match
    if match.trust:
        wanted = ", ".join(sorted(match.trust))
        yield Condition(f"trust is {wanted}", lambda facts: facts.call.trust in match.trust)
    yield from _principal(match.principal)
    for name, value in match.chain:
        yield Condition(f"chain.{name} is {_json(value)}", _chain(name, value))
    for name, value in match.annotations:
        yield Condition(
            f"annotations.{name} is {_json(value)}", _annotation(name, value, rule.effect)
        )
    for test in match.args:
        yield from _argument(test)
    if match.when is not None:
        yield Condition(f"when {match.when.source}", match.when.holds)


def _json(value: bool) -> str:
    return "true" if value else "false"


def _principal(match: PrincipalMatch) -> Iterator[Condition]:
    names: list[tuple[str, frozenset[str] | None, Callable[[Call], frozenset[str]]]] = [
        ("tenants", match.tenants, lambda call: frozenset({call.tenant})),
        ("groups", match.groups, lambda call: call.groups),
        ("roles", match.roles, lambda call: call.roles),
    ]
    for kind, wanted, own in names:
        if wanted is not None:
            text = f"principal.{kind} has {' or '.join(sorted(wanted))}"
            yield Condition(text, _any_name(wanted, own))
    patterns: list[tuple[str, tuple[str, ...] | None, Callable[[Call], str]]] = [
        ("subjects", match.subjects, lambda call: call.subject),
        ("end_users", match.end_users, lambda call: call.end_user),
    ]
    for kind, globs, who in patterns:
        if globs is not None:
            yield Condition(f"principal.{kind} is {' or '.join(globs)}", _any_glob(globs, who))


def _any_name(
    wanted: frozenset[str], own: Callable[[Call], frozenset[str]]
) -> Callable[[Facts], bool]:
    return lambda facts: not wanted.isdisjoint(own(facts.call))


def _any_glob(globs: tuple[str, ...], who: Callable[[Call], str]) -> Callable[[Facts], bool]:
    return lambda facts: any(fnmatchcase(who(facts.call), glob) for glob in globs)


def _chain(name: str, value: bool) -> Callable[[Facts], bool]:
    return lambda facts: getattr(facts.call.chain, name) is value


def _annotation(name: str, value: bool, effect: Effect) -> Callable[[Facts], bool]:
    """Compare an annotation so that no claim of an unverified server makes a ruling laxer.

    Such a claim never fits an allow rule. A stricter rule fits by a claim, and also where the
    careful default fits, whatever the server claims.
    """
    careful = CAREFUL[name]

    def holds(facts: Facts) -> bool:
        annotations = facts.call.annotations
        said = getattr(annotations, name)
        actual = careful if said is None else said
        if annotations.verified:
            return bool(actual is value)
        return effect is not Effect.ALLOW and value in (actual, careful)

    return holds


def _argument(test: ArgumentTest) -> Iterator[Condition]:
    """One condition for each predicate; `exists` alone can answer for what is not there."""
    for predicate in test.predicates:
        yield Condition(
            f"args.{test.pointer} {predicate.name} {predicate.operand!r}",
            _reading(test, predicate),
        )


def _reading(test: ArgumentTest, predicate: Predicate) -> Callable[[Facts], bool]:
    find = test.pointer.find

    def holds(facts: Facts) -> bool:
        try:
            return predicate(find(facts.arguments))
        except RuleError as exc:
            if facts.fault is not None:
                raise
            raise RuleError(f"args.{test.pointer} {exc}") from None

    return holds
