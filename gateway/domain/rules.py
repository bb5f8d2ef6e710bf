"""Rules: who decides whether an MCP tool may run (APPR-1, APPR-13, MCP-4).

The most restrictive match wins: deny beats ask, ask beats allow. A known server without a match
asks; an unknown server is denied. A rule that cannot be evaluated never allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Literal

from gateway.domain.calls import Call


class Effect(StrEnum):
    """What a rule says, from the least to the most restrictive."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


_STRICTNESS = {Effect.ALLOW: 0, Effect.ASK: 1, Effect.DENY: 2}


@dataclass(frozen=True, slots=True)
class Match:
    """Which calls a rule is about; names may hold `*`, `?` and `[…]` and are case-sensitive."""

    server: str = "*"
    tool: str = "*"


@dataclass(frozen=True, slots=True)
class ApprovalTerms:
    """How a person decides.

    Attributes:
        by: "approver" (the gateway owns the answer) or "caller" (the native flow).
        approvers: `role:NAME`, `group:NAME` or `subject:NAME`; any of them may decide.
        timeout: Seconds until nobody's answer becomes an answer.
    """

    by: Literal["approver", "caller"] = "approver"
    approvers: tuple[str, ...] = ("role:approver",)
    quorum: int = 1
    allow_self: bool = False
    timeout: float = 30 * 60.0
    on_timeout: Literal["deny", "hold", "rewind"] = "deny"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the configuration."""

    id: str
    match: Match
    effect: Effect
    approval: ApprovalTerms = ApprovalTerms()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the rules say of one call, and which rule said it.

    Attributes:
        rule: The id of the deciding rule, or `default`.
        reason: The rule's own text; shown to people, and told to the model on a deny.
    """

    effect: Effect
    rule: str
    approval: ApprovalTerms = ApprovalTerms()
    reason: str | None = None


_UNKNOWN_SERVER = Ruling(Effect.DENY, "default", reason="The server is not registered.")
_NO_MATCH = Ruling(Effect.ASK, "default", reason="No rule covers this tool, so a person decides.")


class RuleSet:
    """All rules, with their candidates cached per (server, tool)."""

    def __init__(self, rules: Iterable[Rule], *, servers: Iterable[str]) -> None:
        self.rules = tuple(rules)
        self._servers = frozenset(servers)
        self._cache: dict[tuple[str, str], Ruling] = {}

    def decide(self, server: str, tool: str) -> Ruling:
        """Decide a call of `tool` on the server labelled `server`."""
        known = self._cache.get((server, tool))
        if known is None:
            known = self._decide(server, tool)
            if len(self._cache) < 10_000:  # names come from outside, so the cache is bounded
                self._cache[server, tool] = known
        return known

    def judge(self, call: Call) -> Ruling:
        """Decide one call."""
        return self.decide(call.server, call.tool)

    def _decide(self, server: str, tool: str) -> Ruling:
        if server not in self._servers:
            return _UNKNOWN_SERVER
        found = [rule for rule in self.rules if _matches(rule.match, server, tool)]
        if not found:
            return _NO_MATCH
        rule = max(found, key=lambda rule: _STRICTNESS[rule.effect])  # the first of the strictest
        return Ruling(rule.effect, rule.id, rule.approval, rule.reason)


def _matches(match: Match, server: str, tool: str) -> bool:
    return fnmatchcase(server, match.server) and fnmatchcase(tool, match.tool)
