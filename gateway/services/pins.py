"""Tool pins in turns: read first, compared with listings, read again to dispatch (MCP-5).

A turn without registered MCP servers touches nothing here; one with them reads all their pins in
one round trip.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from gateway.domain.documents import Raw
from gateway.domain.errors import Forbidden, NotFound, StoreUnavailable
from gateway.domain.identity import Role, Tenant
from gateway.domain.pins import (
    Change,
    Definition,
    Pin,
    PinSet,
    define,
    pin_id,
)
from gateway.domain.ports import (
    ApprovalStore,
    AuditLog,
    Meter,
    Outbox,
    PinnedServer,
    PinStore,
)
from gateway.domain.registry import McpServer
from gateway.domain.rules import RuleSet
from gateway.domain.tools import Attachment, Tools, identity_of, may_use
from gateway.domain.turns import is_type
from gateway.services.callers import Caller

logger = logging.getLogger("gateway.pins")

_TRIES = 20


class _Listing(msgspec.Struct):
    server_label: str = ""
    tools: list[Raw] | None = None


class _Called(msgspec.Struct):
    server_label: str = ""
    name: str = ""


class Pinning:
    """Keeps the pins of a turn's tools fresh, and takes listings in."""

    def __init__(
        self,
        *,
        store: PinStore,
        approvals: ApprovalStore,
        outbox: Outbox,
        audit: AuditLog,
        meter: Meter,
        rules: RuleSet,
    ) -> None:
        self._store = store
        self._approvals = approvals
        self._outbox = outbox
        self._audit = audit
        self._meter = meter
        self._rules = rules

    async def fresh(self, tenant: str, tools: Tools) -> Tools:
        """Read the pins of all attached servers; what is in quarantine leaves the tools."""
        pinned = _pinned(tools)
        if not pinned:
            return tools
        sets = await self._store.read(tenant, [_server(one) for one in pinned])
        return tools.pinned(
            {one.label: s for one, s in zip(pinned, sets, strict=True)}, self._rules
        )

    async def offered(self, tenant: str, tools: Tools) -> Tools:
        """Do the same for a turn that begins, in which every server must offer something.

        Raises:
            Forbidden: All tools of a server that was asked for are in quarantine.
        """
        fresh = await self.fresh(tenant, tools)
        if fresh is tools:
            return tools
        kept: list[Raw | Attachment] = []
        for index, part in enumerate(fresh.parts):
            if not isinstance(part, Attachment) or part.offered != frozenset():
                kept.append(part)
            elif part.server is None or part.server.attach != "always":
                raise Forbidden(
                    f"All tools of the server '{part.label}' that were asked for are in "
                    "quarantine: a person must accept their definitions.",
                    code="mcp_tools_quarantined",
                    param=f"tools[{index}].allowed_tools",
                )
        return Tools(tuple(kept))

    async def seen(self, tenant: str, turn: str, tools: Tools, output: Sequence[Raw]) -> Seen:
        """Take the listings of a leg in, before anything is decided about its requests."""
        listings = [
            msgspec.json.decode(item, type=_Listing)
            for item in output
            if is_type(item, "mcp_list_tools")
        ]
        if not listings and not any(is_type(item, "mcp_approval_request") for item in output):
            return Seen(tools)
        for listing in listings:
            attachment = tools.attachment(listing.server_label)
            if attachment in _pinned(tools) and attachment is not None:
                definitions = [define(tool) for tool in listing.tools or ()]
                await self._take(tenant, turn, attachment, definitions)
        fresh = await self.fresh(tenant, tools)
        return Seen(fresh, _ran_in_quarantine(fresh, output) if listings else ())

    async def _take(
        self, tenant: str, turn: str, attachment: Attachment, seen: Sequence[Definition]
    ) -> None:
        server = _server(attachment)
        mode = attachment.server.pins if attachment.server else "off"
        for _ in range(_TRIES):
            (pins,) = await self._store.read(tenant, [server])
            after, changes = pins.after(seen, mode)
            if not changes:
                return
            for change in changes:
                # Before it is written: a repeat tells it again, and the same event is told once.
                await self._tell(tenant, server, change)
            if await self._store.write(tenant, server, after):
                for change in changes:
                    self._count(tenant, turn, server, change)
                    if change.kind == "drifted":
                        await self._withdraw(tenant, server, change)
                return
        raise StoreUnavailable("The tool pins change too often to be written. Try again.")

    async def _tell(self, tenant: str, server: PinnedServer, change: Change) -> None:
        if change.kind == "pinned" and change.pin.status == "trusted":
            return
        id_ = pin_id(tenant, server.label, server.identity, change.tool)
        definition = change.definition
        digest = definition.hash if definition else ""
        await self._outbox.emit(
            tenant,
            "tool.drifted" if change.kind == "drifted" else "tool.new",
            id_,
            {
                "object": "tool_pin",
                "server": server.label,
                "tool": change.tool,
                "status": change.pin.status,
                "definition_hash": digest,
                "url": f"/v1/tools/pins/{id_}",
            },
            occurrence=digest,
        )

    async def _withdraw(self, tenant: str, server: PinnedServer, change: Change) -> None:
        """Note the change, and supersede what people are asked about the tool.

        What is decided meanwhile, or missed by a crash, is found again before it is sent.
        """
        definition = change.definition
        await self._audit.note(
            tenant,
            "pin.drifted",
            actor="gateway",
            subject=f"{server.label}.{change.tool}",
            detail={
                "pin": pin_id(tenant, server.label, server.identity, change.tool),
                "definition_hash": definition.hash if definition else None,
            },
        )
        after: str | None = None
        more = True
        while more:
            found, more = await self._approvals.list(
                tenant,
                status="pending",
                server=server.label,
                tool=change.tool,
                after=after,
                limit=100,
            )
            for approval in found:
                if approval.server_identity == server.identity:
                    await self._approvals.supersede(
                        tenant, approval.id, cause="The definition of the tool has changed."
                    )
            after = found[-1].id if found else None
            more = more and bool(found)

    def _count(self, tenant: str, turn: str, server: PinnedServer, change: Change) -> None:
        self._meter.tool_pin(server=server.label, outcome=change.kind)
        extra = {
            "tenant": tenant,
            "turn": turn,
            "server": server.label,
            "tool": change.tool,
            "pin": pin_id(tenant, server.label, server.identity, change.tool),
            "status": change.pin.status,
        }
        match change.kind:
            case "drifted":
                logger.critical("the definition of a tool has changed", extra=extra)
            case "new":
                logger.warning("a known server has a new tool", extra=extra)
            case "pinned":
                logger.info("a tool was seen for the first time", extra=extra)

    def ran(self, tenant: str, turn: str, calls: Sequence[tuple[str, str]]) -> None:
        """Tell that tools ran in the very response whose listing put them into quarantine."""
        for server, tool in calls:
            self._meter.tool_pin(server=server, outcome="ran_drifted")
            logger.critical(
                "a tool ran although its definition has changed",
                extra={"tenant": tenant, "turn": turn, "server": server, "tool": tool},
            )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a leg's listings have brought.

    Attributes:
        tools: The turn's tools with fresh pins.
        ran: Server and tool of calls that ran although their tool is now in quarantine.
    """

    tools: Tools
    ran: tuple[tuple[str, str], ...] = ()


def _pinned(tools: Tools) -> list[Attachment]:
    return [one for one in tools.attachments if one.server is not None and one.server.pins != "off"]


def _server(attachment: Attachment) -> PinnedServer:
    return PinnedServer(attachment.label, attachment.identity)


def _ran_in_quarantine(tools: Tools, output: Sequence[Raw]) -> tuple[tuple[str, str], ...]:
    ran: list[tuple[str, str]] = []
    for item in output:
        if not is_type(item, "mcp_call"):
            continue
        call = msgspec.json.decode(item, type=_Called)
        attachment = tools.attachment(call.server_label)
        if attachment is not None and attachment.pin_status(call.name) == "quarantined":
            ran.append((call.server_label, call.name))
    return tuple(ran)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolPin:
    """One pin with all that names it."""

    id: str
    server: McpServer
    identity: str
    tool: str
    pin: Pin


class PinService:
    """The pins API: list, read, accept, reject."""

    def __init__(
        self,
        *,
        store: PinStore,
        servers: Mapping[str, McpServer],
        audit: AuditLog,
        meter: Meter,
    ) -> None:
        self._store = store
        self._servers = servers
        self._audit = audit
        self._meter = meter

    async def list(
        self, caller: Caller, *, server: str | None = None, status: str | None = None
    ) -> Sequence[ToolPin]:
        """List the pins of the servers that the tenant may use, in order of server and tool."""
        _require_sight(caller)
        return [
            one
            for one in await self._all(caller.tenant, server)
            if status is None or one.pin.status == status
        ]

    async def retrieve(self, caller: Caller, id_: str) -> ToolPin:
        """Read one pin.

        Raises:
            NotFound: The tenant has no such pin.
        """
        _require_sight(caller)
        return await self._one(caller.tenant, id_)

    async def decide(
        self, caller: Caller, id_: str, *, definition_hash: str, accept: bool
    ) -> ToolPin:
        """Accept or reject the definition that a person has read.

        Raises:
            Conflict: The tool is not in quarantine, or its definition has changed again.
            NotFound: The tenant has no such pin.
        """
        if not caller.principal.has(Role.APPROVER):
            raise Forbidden("This needs the role 'approver'.", code="missing_role")
        for _ in range(_TRIES):
            found = await self._one(caller.tenant, id_)
            server = PinnedServer(found.server.label, found.identity)
            (pins,) = await self._store.read(caller.tenant.id, [server])
            decided = pins.decided(
                found.tool, definition_hash, accept=accept, by=caller.principal.subject
            )
            if await self._store.write(caller.tenant.id, server, decided):
                await self._tell(caller, found, definition_hash, accept=accept)
                return await self._one(caller.tenant, id_)
        raise StoreUnavailable("The tool pins change too often to be written. Try again.")

    async def _tell(
        self, caller: Caller, found: ToolPin, definition_hash: str, *, accept: bool
    ) -> None:
        outcome = "accepted" if accept else "rejected"
        await self._audit.note(
            caller.tenant.id,
            f"pin.{outcome}",
            actor=f"subject:{caller.principal.subject}",
            subject=f"{found.server.label}.{found.tool}",
            detail={"pin": found.id, "definition_hash": definition_hash},
        )
        self._meter.tool_pin(server=found.server.label, outcome=outcome)
        logger.warning(
            "a definition in quarantine was %s",
            outcome,
            extra={
                "tenant": caller.tenant.id,
                "request": caller.request_id,
                "key": caller.principal.key_id,
                "pin": found.id,
                "server": found.server.label,
                "tool": found.tool,
            },
        )

    async def _one(self, tenant: Tenant, id_: str) -> ToolPin:
        for one in await self._all(tenant, None):
            if one.id == id_:
                return one
        raise NotFound(f"Tool pin with id '{id_}' not found.", code="tool_pin_not_found")

    async def _all(self, tenant: Tenant, label: str | None) -> Sequence[ToolPin]:
        servers = [
            server
            for server in self._servers.values()
            if server.pins != "off" and label in (None, server.label)
            if may_use(tenant, server.label)
        ]
        wanted = [PinnedServer(server.label, identity_of(server)) for server in servers]
        sets: Sequence[PinSet] = await self._store.read(tenant.id, wanted)
        return [
            ToolPin(
                id=pin_id(tenant.id, key.label, key.identity, tool),
                server=server,
                identity=key.identity,
                tool=tool,
                pin=pin,
            )
            for server, key, pins in zip(servers, wanted, sets, strict=True)
            for tool, pin in sorted(pins.pins.items())
        ]


def _require_sight(caller: Caller) -> None:
    if not (caller.principal.has(Role.APPROVER) or caller.principal.has(Role.AUDITOR)):
        raise Forbidden("This needs the role 'approver' or 'auditor'.", code="missing_role")
