"""`gateway policy simulate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from gateway.domain.rules import Effect, Ruling
from gateway.settings import Settings


def simulate(settings: Settings, server: str, tool: str, *, as_json: bool) -> str:
    """Decide a call by the configured rules and write the ruling."""
    ruling = settings.to_rule_set().decide(server, tool)
    said = _content(ruling, server, tool)
    if as_json:
        return json.dumps(said, indent=2)
    lines = [f"{server}.{tool}: {ruling.effect}", f"rule: {ruling.rule}"]
    if ruling.reason:
        lines.append(f"reason: {ruling.reason}")
    lines += _terms(ruling)
    if not _is_offered(settings, server, tool):
        lines.append(f"note: {tool} is not in the allowed_tools of {server}, so it is not offered")
    return "\n".join(lines)


def _content(ruling: Ruling, server: str, tool: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "server": server,
        "tool": tool,
        "effect": ruling.effect.value,
        "rule": ruling.rule,
        "reason": ruling.reason,
    }
    if ruling.effect is Effect.ASK:
        said["approval"] = asdict(ruling.approval)
    return said


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
