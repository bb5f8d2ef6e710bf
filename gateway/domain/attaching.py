"""A caller's tools become those of the turn (MCP-1, MCP-2, MCP-4).

A caller names a server by label. It may narrow the tools and tighten the approval, never widen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.domain.documents import NULL, Document, Raw, field, raw
from gateway.domain.errors import BadRequest, Forbidden
from gateway.domain.identity import Tenant
from gateway.domain.registry import McpServer
from gateway.domain.rules import Effect, RuleSet
from gateway.domain.smuggling import refuse_smuggled
from gateway.domain.tools import (
    LOCATIONS,
    SECRETS,
    Attachment,
    Tools,
    exact_names,
    may_use,
    require_approval,
    undenied,
)

_OWNED = {*LOCATIONS, *SECRETS, "type", "server_label", "server_description"}
_OWNED |= {"allowed_tools", "require_approval", "allowed_callers"}


def attach(
    tools: Sequence[Raw],
    *,
    tenant: Tenant,
    servers: Mapping[str, McpServer],
    rules: RuleSet,
    headers: Mapping[str, str],
) -> Tools:
    """Turn a caller's tools into those of the turn.

    Args:
        headers: The caller's request headers, names in lower case, for `forward_headers`.

    Raises:
        BadRequest: A tool is malformed, its label unknown, or a forwarded header missing.
        Forbidden: The caller brings what only the operator may set, or wants more than the rules
            allow.
    """
    parts: list[Raw | Attachment] = []
    labels: set[str] = set()
    for index, value in enumerate(tools):
        part = _part(value, f"tools[{index}]", tenant, servers, rules, headers)
        if isinstance(part, Attachment):
            if part.label in labels:
                raise BadRequest(
                    f"The server '{part.label}' is named twice.",
                    code="duplicate_server_label",
                    param=f"tools[{index}].server_label",
                )
            labels.add(part.label)
        parts.append(part)
    for server in servers.values():
        wanted = server.attach == "always" and server.label not in labels
        if wanted and may_use(tenant, server.label):
            extra = _registered(server, {}, f"mcp_servers.{server.label}", rules, headers)
            if _offers(extra):
                parts.append(extra)
    return Tools(tuple(parts))


def _part(
    value: Raw,
    param: str,
    tenant: Tenant,
    servers: Mapping[str, McpServer],
    rules: RuleSet,
    headers: Mapping[str, str],
) -> Raw | Attachment:
    document = _object(value, param)
    if field(document, "type", str, param=f"{param}.type") != "mcp":
        refuse_smuggled(value, param)
        _refuse_untyped(document, param)
        return value
    label = field(document, "server_label", str, param=f"{param}.server_label")
    if not label:
        raise BadRequest(
            "An mcp tool needs a 'server_label'.",
            code="missing_required_parameter",
            param=f"{param}.server_label",
        )
    server = servers.get(label) if may_use(tenant, label) else None
    if server is None:
        return _own(label, document, param, tenant, servers)
    _refuse_brought(document, param)
    attachment = _registered(server, document, param, rules, headers)
    if not _offers(attachment):
        raise Forbidden(
            f"The rules deny every tool of the server '{label}' that was asked for.",
            code="mcp_tools_denied",
            param=f"{param}.allowed_tools",
        )
    return attachment


def _object(value: Raw, param: str) -> Document:
    try:
        return msgspec.json.decode(value, type=Document)
    except msgspec.ValidationError as exc:
        raise BadRequest(
            f"Invalid type for '{param}': expected an object.", code="invalid_type", param=param
        ) from exc


def _refuse_untyped(document: Document, param: str) -> None:
    """Refuse a location on a tool that does not call itself MCP: some upstream may guess."""
    for key in LOCATIONS:
        if _given(document, key):
            raise Forbidden(
                f"'{key}' may not be set: only registered MCP servers may be used.",
                code=f"{key}_not_allowed",
                param=f"{param}.{key}",
            )


def _given(document: Document, key: str) -> bool:
    return bytes(document.get(key, NULL)) not in (b"null", b"{}", b'""')


def _refuse_brought(document: Document, param: str) -> None:
    for key in LOCATIONS:
        if _given(document, key):
            raise Forbidden(
                f"'{key}' may not be set: the gateway knows where its servers are. "
                "Name the server by 'server_label' alone.",
                code=f"{key}_not_allowed",
                param=f"{param}.{key}",
            )
    for key in SECRETS:
        if _given(document, key):
            raise Forbidden(
                f"'{key}' may not be set: the gateway adds the credentials of its servers.",
                code="mcp_headers_not_allowed",
                param=f"{param}.{key}",
            )
    callers = field(document, "allowed_callers", list[str], param=f"{param}.allowed_callers")
    if callers is not None and callers != ["direct"]:
        raise Forbidden(
            "'allowed_callers' may only be [\"direct\"]: calls from programs are not known to "
            "raise approval requests.",
            code="allowed_callers_not_allowed",
            param=f"{param}.allowed_callers",
        )


def _own(
    label: str, document: Document, param: str, tenant: Tenant, servers: Mapping[str, McpServer]
) -> Attachment:
    """Let a caller's own server through where the tenant's host patterns allow it."""
    url = field(document, "server_url", str, param=f"{param}.server_url")
    brought = [key for key in LOCATIONS if _given(document, key)]
    if not brought:
        raise BadRequest(
            f"Unknown MCP server '{label}'.",
            code="unknown_mcp_server",
            param=f"{param}.server_label",
        )
    if brought != ["server_url"] or not _host_allowed(url or "", tenant.server_url_patterns):
        raise Forbidden(
            f"'{brought[0]}' is not allowed: only registered MCP servers may be used.",
            code=f"{brought[0]}_not_allowed",
            param=f"{param}.{brought[0]}",
        )
    if label in servers:
        raise Forbidden(
            f"The label '{label}' belongs to a registered server.",
            code="server_label_reserved",
            param=f"{param}.server_label",
        )
    tool = {**document, "require_approval": raw("always"), "allowed_callers": raw(["direct"])}
    return Attachment(label=label, server=None, tool=tool, forwarded={})


_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def _host_allowed(url: str, patterns: Sequence[str]) -> bool:
    if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    plain = parts.scheme == "https" and "@" not in parts.netloc and port in (None, 443)
    return (
        plain
        and _HOST.fullmatch(host) is not None
        and any(fnmatchcase(host, pattern.lower()) for pattern in patterns)
    )


def _registered(
    server: McpServer,
    document: Document,
    param: str,
    rules: RuleSet,
    headers: Mapping[str, str],
) -> Attachment:
    names = _allowed_tools(server, document, param, rules)
    tightened = _tightened(server, document, names, param, rules)
    candidates = names if names is not None else exact_names(server.label, rules)
    tool: Document = {
        "type": raw("mcp"),
        "server_label": raw(server.label),
        **{key: value for key, value in document.items() if key not in _OWNED},
        "allowed_callers": raw(["direct"]),
        "require_approval": require_approval(candidates, tightened, server.label, rules),
    }
    if "allowed_callers" not in document:
        del tool["allowed_callers"]  # "direct" is the default; older upstreams do not know it
    if server.description is not None:
        tool["server_description"] = raw(server.description)
    if names is not None:
        tool["allowed_tools"] = raw(names)
    return Attachment(
        label=server.label,
        server=server,
        tool=tool,
        forwarded=_forwarded(server, headers),
        tightened=tightened,
    )


def _offers(attachment: Attachment) -> bool:
    return bytes(attachment.tool.get("allowed_tools", NULL)) != b"[]"


def _forwarded(server: McpServer, headers: Mapping[str, str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for source, target in server.forward_headers.items():
        value = headers.get(source.lower())
        if not value:
            raise BadRequest(
                f"The server '{server.label}' needs the request header '{source}'.",
                code="missing_forward_header",
                param=source,
            )
        values[target] = value
    return values


class _ToolFilter(msgspec.Struct, forbid_unknown_fields=True):
    tool_names: list[str] = []


class _ApprovalFilter(msgspec.Struct, forbid_unknown_fields=True):
    always: _ToolFilter | None = None
    never: _ToolFilter | None = None


def _allowed_tools(
    server: McpServer, document: Document, param: str, rules: RuleSet
) -> list[str] | None:
    """Narrow the registered tools by the caller's, and leave out what rules always deny."""
    wanted: Any = field(
        document,
        "allowed_tools",
        list[str] | _ToolFilter,  # type: ignore[arg-type]  # msgspec takes unions
        param=f"{param}.allowed_tools",
    )
    names = wanted.tool_names if isinstance(wanted, _ToolFilter) else wanted
    if names is None:
        registered = server.allowed_tools
        if registered is None:
            return None
        names = list(registered)
    elif server.allowed_tools is not None:
        outside = [name for name in names if name not in server.allowed_tools]
        if outside:
            raise Forbidden(
                f"The tool '{outside[0]}' of the server '{server.label}' is not offered.",
                code="tool_not_allowed",
                param=f"{param}.allowed_tools",
            )
    return undenied(server.label, dict.fromkeys(names), rules)


