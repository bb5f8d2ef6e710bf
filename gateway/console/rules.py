"""The rules: what each says and has done here, and what would become of a call (APPR-13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page, has_any
from gateway.console.sessions import Visitor
from gateway.domain.calls import NEW_CHAIN, UNANNOTATED, Call
from gateway.domain.errors import Forbidden, GatewayError, Unprocessable
from gateway.domain.identity import Role
from gateway.domain.registry import Trust
from gateway.domain.rules import Effect, Rule
from gateway.domain.rules.conditions import conditions
from gateway.domain.tools import may_use
from gateway.services.pins import PinService
from gateway.services.policy import Policy, Simulation
from gateway.web.doors import AnyRequest

_RULES = f"{PATH}/rules"
_SIMULATOR = f"{_RULES}/simulator"
_HINTS = {
    "read_only": "Only reads",
    "destructive": "May destroy",
    "idempotent": "Idempotent",
    "open_world": "Reaches the open world",
}
_TAINTS = {
    "saw_untrusted": "an untrusted tool has run",
    "saw_private": "private data was read",
}
_ANSWERS: dict[str, bool | None] = {"": None, "yes": True, "no": False}
_TRUSTS: tuple[str, ...] = get_args(Trust)
_PURPOSE = "simulate"
_LINES = {
    Effect.ALLOW: "The call runs.",
    Effect.ASK: "Somebody is asked.",
    Effect.DENY: "The call does not run, and the model is told so.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One rule.

    Attributes:
        wants: What must be true beyond server and tool, in words.
        asks: Who decides, for how long, in words; "" for other effects.
        hits: Calls of the tenant that it matched on this replica.
        turned: The effect that was, the one that would have been in force, and how often.
    """

    rule: Rule
    wants: Sequence[str]
    asks: str
    hits: int
    turned: Sequence[tuple[str, str, int]]


class RuleRoom:
    """Shows rules and tries calls on them."""

    def __init__(self, desk: Desk, policy: Policy, pins: PinService) -> None:
        self._desk = desk
        self._policy = policy
        self._pins = pins

    def list(self, request: AnyRequest) -> Page:
        """List the rules that concern the tenant, in the order of the configuration."""
        visitor = self._desk.enter(request, "rules")
        tenant = visitor.caller.tenant
        turned = self._policy.turned(tenant)
        lines = [
            Line(
                rule=rule,
                wants=_wants(rule),
                asks=asks(rule),
                hits=hits,
                turned=[
                    (was.value, would.value, count)
                    for (was, would), count in sorted(turned.get(rule.id, {}).items())
                ],
            )
            for rule, hits in self._policy.shown(tenant)
        ]
        values = {
            "room": "rules",
            "lines": lines,
            "version": self._policy.rules.version,
            "engine": self._policy.engine,
            "may_simulate": has_any(visitor, [Role.AUDITOR]),
        }
        return self._desk.page(visitor, "rules.html", values)

    async def ask(self, request: AnyRequest) -> Page:
        """Show the form that tries a call."""
        visitor = self._desk.enter(request, "rules", Role.AUDITOR)
        query = request.query_params
        named = {name: query.get(name, "") for name in ("server", "tool")}
        principal = visitor.caller.principal
        usual = {
            "subject": principal.subject,
            "roles": ", ".join(sorted(principal.roles)),
            "groups": ", ".join(sorted(principal.groups)),
        }
        return await self._page(visitor, {**usual, **named})

    async def simulate(self, request: AnyRequest) -> Page:
        """Tell what would become of a call; nothing is called, counted or kept."""
        visitor = self._desk.enter(request, "rules", Role.AUDITOR)
        form = await self._desk.signed_form(request, visitor, _PURPOSE)
        try:
            simulation = await self._policy.simulate(
                self._call(visitor, form), visitor.caller.tenant
            )
        except Forbidden:
            raise
        except GatewayError as exc:
            return await self._page(visitor, form, problem=exc)
        return await self._page(visitor, form, simulation)

    def _call(self, visitor: Visitor, form: Mapping[str, str]) -> Call:
        """Make the call of the form, always one of the visitor's own tenant.

        Raises:
            Unprocessable: A field has a value that it cannot have.
        """
        server, tool = (_needed(form, name) for name in ("server", "tool"))
        registered = self._policy.servers.get(server)
        trust = _chosen(form, "trust", ("", *_TRUSTS))
        trust = trust or (registered.trust if registered else "untrusted")
        said = {name: _ANSWERS[_chosen(form, name, tuple(_ANSWERS))] for name in _HINTS}
        taint = {name: name in form for name in _TAINTS}
        return Call(
            tenant=visitor.caller.tenant.id,
            subject=form.get("subject", "").strip(),
            roles=frozenset(_names(form.get("roles", ""))),
            groups=frozenset(_names(form.get("groups", ""))),
            end_user=form.get("end_user", "").strip(),
            server=server,
            server_identity="",
            tool=tool,
            arguments=form.get("arguments", "").strip() or "{}",
            trust=msgspec.convert(trust, Trust),
            annotations=msgspec.structs.replace(UNANNOTATED, **said, verified=trust != "untrusted"),
            chain=msgspec.structs.replace(NEW_CHAIN, **taint),
        )

    async def _page(
        self,
        visitor: Visitor,
        form: Mapping[str, str],
        simulation: Simulation | None = None,
        *,
        problem: GatewayError | None = None,
    ) -> Page:
        tenant = visitor.caller.tenant
        pins = await self._pins.list(visitor.caller)
        values = {
            "room": "rules",
            "typed": {"arguments": "{}", **form},
            "servers": [label for label in self._policy.servers if may_use(tenant, label)],
            "tools": sorted({one.tool for one in pins}),
            "trusts": _TRUSTS,
            "hints": _HINTS,
            "taints": _TAINTS,
            "ticket": self._desk.ticket(visitor, _PURPOSE),
            "simulation": simulation,
            "meaning": _LINES[simulation.ruling.effect] if simulation else "",
            "engine_failed": simulation is not None and isinstance(simulation.engine, str),
        }
        return self._desk.page(visitor, "simulator.html", values, problem=problem)


