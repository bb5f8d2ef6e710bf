"""MCP tools: attached inwards from the registry, redacted outwards (MCP-1 to MCP-4).

A caller names a server by label. It may narrow the tools and tighten the approval, never widen.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.domain.calls import PinStatus
from gateway.domain.documents import NULL, Document, Raw, encode, field, parse_array, raw
from gateway.domain.errors import BadRequest, Forbidden
from gateway.domain.identity import Tenant
from gateway.domain.pins import NO_PINS, PinSet
from gateway.domain.registry import McpServer
from gateway.domain.requests import Item
from gateway.domain.rules import Effect, RuleSet, Ruling
from gateway.domain.terms import ApprovalTerms

_LOCATIONS = ("server_url", "connector_id", "tunnel_id")
_SECRETS = ("headers", "authorization")
_OWNED = {*_LOCATIONS, *_SECRETS, "type", "server_label", "server_description"}
_OWNED |= {"allowed_tools", "require_approval", "allowed_callers"}

# Item types whose content never defines tools; all others are searched for smuggled ones.
_NO_TOOLS = frozenset(
    {
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "item_reference",
        "compaction",
        "image_generation_call",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
    }
)

BY_CALLER = Ruling(
    Effect.ASK,
    "caller",
    ApprovalTerms(by="caller"),
    "The caller asked to decide this call itself.",
)
OWN_SERVER = Ruling(
    Effect.ASK, "default", reason="The server is the caller's own, so a person decides."
)
NOT_OFFERED = Ruling(Effect.DENY, "default", reason="The tool is not offered in this turn.")
QUARANTINED = Ruling(
    Effect.DENY,
    "pin",
    reason="The tool is in quarantine: its definition is not the one that was accepted. It does "
    "not run until a person accepts the difference (GET /v1/tools/pins?status=quarantined).",
)
UNKNOWN = Ruling(Effect.DENY, "default", reason="The server is not registered.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One MCP server of a turn.

    Attributes:
        server: The registered server, or `None` for a caller's own (then `tool` is complete and
            holds the caller's own secrets).
        forwarded: MCP header name to the value taken from the caller's request: secrets.
        tool: The tool object without location and secrets, as far as it is known now.
        tightened: Tools that the caller wants to decide itself; `None` means all of them.
        pins: The pins of the server's tools, as they were read last (MCP-5).
    """

    label: str
    server: McpServer | None
    tool: Document
    forwarded: Mapping[str, str]
    tightened: frozenset[str] | None = frozenset()
    pins: PinSet = NO_PINS

    def ruling(self, rules: RuleSet, tool: str) -> Ruling:
        """Say what holds for every call of a tool: what is compiled into the request (MCP-4).

        An upstream may ask for, or report, a tool that it was never offered.
        """
        if self.server is None:
            return OWN_SERVER
        ruling = rules.decide(self.label, tool)
        if ruling.effect is Effect.DENY:
            return ruling
        if self.pin_status(tool) == "quarantined":
            return QUARANTINED
        if self.offered is not None and tool not in self.offered:
            return NOT_OFFERED
        if ruling.effect is Effect.ALLOW and self.tightens(tool):
            return BY_CALLER
        return ruling

    def pin_status(self, tool: str) -> PinStatus:
        """Whether the definition of a tool is the accepted one."""
        if self.server is None or self.server.pins == "off":
            return "unseen"
        return self.pins.status(tool, self.server.pins)

    def tightens(self, tool: str) -> bool:
        """Whether the caller wants to decide the tool's calls itself."""
        return self.tightened is None or tool in self.tightened

    @property
    def offered(self) -> frozenset[str] | None:
        """The tools of a registered server that this turn has; `None` means all it lists."""
        names = msgspec.json.decode(self.tool.get("allowed_tools", NULL), type=list[str] | None)
        return None if names is None else frozenset(names)

    def recompiled(self, rules: RuleSet) -> Attachment:
        """Write the tool again as rules and registry are now: a turn may have waited long.

        What became denied, quarantined or is offered no more leaves; nothing that the turn
        lacked comes back.
        """
        if self.server is None:
            return self
        names, registered = self.offered, self.server.allowed_tools
        if names is None:
            names = None if registered is None else frozenset(registered)
        elif registered is not None:
            names &= frozenset(registered)
        names = self._unquarantined(names)
        tool = dict(self.tool)
        kept = None if names is None else sorted(_undenied(self.label, names, rules))
        if kept is not None:
            tool["allowed_tools"] = raw(kept)
        candidates = kept if kept is not None else _exact_names(self.label, rules)
        free = [name for name in candidates if self.pin_status(name) != "quarantined"]
        tool["require_approval"] = _require_approval(free, self.tightened, self.label, rules)
        return replace(self, tool=tool)

    def _unquarantined(self, names: frozenset[str] | None) -> frozenset[str] | None:
        """Leave out what is in quarantine; without a list, name what is known and trusted.

        Of a server that was never listed nothing is left out: its first listing tells what there
        is, and what is in quarantine then is denied all the same.
        """
        mode = self.server.pins if self.server else "off"
        if mode == "off" or not self.pins.pins or not self.pins.holds_back(mode):
            return names
        if names is None:
            return frozenset(self.pins.trusted)
        return frozenset(name for name in names if self.pin_status(name) != "quarantined")

    def pinned(self, pins: PinSet, rules: RuleSet) -> Attachment:
        """Attach the server's pins; what is in quarantine leaves the tool."""
        attachment = replace(self, pins=pins)
        mode = self.server.pins if self.server else "off"
        return attachment.recompiled(rules) if pins.holds_back(mode) else attachment

    @property
    def identity(self) -> str:
        """A hash that changes when the label comes to mean another server (APPR-7)."""
        if self.server is not None:
            return identity_of(self.server)
        return _digest([bytes(self.tool.get(key, NULL)).decode() for key in _LOCATIONS])