def _tightened(
    server: McpServer,
    document: Document,
    names: Sequence[str] | None,
    param: str,
    rules: RuleSet,
) -> frozenset[str] | None:
    """Read the caller's `require_approval`; it may tighten what the rules say, not widen it."""
    name = f"{param}.require_approval"
    wanted: Any = field(
        document,
        "require_approval",
        str | _ApprovalFilter,  # type: ignore[arg-type]  # msgspec takes unions
        param=name,
    )
    match wanted:
        case None:
            return frozenset()
        case "always":
            return None
        case "never":
            never = names
        case _ApprovalFilter(never=None, always=filter_):
            return frozenset(filter_.tool_names if filter_ else ())
        case _ApprovalFilter(never=filter_, always=more):
            always = frozenset(more.tool_names if more else ())
            # "always" beats "never", as it does upstream.
            never = [name for name in (filter_.tool_names if filter_ else ()) if name not in always]
        case _:
            raise BadRequest(
                '\'require_approval\' must be "always", "never" or an object with tool names.',
                code="invalid_value",
                param=name,
            )
    if never is None or any(
        rules.decide(server.label, tool).effect is not Effect.ALLOW for tool in never
    ):
        raise Forbidden(
            "'require_approval' may tighten the rules of the gateway, not widen them: "
            f"a tool of '{server.label}' needs a decision.",
            code="require_approval_not_allowed",
            param=name,
        )
    if wanted == "never":
        return frozenset()
    return frozenset(names).difference(never) if names is not None else None
