"""The tools of a turn: MCP servers joined to it inwards, and redacted outwards (MCP-2 to MCP-4).

`attaching.py` makes them of what a caller sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import msgspec

from gateway.domain.calls import PinStatus
from gateway.domain.documents import NULL, Document, Raw, encode, parse_array, raw
from gateway.domain.identity import Tenant
from gateway.domain.pins import NO_PINS, PinSet
from gateway.domain.registry import McpServer
from gateway.domain.rules import Effect, RuleSet, Ruling
from gateway.domain.terms import ApprovalTerms

# Fields of an MCP tool that say where its server is, and what it is sent.
LOCATIONS = ("server_url", "connector_id", "tunnel_id")
SECRETS = ("headers", "authorization")

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
        kept = None if names is None else sorted(undenied(self.label, names, rules))
        if kept is not None:
            tool["allowed_tools"] = raw(kept)
        candidates = kept if kept is not None else exact_names(self.label, rules)
        free = [name for name in candidates if self.pin_status(name) != "quarantined"]
        tool["require_approval"] = require_approval(free, self.tightened, self.label, rules)
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
        return _digest([bytes(self.tool.get(key, NULL)).decode() for key in LOCATIONS])


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


def may_use(tenant: Tenant, label: str) -> bool:
    """Tell whether a tenant may use a registered server."""
    return tenant.mcp_servers is None or label in tenant.mcp_servers


def undenied(label: str, names: Iterable[str], rules: RuleSet) -> list[str]:
    """Leave out the tools that the rules deny whatever their arguments."""
    return [name for name in names if rules.decide(label, name).effect is not Effect.DENY]


def require_approval(
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


def exact_names(label: str, rules: RuleSet) -> list[str]:
    """List the tools of a server that rules name without a pattern."""
    tools = (rule.match.tool for rule in rules.rules if fnmatchcase(label, rule.match.server))
    return [tool for tool in dict.fromkeys(tools) if not set(tool) & set("*?[")]


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
        key: (NULL if key in LOCATIONS or key in SECRETS else value)
        for key, value in document.items()
    }
