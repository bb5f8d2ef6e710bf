"""`gateway policy simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import msgspec

from gateway.domain.calls import NEW_CHAIN, UNANNOTATED, Annotations, Call
from gateway.domain.registry import Trust
from gateway.domain.rules import Effect, Finding, Ruling
from gateway.settings import Settings


def make_call(
    settings: Settings,
    server: str,
    tool: str,
    *,
    arguments: str = "{}",
    tenant: str = "",
    subject: str = "",
    roles: Iterable[str] = (),
    groups: Iterable[str] = (),
    end_user: str = "",
    annotations: Iterable[str] = (),
    saw_untrusted: bool = False,
    saw_private: bool = False,
) -> Call:
    """Make the call that is tried.

    Args:
        annotations: `NAME=true` or `NAME=false` each.

    Raises:
        ValueError: An annotation is written otherwise.
    """
    known = [one.trust for one in settings.mcp_servers if one.label == server]
    trust: Trust = known[0] if known else "untrusted"
    return Call(
        tenant=tenant,
        subject=subject,
        roles=frozenset(roles),
        groups=frozenset(groups),
        end_user=end_user,
        server=server,
        server_identity="",
        tool=tool,
        arguments=arguments,
        trust=trust,
        annotations=msgspec.structs.replace(
            UNANNOTATED, verified=trust != "untrusted", **_claims(annotations)
        ),
        chain=msgspec.structs.replace(
            NEW_CHAIN, saw_untrusted=saw_untrusted, saw_private=saw_private
        ),
    )


_CLAIMS = frozenset(Annotations.__struct_fields__) - {"title", "verified"}


def _claims(annotations: Iterable[str]) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for text in annotations:
        name, _, value = text.partition("=")
        if name not in _CLAIMS or value not in ("true", "false"):
            raise ValueError(f"must be NAME=true or NAME=false; names are {sorted(_CLAIMS)}")
        found[name] = value == "true"
    return found


def simulate(settings: Settings, call: Call, *, as_json: bool, explain: bool) -> str:
    """Decide a call by the configured rules and write the ruling; no engine is asked."""
    rules = settings.to_rule_set()
    ruling, findings = rules.judge(call), rules.explain(call)
    if as_json:
        return json.dumps(_content(ruling, call, findings), indent=2)
    lines = [f"{call.server}.{call.tool}: {ruling.effect}", f"rule: {ruling.rule}"]
    if ruling.reason:
        lines.append(f"reason: {ruling.reason}")
    lines += _terms(ruling)
    if ruling.shadow is not None:
        lines.append(f"in shadow: {ruling.shadow.effect}, by {ruling.shadow.rule}")
    if settings.policy.engine != "rules":
        lines.append(f"note: {settings.policy.engine} is asked too, and may be more restrictive")
    if not _is_offered(settings, call.server, call.tool):
        lines.append(
            f"note: {call.tool} is not in the allowed_tools of {call.server}, so it is not offered"
        )
    if explain:
        lines += [_line(finding) for finding in findings]
    return "\n".join(lines)


def _content(ruling: Ruling, call: Call, findings: list[Finding]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "server": call.server,
        "tool": call.tool,
        "effect": ruling.effect.value,
        "rule": ruling.rule,
        "reason": ruling.reason,
        "errors": list(ruling.errors),
        "version": ruling.version,
        "rules": [
            {"id": one.rule.id, "mode": one.rule.mode, "outcome": one.outcome, "why": one.why}
            for one in findings
        ],
    }
    if ruling.effect is Effect.ASK:
        said["approval"] = asdict(ruling.approval)
    if ruling.shadow is not None:
        said["shadow"] = {"effect": ruling.shadow.effect.value, "rule": ruling.shadow.rule}
    return said


def _line(finding: Finding) -> str:
    mode = " (shadow)" if finding.rule.mode == "shadow" else ""
    why = f": {finding.why}" if finding.why else ""
    outcome = finding.outcome.replace("_", " ")
    return f"{finding.rule.effect} {finding.rule.id}{mode}: {outcome}{why}"


def _terms(ruling: Ruling) -> list[str]:
    terms = ruling.approval
    if ruling.effect is not Effect.ASK:
        return []
    if terms.by == "caller":
        return ["approvers: the caller, by mcp_approval_response"]
    oneself = "allowed" if terms.allow_self else "refused"
    return [
        f"approvers: {', '.join(terms.approvers)}",
        f"quorum: {terms.quorum}; approving one's own call: {oneself}",
        f"timeout: {terms.timeout:g} s, then {terms.on_timeout}",
    ]


def _is_offered(settings: Settings, label: str, tool: str) -> bool:
    for server in settings.mcp_servers:
        if server.label == label and server.allowed_tools is not None:
            return tool in server.allowed_tools
    return True
