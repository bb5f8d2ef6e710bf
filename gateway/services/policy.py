"""The policy of a running gateway: its rules, an engine beside them, and what they have done.

Rules decide in the process. An engine (OPA) is asked where they do not deny, and the more
restrictive of the two wins; one that has no answer is a doubt, and a doubt never allows (APPR-13).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from gateway.domain.calls import Call
from gateway.domain.identity import Tenant
from gateway.domain.ports import AuditLog, Meter
from gateway.domain.registry import McpServer
from gateway.domain.rules import (
    Effect,
    Facts,
    Finding,
    Rule,
    RuleError,
    RuleSet,
    Ruling,
    strictest,
)
from gateway.domain.tools import may_use

logger = logging.getLogger("gateway.policy")


class PolicyEngine(Protocol):
    """A policy engine that is asked for each call."""

    @property
    def name(self) -> str:
        """Its kind, such as `opa`."""
        ...

    async def ask(self, facts: Facts) -> Ruling:
        """Ask about a call; the rule of the answer is the engine's own name for it.

        Raises:
            RuleError: It did not answer in time, or not as agreed.
        """
        ...


class ReadRules(Protocol):
    """Reads rules as a caller writes them."""

    def __call__(self, rules: object) -> tuple[Rule, ...]:
        """Read a list of JSON objects, or TOML text.

        Raises:
            InvalidRules: Some rule cannot be used.
        """
        ...


@dataclass(frozen=True, slots=True)
class Simulation:
    """What the policy says of a call that nobody made.

    Attributes:
        engine: What the engine said, or why it said nothing; `None` where it was not asked.
        offered: Whether the tenant's turns could have the tool at all.
    """

    call: Call
    ruling: Ruling
    findings: tuple[Finding, ...]
    engine: Ruling | str | None
    offered: bool


class Policy:
    """Decides calls by rules and engine, and counts what it decided.

    Args:
        on_error: What a call gets that the engine has no answer for; `None` means deny where the
            tool may destroy, else ask.
    """

    def __init__(
        self,
        rules: RuleSet,
        *,
        servers: Mapping[str, McpServer],
        meter: Meter,
        audit: AuditLog,
        engine: PolicyEngine | None = None,
        on_error: Literal["ask", "deny"] | None = None,
    ) -> None:
        self.rules = rules
        self.servers = servers
        self._engine = engine
        self._on_error = on_error
        self._meter = meter
        self._audit = audit
        self._hits: Counter[tuple[str, str]] = Counter()
        self._turned: Counter[tuple[str, str, Effect, Effect]] = Counter()

    async def judge(self, call: Call) -> Ruling:
        """Decide a call that is to be made, and report the ruling.

        Raises:
            StoreUnavailable: What has to be in the audit cannot be noted.
        """
        ruling = await self.rejudge(call)
        # An engine's own name for a rule is not for a label: it could be any.
        self._meter.ruling(rule=ruling.rule.partition(":")[0], effect=ruling.effect.value)
        for rule in ruling.matched:
            self._hits[call.tenant, rule] += 1
        if ruling.errors:
            await self.report(call, ruling, ruling.errors)
        if ruling.shadow is not None:
            await self._report_shadow(call, ruling, ruling.shadow)
        return ruling

    async def report(self, call: Call, ruling: Ruling, errors: Sequence[str]) -> None:
        """Put on record why a call could not be judged, as `<rule>: <why>`, and what follows."""
        for error in errors:
            self._meter.rule_error(error.partition(":")[0])
            logger.warning("a rule has no answer", extra={"rule": error, **_named(call)})
        detail = {"effect": ruling.effect.value, "errors": list(errors)}
        await self._note(call, "policy.error", ruling, detail)

    async def rejudge(self, call: Call) -> Ruling:
        """Decide a call that was decided before, without counting it again."""
        ruling, _ = await self._both(self.rules, call)
        return ruling

    async def simulate(
        self, call: Call, tenant: Tenant, rules: tuple[Rule, ...] | None = None
    ) -> Simulation:
        """Tell what would be decided, by these rules or by candidates for them."""
        rule_set = self.rules if rules is None else self.rules.having(rules)
        ruling, engine = await self._both(rule_set, call)
        server = self.servers.get(call.server)
        offered = server is not None and may_use(tenant, call.server)
        if server is not None and server.allowed_tools is not None:
            offered = offered and call.tool in server.allowed_tools
        return Simulation(
            call=call,
            ruling=ruling,
            findings=tuple(one for one in rule_set.explain(call) if _concerns(one.rule, tenant)),
            engine=engine,
            offered=offered,
        )

    def shown(self, tenant: Tenant) -> list[tuple[Rule, int]]:
        """The rules that concern a tenant, with how many of its calls each matched here."""
        return [
            (rule, self._hits[tenant.id, rule.id])
            for rule in self.rules.rules
            if _concerns(rule, tenant)
        ]

    def turned(self, tenant: Tenant) -> dict[str, dict[tuple[Effect, Effect], int]]:
        """How often shadow rules would have changed a ruling here, by the rule that would have.

        The keys inside are the effect that was, and the one that would have been.
        """
        found: dict[str, dict[tuple[Effect, Effect], int]] = {}
        for (owner, rule, was, would), count in self._turned.items():
            if owner == tenant.id:
                found.setdefault(rule, {})[was, would] = count
        return found

    @property
    def engine(self) -> str | None:
        """The kind of the engine beside the rules."""
        return self._engine.name if self._engine else None

    async def _both(self, rules: RuleSet, call: Call) -> tuple[Ruling, Ruling | str | None]:
        own = rules.judge(call)
        if self._engine is None or own.effect is Effect.DENY:
            return own, None
        facts = Facts(call)
        said: Ruling | str
        try:
            said = theirs = await self._engine.ask(facts)
            errors = own.errors
        except RuleError as exc:
            said = str(exc)
            theirs = self._doubt(facts, said)
            errors = (*own.errors, f"{self._engine.name}: {said}")
        both = replace(
            strictest([own, theirs]), errors=errors, matched=own.matched, version=own.version
        )
        shadow = strictest([own.shadow, theirs]) if own.shadow else None
        if shadow is not None and (shadow.effect, shadow.rule) == (both.effect, both.rule):
            shadow = None
        return replace(both, shadow=shadow), said

    def _doubt(self, facts: Facts, why: str) -> Ruling:
        engine = self._engine.name if self._engine else ""
        effect = Effect(self._on_error or ("deny" if facts.destructive else "ask"))
        return Ruling(effect, engine, reason=f"The policy engine gave no answer: {why}.")

    async def _report_shadow(self, call: Call, effective: Ruling, shadow: Ruling) -> None:
        effects = {"effective": effective.effect.value, "shadow": shadow.effect.value}
        rule = shadow.rule.partition(":")[0]
        self._meter.shadow_decision(rule=rule, **effects)
        self._turned[call.tenant, rule, effective.effect, shadow.effect] += 1
        detail = {"rule": shadow.rule, **effects}
        logger.info("policy.shadow_decision", extra={**detail, **_named(call)})
        await self._note(call, "policy.shadow_decision", effective, detail)

    async def _note(
        self, call: Call, event: str, ruling: Ruling, detail: Mapping[str, object]
    ) -> None:
        await self._audit.note(
            call.tenant,
            event,
            actor=f"policy:{ruling.rule}",
            subject=f"{call.server}.{call.tool}",
            detail={**detail, "version": ruling.version},
        )


def _named(call: Call) -> dict[str, str]:
    return {"tenant": call.tenant, "server": call.server, "tool": call.tool}


def _concerns(rule: Rule, tenant: Tenant) -> bool:
    """Tell whether a tenant may see a rule: not one that names other tenants only (AUTH-2)."""
    tenants = rule.match.principal.tenants
    return tenants is None or tenant.id in tenants