def identity_of(server: McpServer) -> str:
    """Hash what a registered label stands for: its address, and which credentials it is sent."""
    return _digest([server.url, *sorted(f"{k}={v}" for k, v in server.headers.items())])


def _digest(parts: list[str]) -> str:
    return "sha256:" + hashlib.sha256(encode(parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a turn, in the caller's order: raw ones, and MCP servers to be joined."""

    parts: tuple[Raw | Attachment, ...] = ()

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The MCP servers among them."""
        return tuple(part for part in self.parts if isinstance(part, Attachment))

    def attachment(self, label: str) -> Attachment | None:
        """Find an MCP server by its label."""
        return next((part for part in self.attachments if part.label == label), None)

    def ruling(self, rules: RuleSet, server: str, tool: str) -> Ruling:
        """Say what holds for every call of a tool in this turn."""
        attachment = self.attachment(server)
        return UNKNOWN if attachment is None else attachment.ruling(rules, tool)

    def pinned(self, pins: Mapping[str, PinSet], rules: RuleSet) -> Tools:
        """Attach pins by server label; what is in quarantine leaves the tools."""
        return Tools(
            tuple(
                part.pinned(pins[part.label], rules)
                if isinstance(part, Attachment) and part.label in pins
                else part
                for part in self.parts
            )
        )

    def recompiled(self, rules: RuleSet, tenant: Tenant) -> Tools:
        """Write the tools again as rules, registry and tenant are now."""
        kept: list[Raw | Attachment] = []
        for part in self.parts:
            if not isinstance(part, Attachment):
                kept.append(part)
            elif part.server is None or may_use(tenant, part.label):
                kept.append(part.recompiled(rules))
        return Tools(tuple(kept))


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
        _refuse_smuggled(value, param)
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
    for key in _LOCATIONS:
        if _given(document, key):
            raise Forbidden(
                f"'{key}' may not be set: only registered MCP servers may be used.",
                code=f"{key}_not_allowed",
                param=f"{param}.{key}",
            )


def may_use(tenant: Tenant, label: str) -> bool:
    """Tell whether a tenant may use a registered server."""
    return tenant.mcp_servers is None or label in tenant.mcp_servers


def _given(document: Document, key: str) -> bool:
    return bytes(document.get(key, NULL)) not in (b"null", b"{}", b'""')


def _refuse_brought(document: Document, param: str) -> None:
    for key in _LOCATIONS:
        if _given(document, key):
            raise Forbidden(
                f"'{key}' may not be set: the gateway knows where its servers are. "
                "Name the server by 'server_label' alone.",
                code=f"{key}_not_allowed",
                param=f"{param}.{key}",
            )
    for key in _SECRETS:
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
    brought = [key for key in _LOCATIONS if _given(document, key)]
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
    candidates = names if names is not None else _exact_names(server.label, rules)
    tool: Document = {
        "type": raw("mcp"),
        "server_label": raw(server.label),
        **{key: value for key, value in document.items() if key not in _OWNED},
        "allowed_callers": raw(["direct"]),
        "require_approval": _require_approval(candidates, tightened, server.label, rules),
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
    return _undenied(server.label, dict.fromkeys(names), rules)


def _undenied(label: str, names: Iterable[str], rules: RuleSet) -> list[str]:
    return [name for name in names if rules.decide(label, name).effect is not Effect.DENY]


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


def _require_approval(
    candidates: Sequence[str], tightened: frozenset[str] | None, label: str, rules: RuleSet
) -> Raw:
    """Compile the rules into the request (MCP-4): only names that are always allowed skip it.

    `never` with names leaves all others at "always"; a filter by `always` would not, and one by
    `read_only` would believe the MCP server.
    """
    if tightened is None:
        return raw("always")
    free = [
        name
        for name in candidates
        if name not in tightened and rules.decide(label, name).effect is Effect.ALLOW
    ]
    return raw({"never": {"tool_names": free}}) if free else raw("always")


def _exact_names(label: str, rules: RuleSet) -> list[str]:
    tools = (rule.match.tool for rule in rules.rules if fnmatchcase(label, rule.match.server))
    return [tool for tool in dict.fromkeys(tools) if not set(tool) & set("*?[")]


def refuse_smuggled_items(items: Sequence[Item]) -> None:
    """Refuse input items that define MCP tools beside `tools`.

    Raises:
        Forbidden: An item holds one, at any depth.
    """
    for index, item in enumerate(items):
        if item.type not in _NO_TOOLS:
            _refuse_smuggled(item.raw, f"input[{index}]")


class _Acknowledging(msgspec.Struct):
    acknowledged_safety_checks: Any = None


def refuse_acknowledgements(items: Sequence[Item], *, name: str = "input") -> None:
    """Refuse to pass on that a safety check was seen: nobody can approve one yet (APPR-12).

    Raises:
        Forbidden: An item acknowledges one, whatever its type says.
    """
    for index, item in enumerate(items):
        data = bytes(item.raw)
        # An escape could spell the name in another way.
        if b"acknowledged_safety_checks" not in data and b"\\u" not in data:
            continue
        if msgspec.json.decode(data, type=_Acknowledging).acknowledged_safety_checks:
            raise Forbidden(
                "Safety checks of computer use cannot be acknowledged: nobody has approved them.",
                code="safety_check_not_approved",
                param=f"{name}[{index}].acknowledged_safety_checks",
            )


_TEXTS = frozenset({"input", "tools", "instructions", "metadata", "text", "prompt"})


def refuse_smuggled_fields(document: Document) -> None:
    """Refuse MCP tools in fields that are passed on unread; upstreams invent new ones (API-3).

    `tool_choice` may name a server by its label, and no more.

    Raises:
        Forbidden: A field defines one, at any depth.
    """
    for key, value in document.items():
        if key == "tool_choice":
            _refuse_smuggled(value, key, keys=_LOCATIONS)
        elif key not in _TEXTS:
            _refuse_smuggled(value, key)


def _refuse_smuggled(value: Raw, param: str, *, keys: Sequence[str] = ()) -> None:
    data = bytes(value)
    # An escape could spell "mcp" in another way, so its presence needs the full look as well.
    suspicious = b'"mcp"' in data or b"\\u" in data
    if suspicious and _holds_mcp(msgspec.json.decode(data), keys):
        raise Forbidden(
            "MCP tools may only be named in 'tools'.", code="mcp_tool_not_allowed", param=param
        )


def _holds_mcp(value: Any, keys: Sequence[str]) -> bool:
    """Look for an MCP tool at any depth; with `keys`, for one that has any of them."""
    if isinstance(value, dict):
        found = value.get("type") == "mcp" and (not keys or any(key in value for key in keys))
        return found or any(_holds_mcp(part, keys) for part in value.values())
    return isinstance(value, list) and any(_holds_mcp(part, keys) for part in value)


def join(tools: Tools, secrets: Mapping[str, Mapping[str, str]]) -> Raw:
    """Write `tools` for the upstream, with secrets joined in (MCP-2).

    Args:
        secrets: Label to header name to value.
    """
    return raw([_joined(part, secrets) for part in tools.parts])


def _joined(part: Raw | Attachment, secrets: Mapping[str, Mapping[str, str]]) -> Raw | Document:
    if not isinstance(part, Attachment) or part.server is None:
        return part.tool if isinstance(part, Attachment) else part
    headers = {**secrets.get(part.label, {}), **part.forwarded}
    joined = {**part.tool, "server_url": raw(part.server.url)}
    if headers:
        joined["headers"] = raw(headers)
    return joined


def public_tools(echo: Raw) -> Raw:
    """Rewrite the `tools` echo of a response: MCP tools without location and secrets (MCP-3).

    Fails closed: what cannot be read is not shown.
    """
    try:
        return raw([_public(tool) for tool in parse_array(echo)])
    except msgspec.DecodeError:
        return raw([])


def _public(tool: Raw) -> Raw | Document:
    document = msgspec.json.decode(tool, type=Document)
    if bytes(document.get("type", NULL)) != b'"mcp"':
        return tool
    return {
        key: (NULL if key in _LOCATIONS or key in _SECRETS else value)
        for key, value in document.items()
    }


class Scrubber:
    """Removes known secret values from bytes that go to a caller (MCP-3).

    A belt beside the braces of redaction: an MCP server may repeat the credential that it was
    sent in a tool's output or an error text.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        needles: set[bytes] = set()
        for secret in secrets:
            for form in (secret, secret.rpartition(" ")[2]):
                if len(form) >= 8:  # shorter ones are words, and replacing them breaks text
                    needles.update(_spellings(form))
        self._needles = sorted(needles, key=len, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._needles)

    def scrub_raw(self, value: Raw) -> Raw:
        """Scrub a part of a document; one that holds no secret is returned itself."""
        data = bytes(value)
        scrubbed = self.scrub(data)
        return value if scrubbed is data else Raw(scrubbed)

    def scrub(self, data: bytes) -> bytes:
        """Replace every known secret value by `[redacted]`."""
        for needle in self._needles:
            if needle in data:
                data = data.replace(needle, b"[redacted]")
        return data


@lru_cache(maxsize=1024)
def scrubber_of(secrets: tuple[str, ...]) -> Scrubber:
    """Return the scrubber that knows the secrets; the same ones come with every turn."""
    return Scrubber(secrets)


@lru_cache(maxsize=1024)
def _spellings(secret: str) -> frozenset[bytes]:
    """Write a text as encoders do: plain, ASCII only, with `/` escaped, and inside JSON text."""
    plain = encode(secret)[1:-1]
    ascii_only = json.dumps(secret)[1:-1].encode()
    nested = encode(plain.decode())[1:-1]
    found = frozenset({plain, ascii_only, nested, secret.encode("utf-8", "replace")})
    return found | {form.replace(b"/", b"\\/") for form in found}
