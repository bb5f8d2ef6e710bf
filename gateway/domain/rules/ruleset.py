"""Deciding by all rules: once and for all for a tool, or for one call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

from gateway.domain.calls import Call
from gateway.domain.registry import Trust
from gateway.domain.rules.conditions import Condition, Facts, conditions
from gateway.domain.rules.model import Effect, Rule, RuleError, Ruling, strictest

T = TypeVar("T")
_MOST_CACHED = 10_000  # names come from outside, so the caches are bounded

_UNKNOWN_SERVER = Ruling(Effect.DENY, "default", reason="The server is not registered.")
_NO_MATCH = Ruling(Effect.ASK, "default", reason="No rule covers this tool, so a person decides.")
_DEPENDS = Ruling(
    Effect.ASK,
    "default",
    reason="Whether the tool may run depends on the call, so it is asked for.",
)
_ASKED_ELSEWHERE = Ruling(Effect.ASK, "default", reason="The policy engine is asked for each call.")


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one rule for one call.

    Attributes:
        why: The condition that did not hold, or the error; "" for a match.
    """

    rule: Rule
    outcome: Literal["matched", "not_matched", "error"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class _Compiled:
    rule: Rule
    conditions: tuple[Condition, ...]

    def covers(self, server: str, tool: str) -> bool:
        match = self.rule.match
        return fnmatchcase(server, match.server) and fnmatchcase(tool, match.tool)

    def weigh(self, facts: Facts) -> Finding:
        """Evaluate all conditions: one that does not hold outweighs one that has no answer.

        So the order of conditions does not matter.
        """
        error = ""
        for condition in self.conditions:
            try:
                if not condition.holds(facts):
                    return Finding(self.rule, "not_matched", f"not: {condition.text}")
            except RuleError as exc:
                error = error or str(exc)
        return Finding(self.rule, "error" if error else "matched", error)


class RuleSet:
    """All rules.

    Args:
        servers: Labels of the registered servers, with their trust where it is known.
        engine: The name of an engine that is asked beside the rules for each call, or "": where
            there is one, nothing is allowed once and for all.

    Attributes:
        version: A hash that changes with the rules, the servers' trust and the engine.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        *,
        servers: Iterable[str] | Mapping[str, Trust],
        engine: str = "",
    ) -> None:
        self.rules = tuple(rules)
        trust = servers if isinstance(servers, Mapping) else {}
        self._trust: Mapping[str, Trust] = dict(trust)
        self._servers = frozenset(servers)
        self._engine = engine
        self._compiled = [_Compiled(rule, conditions(rule)) for rule in self.rules]
        self._decided: dict[tuple[str, str], Ruling] = {}
        self._covering: dict[tuple[str, str], list[_Compiled]] = {}
        self.version = _version(self.rules, self._trust, engine)

    def decide(self, server: str, tool: str) -> Ruling:
        """Say what is true of every call of a tool, whatever its arguments (MCP-4).

        Allow and deny hold for each call that is well-formed; all else asks, so that `judge` sees
        the call. Rules in shadow mode do not count.
        """
        key = (server, tool)
        return self._decided.get(key) or self._keep(self._decided, key, self._decide(*key))

    def judge(self, call: Call) -> Ruling:
        """Decide one call. No error, and no arguments that cannot be read, ever allow it."""
        if call.server not in self._servers:
            return replace(_UNKNOWN_SERVER, version=self.version)
        facts = Facts(call)
        return self.conclude([one.weigh(facts) for one in self._cover(call)], facts)

    def explain(self, call: Call) -> list[Finding]:
        """Tell what becomes of every rule for a call, in their order."""
        facts = Facts(call)
        return [
            one.weigh(facts) if one.covers(call.server, call.tool) else _elsewhere(one.rule, call)
            for one in self._compiled
        ]

    def having(self, rules: Iterable[Rule]) -> RuleSet:
        """Make a set of other rules for the same servers and engine."""
        servers = self._trust or self._servers
        return RuleSet(rules, servers=servers, engine=self._engine)

    def conclude(self, findings: Iterable[Finding], facts: Facts) -> Ruling:
        """Make one ruling of what became of each rule."""
        told = [finding for finding in findings if finding.outcome != "not_matched"]
        enforced = [finding for finding in told if finding.rule.mode == "enforce"]
        matched = tuple(finding.rule.id for finding in told if finding.outcome == "matched")
        ruling = replace(_settle(enforced, facts), version=self.version, matched=matched)
        if len(told) == len(enforced):
            return ruling
        shadow = _settle(told, facts)
        if (shadow.effect, shadow.rule) == (ruling.effect, ruling.rule):
            return ruling
        return replace(ruling, shadow=replace(shadow, version=self.version))

    def _cover(self, call: Call) -> list[_Compiled]:
        key = (call.server, call.tool)
        found = self._covering.get(key)
        if found is None:
            found = [one for one in self._compiled if one.covers(*key)]
            self._keep(self._covering, key, found)
        return found

    @staticmethod
    def _keep(cache: dict[tuple[str, str], T], key: tuple[str, str], value: T) -> T:
        if len(cache) < _MOST_CACHED:
            cache[key] = value
        return value

    def _decide(self, server: str, tool: str) -> Ruling:
        if server not in self._servers:
            return replace(_UNKNOWN_SERVER, version=self.version)
        possible = [
            one for one in self._compiled if one.rule.mode == "enforce" and one.covers(server, tool)
        ]
        always = [one.rule for one in possible if self._applies(one, server) is True]
        maybe = [one.rule for one in possible if self._applies(one, server) is None]
        return replace(self._summed_up(always, maybe), version=self.version)

    def _applies(self, one: _Compiled, server: str) -> bool | None:
        """Tell whether a rule matches every call of a tool that it covers, none, or some."""
        wanted, trust = one.rule.match.trust, self._trust.get(server)
        if wanted and trust is not None:
            if trust not in wanted:
                return False
            return True if len(one.conditions) == 1 else None
        return None if one.conditions else True

    def _summed_up(self, always: list[Rule], maybe: list[Rule]) -> Ruling:
        ruling = strictest([_said(rule) for rule in always]) if always else _NO_MATCH
        if ruling.effect is not Effect.ALLOW:
            asks = [_said(rule) for rule in maybe if rule.effect is Effect.ASK]
            strict = ruling.effect is Effect.DENY or not always
            return ruling if strict else strictest([ruling, *asks])
        if any(rule.effect is not Effect.ALLOW or rule.match.can_fail for rule in maybe):
            asks = [_said(rule) for rule in maybe if rule.effect is Effect.ASK]
            return strictest([*asks, _DEPENDS])
        return _ASKED_ELSEWHERE if self._engine else ruling


def _said(rule: Rule) -> Ruling:
    return Ruling(rule.effect, rule.id, rule.approval, rule.reason)


def _elsewhere(rule: Rule, call: Call) -> Finding:
    match = rule.match
    if not fnmatchcase(call.server, match.server):
        return Finding(rule, "not_matched", f"not: server is {match.server}")
    return Finding(rule, "not_matched", f"not: tool is {match.tool}")


def _settle(findings: list[Finding], facts: Facts) -> Ruling:
    """Take the strictest of what matched and what went wrong; a doubt is never an allow."""
    rulings = [_said(one.rule) for one in findings if one.outcome == "matched"]
    errors = [one for one in findings if one.outcome == "error"]
    rulings += [_doubt(one, facts) for one in errors]
    told = [f"{one.rule.id}: {one.why}" for one in errors]
    if facts.fault is not None:
        reason = f"A person decides, since {facts.fault}."
        rulings.append(Ruling(Effect.ASK, "default", reason=reason))
        told.append(f"default: {facts.fault}")
    ruling = strictest(rulings) if rulings else _NO_MATCH
    return replace(ruling, errors=tuple(told)) if told else ruling


def _doubt(finding: Finding, facts: Facts) -> Ruling:
    rule = finding.rule
    effect = Effect(rule.on_error or "ask")
    if rule.on_error is None and rule.effect is Effect.DENY and facts.destructive:
        effect = Effect.DENY
    reason = f"The rule '{rule.id}' cannot be evaluated for this call: {finding.why}."
    return Ruling(effect, rule.id, rule.approval, reason)


def as_document(rule: Rule) -> dict[str, Any]:
    """Write a rule as the configuration has it, with all defaults filled in."""
    found: dict[str, Any] = {
        "id": rule.id,
        "match": rule.match.document,
        "effect": rule.effect.value,
        "mode": rule.mode,
        "approval": {**asdict(rule.approval), "approvers": list(rule.approval.approvers)},
        "reason": rule.reason,
    }
    if rule.match.when is not None:
        found["when"] = rule.match.when.source
    if rule.on_error is not None:
        found["on_error"] = rule.on_error
    return found


def _version(rules: Iterable[Rule], trust: Mapping[str, Trust], engine: str) -> str:
    content = [[as_document(rule) for rule in rules], dict(trust), engine]
    text = json.dumps(content, sort_keys=True, default=str)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