def _wants(rule: Rule) -> list[str]:
    """Say what a rule wants; that it is for the visitor's tenant goes without saying.

    Other tenants that it names are nobody's business here (AUTH-2).
    """
    principal = replace(rule.match.principal, tenants=None)
    own = replace(rule, match=replace(rule.match, principal=principal))
    return [condition.text for condition in conditions(own)]


def asks(rule: Rule) -> str:
    """Say who decides where a rule asks, "" where it does not."""
    terms = rule.approval
    if rule.effect is not Effect.ASK:
        return ""
    if terms.by == "caller":
        return "the application decides"
    who = " or ".join(terms.approvers)
    many = f"{terms.quorum} of " if terms.quorum > 1 else ""
    return f"{many}{who}, within {views.span(terms.timeout)}, then {terms.on_timeout}"


def _needed(form: Mapping[str, str], name: str) -> str:
    text = form.get(name, "").strip()
    if not text:
        raise Unprocessable(f"Say which {name} is called.", param=name)
    return text


def _chosen(form: Mapping[str, str], name: str, choices: Sequence[str]) -> str:
    value = form.get(name, "")
    if value not in choices:
        raise Unprocessable(f"There is no such choice for “{name}”.", param=name)
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def rules_room(desk: Desk, policy: Policy, pins: PinService) -> list[HTTPRouteHandler]:
    """The doors to the rules."""
    room = RuleRoom(desk, policy, pins)

    @get("/rules", sync_to_thread=False)
    def list_rules(request: AnyRequest) -> Page:
        """All rules."""
        return room.list(request)

    @get("/rules/simulator")
    async def ask_call(request: AnyRequest) -> Page:
        """The simulator."""
        return await room.ask(request)

    @post("/rules/simulator", status_code=200)
    async def simulate_call(request: AnyRequest) -> Page:
        """Its answer."""
        return await room.simulate(request)

    return [list_rules, ask_call, simulate_call]
