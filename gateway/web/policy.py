"""The policy API: see the rules, try them, check new ones (APPR-13)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

import msgspec
from litestar import Router, get, post
from litestar.types import ASGIApp

from gateway.domain.calls import NEW_CHAIN, UNANNOTATED, Call
from gateway.domain.documents import Raw, encode
from gateway.domain.errors import BadRequest
from gateway.domain.identity import Role
from gateway.domain.rules import (
    Effect,
    Finding,
    InvalidRules,
    Rule,
    RuleFault,
    Ruling,
    as_document,
)
from gateway.services.callers import Caller
from gateway.services.policy import Policy, ReadRules, Simulation
from gateway.web.answers import json_answer
from gateway.web.doors import AnyRequest, Doors

MOST_CALLS = 100
"""Most calls of one simulation."""

T = TypeVar("T")


class _Principal(msgspec.Struct, forbid_unknown_fields=True):
    subject: str | None = None
    roles: list[str] | None = None
    groups: list[str] | None = None
    end_user: str = ""


class _Claims(msgspec.Struct, forbid_unknown_fields=True):
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class _Chain(msgspec.Struct, forbid_unknown_fields=True):
    saw_untrusted: bool = False
    saw_private: bool = False


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    server: str
    tool: str
    arguments: Raw = Raw(b"{}")
    principal: _Principal = msgspec.field(default_factory=_Principal)
    annotations: _Claims = msgspec.field(default_factory=_Claims)
    chain: _Chain = msgspec.field(default_factory=_Chain)


class _Simulate(msgspec.Struct, forbid_unknown_fields=True):
    call: _Call | None = None
    calls: list[_Call] | None = None
    rules: Any = None


class _Validate(msgspec.Struct, forbid_unknown_fields=True):
    rules: Any


def policy_router(doors: Doors, policy: Policy, read_rules: ReadRules) -> Router:
    """The doors to the policy, for auditors and admins."""

    @get("/v1/policy")
    async def retrieve_policy(request: AnyRequest) -> ASGIApp:
        """Show the rules that concern the tenant, and how many calls each matched here."""
        caller = doors.caller(request, Role.AUDITOR)
        rules = [{**as_document(rule), "hits": hits} for rule, hits in policy.shown(caller.tenant)]
        body = {"object": "policy", "version": policy.rules.version, "engine": policy.engine}
        return json_answer(caller, {**body, "rules": rules})

    @post("/v1/policy/simulate", status_code=200)
    async def simulate(request: AnyRequest) -> ASGIApp:
        """Tell what would become of calls, by the rules in force or by candidates."""
        caller = doors.caller(request, Role.AUDITOR)
        body = _read(await doors.document(request), _Simulate)
        rules = None if body.rules is None else _candidates(read_rules, body.rules)
        found = [
            await policy.simulate(_made(policy, caller, call), caller.tenant, rules)
            for call in _calls(body)
        ]
        return json_answer(caller, {"object": "list", "data": [_show(one) for one in found]})

    @post("/v1/policy/validate", status_code=200)
    async def validate(request: AnyRequest) -> ASGIApp:
        """Check rules without using them."""
        caller = doors.caller(request, Role.AUDITOR)
        body = _read(await doors.document(request), _Validate)
        answer: dict[str, object] = {"object": "policy.validation"}
        try:
            rules = read_rules(body.rules)
        except InvalidRules as exc:
            faults = [_show_fault(fault) for fault in exc.faults]
            return json_answer(
                caller, {**answer, "valid": False, "version": None, "faults": faults}
            )
        version = policy.rules.having(rules).version
        return json_answer(caller, {**answer, "valid": True, "version": version, "faults": []})

    return Router(path="/", route_handlers=[retrieve_policy, simulate, validate])


def _read(document: object, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(encode(document), type=kind)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"Invalid request: {exc}.", code="invalid_value") from exc


def _calls(body: _Simulate) -> list[_Call]:
    if (body.call is None) == (body.calls is None):
        raise BadRequest(
            "Give either 'call' or 'calls'.", code="missing_required_parameter", param="call"
        )
    calls = [body.call] if body.call is not None else body.calls or []
    if len(calls) > MOST_CALLS:
        raise BadRequest(
            f"'calls' holds more than {MOST_CALLS} calls.", code="invalid_value", param="calls"
        )
    return calls


def _candidates(read_rules: ReadRules, rules: object) -> tuple[Rule, ...]:
    try:
        return read_rules(rules)
    except InvalidRules as exc:
        raise BadRequest(f"Invalid rules: {exc}", code="invalid_rules", param="rules") from exc


def _made(policy: Policy, caller: Caller, call: _Call) -> Call:
    """Make a call of the caller's own tenant; for the caller itself, where nobody is named."""
    own, said = caller.principal, call.principal
    server = policy.servers.get(call.server)
    trust = server.trust if server else "untrusted"
    claims = msgspec.structs.asdict(call.annotations)
    return Call(
        tenant=caller.tenant.id,
        subject=own.subject if said.subject is None else said.subject,
        roles=frozenset(own.roles if said.roles is None else said.roles),
        groups=frozenset(own.groups if said.groups is None else said.groups),
        end_user=said.end_user,
        server=call.server,
        server_identity="",
        tool=call.tool,
        arguments=_arguments(call.arguments),
        trust=trust,
        annotations=msgspec.structs.replace(UNANNOTATED, **claims, verified=trust != "untrusted"),
        chain=msgspec.structs.replace(NEW_CHAIN, **msgspec.structs.asdict(call.chain)),
    )


def _arguments(value: Raw) -> str:
    """Take arguments as an object, or as the text that an upstream would send."""
    data = bytes(value)
    return msgspec.json.decode(data, type=str) if data.startswith(b'"') else data.decode()


def _show(simulation: Simulation) -> dict[str, object]:
    ruling, engine = simulation.ruling, simulation.engine
    return {
        "server": simulation.call.server,
        "tool": simulation.call.tool,
        "offered": simulation.offered,
        **_show_ruling(ruling),
        "errors": list(ruling.errors),
        "version": ruling.version,
        "shadow": _show_ruling(ruling.shadow) if ruling.shadow else None,
        "engine": _show_ruling(engine) if isinstance(engine, Ruling) else _failed(engine),
        "rules": [_show_finding(finding) for finding in simulation.findings],
    }


def _failed(engine: str | None) -> dict[str, str] | None:
    return {"error": engine} if engine is not None else None


def _show_ruling(ruling: Ruling) -> dict[str, object]:
    asks = ruling.effect is Effect.ASK
    return {
        "effect": ruling.effect.value,
        "rule": ruling.rule,
        "reason": ruling.reason,
        "approval": asdict(ruling.approval) if asks else None,
    }


def _show_finding(finding: Finding) -> dict[str, object]:
    rule = finding.rule
    return {
        "id": rule.id,
        "effect": rule.effect.value,
        "mode": rule.mode,
        "outcome": finding.outcome,
        "why": finding.why or None,
    }


def _show_fault(fault: RuleFault) -> dict[str, object]:
    place = "rules" if fault.index is None else f"rules[{fault.index}]"
    path = f"{place}.{fault.path}" if fault.path and fault.index is not None else fault.path
    return {
        "path": path or place,
        "rule": fault.rule,
        "line": fault.line,
        "message": fault.message,
    }
