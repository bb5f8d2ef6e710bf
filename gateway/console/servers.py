"""MCP servers: what they offer, what of it is pinned, and a person's word on changes (MCP-5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import msgspec
from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.compare import changes
from gateway.console.desk import PATH, Desk, Page, has_any, refuse_form
from gateway.console.pages import redirect
from gateway.console.render import Piece, layout, warnings
from gateway.console.sessions import Ticket, Visitor
from gateway.domain.documents import NULL
from gateway.domain.errors import Forbidden, GatewayError, NotFound
from gateway.domain.identity import Role
from gateway.domain.pins import Definition, annotations_of, differences
from gateway.domain.registry import McpServer
from gateway.domain.tools import may_use
from gateway.services.pins import PinService, ToolPin
from gateway.web.doors import AnyRequest
from gateway.web.webhooks import origin

_SERVERS = f"{PATH}/servers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One pinned tool in a list.

    Attributes:
        state: "trusted", "changed", "new" where none was ever accepted, or "rejected".
        traits: What is known of it, such as "reads only".
    """

    one: ToolPin
    state: str
    description: str
    traits: Sequence[str]
    changed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A definition in full; schemas are `None` where it has none."""

    title: str
    definition: Definition
    input_schema: Sequence[Piece] | None
    output_schema: Sequence[Piece] | None


class ServerRoom:
    """Shows servers and decides about definitions."""

    def __init__(self, desk: Desk, servers: Sequence[McpServer], pins: PinService) -> None:
        self._desk = desk
        self._servers = servers
        self._pins = pins

    async def list(self, request: AnyRequest) -> Page:
        """List the servers that the tenant may use, and what waits for a person's word."""
        visitor = self._desk.enter(request, "servers")
        tools = [_tool(one) for one in await self._pins.list(visitor.caller)]
        lines = [
            (server, origin(server.url), [one for one in tools if one.one.server is server])
            for server in self._servers
            if may_use(visitor.caller.tenant, server.label)
        ]
        waiting = [one for one in tools if one.state in ("changed", "new")]
        values = {"room": "servers", "lines": lines, "waiting": waiting}
        return self._desk.page(visitor, "servers.html", values)

    async def show(self, request: AnyRequest, label: str) -> Page:
        """Show one server with its tools."""
        visitor = self._desk.enter(request, "servers")
        server = next((one for one in self._servers if one.label == label), None)
        if server is None or not may_use(visitor.caller.tenant, label):
            raise NotFound(f"There is no MCP server '{label}'.")
        pins = await self._pins.list(visitor.caller, server=label)
        values = {
            "room": "servers",
            "server": server,
            "origin": origin(server.url),
            "tools": [_tool(one) for one in pins],
        }
        return self._desk.page(visitor, "server.html", values)

    async def pin(self, request: AnyRequest, id_: str) -> Page:
        """Show one tool: its definitions, what changed, and the form that decides it."""
        visitor = self._desk.enter(request, "servers")
        return self._pin_page(visitor, await self._pins.retrieve(visitor.caller, id_))

    async def decide(self, request: AnyRequest, id_: str) -> Page:
        """Accept or reject the definition that the form's page showed, and no other."""
        visitor = self._desk.enter(request, "servers")
        form = await self._desk.form(request)
        found = await self._pins.retrieve(visitor.caller, id_)
        shown = self._desk.shown(visitor, id_, form)
        word = form.get("word")
        if shown is None or word not in ("accept", "reject"):
            refuse_form()
        try:
            await self._pins.decide(
                visitor.caller, id_, definition_hash=shown.fingerprint, accept=word == "accept"
            )
        except (NotFound, Forbidden):
            raise
        except GatewayError as exc:
            return self._pin_page(visitor, found, exc)
        return redirect(f"{PATH}/pins/{quote(id_, safe='')}")

    def _pin_page(
        self, visitor: Visitor, one: ToolPin, problem: GatewayError | None = None
    ) -> Page:
        pin = one.pin
        candidate = pin.candidate
        found = [] if candidate is None else differences(pin.trusted, candidate)
        wholes = [("Seen last", candidate), ("Accepted" if pin.by else "Seen first", pin.trusted)]
        values = {
            "room": "servers",
            "tool": _tool(one),
            "pin": pin,
            "changes": changes(found) if pin.trusted is not None else [],
            "warnings": _warnings(candidate or pin.trusted),
            "wholes": [_whole(title, which) for title, which in wholes if which is not None],
            "may_decide": has_any(visitor, [Role.APPROVER]),
            "ticket": self._desk.ticket(visitor, one.id, Ticket(0, candidate.hash))
            if candidate
            else "",
        }
        return self._desk.page(visitor, "pin.html", values, problem=problem)


def _tool(one: ToolPin) -> Tool:
    pin = one.pin
    shown = pin.candidate or pin.trusted
    if pin.candidate is None:
        state = "trusted"
    elif pin.refused == pin.candidate.hash:
        state = "rejected"
    else:
        state = "changed" if pin.trusted is not None else "new"
    said = annotations_of(one.server, one.tool, pin)
    traits = {
        "reads only": said.read_only is True,
        "destructive": said.destructive is True and said.read_only is not True,
        "idempotent": said.idempotent is True,
        "open world": said.open_world is True,
    }
    return Tool(
        one=one,
        state=state,
        description=((shown.description if shown else None) or "").partition("\n")[0][:200],
        traits=[trait for trait, true in traits.items() if true],
        changed=views.ago(time.time() - pin.changed_at),
    )


def _whole(title: str, definition: Definition) -> Whole:
    return Whole(
        title=title,
        definition=definition,
        input_schema=_schema(definition.input_schema),
        output_schema=_schema(definition.output_schema),
    )


def _schema(schema: msgspec.Raw) -> Sequence[Piece] | None:
    return None if bytes(schema) == bytes(NULL) else layout(bytes(schema))


def _warnings(definition: Definition | None) -> Sequence[str]:
    if definition is None:
        return []
    schemas = [bytes(definition.input_schema), bytes(definition.output_schema)]
    texts = [definition.name, definition.title or "", definition.description or ""]
    # As they are shown: what JSON escapes is what it stands for.
    plain = [piece.text for schema in schemas for piece in layout(schema) if piece.name]
    return warnings(texts) + (["hidden characters in a schema"] if plain else [])


def servers_room(
    desk: Desk, servers: Sequence[McpServer], pins: PinService
) -> list[HTTPRouteHandler]:
    """The doors to servers and their tools."""
    room = ServerRoom(desk, servers, pins)

    @get("/servers")
    async def list_servers(request: AnyRequest) -> Page:
        """All servers."""
        return await room.list(request)

    @get("/servers/{label:str}")
    async def show_server(request: AnyRequest, label: FromPath[str]) -> Page:
        """One server."""
        return await room.show(request, label)

    @get("/pins/{pin_id:str}")
    async def show_pin(request: AnyRequest, pin_id: FromPath[str]) -> Page:
        """One tool."""
        return await room.pin(request, pin_id)

    @post("/pins/{pin_id:str}/word", status_code=200)
    async def decide_pin(request: AnyRequest, pin_id: FromPath[str]) -> Page:
        """Accept or reject its definition."""
        return await room.decide(request, pin_id)

    return [list_servers, show_server, show_pin, decide_pin]
