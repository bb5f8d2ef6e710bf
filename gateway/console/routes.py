"""The console's doors, under `/console` (APPR-10). Each room has a module of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litestar import Router, get
from litestar.params import FromPath
from litestar.types import Message, Scope

from gateway.console.approval import approval_room
from gateway.console.audit import audit_room
from gateway.console.desk import PATH, Desk, Page, Room, error_handlers
from gateway.console.entry import entry
from gateway.console.grants import grants_room
from gateway.console.inbox import inbox
from gateway.console.live import live
from gateway.console.playground import Playground, playground
from gateway.console.rules import rules_room
from gateway.console.servers import servers_room
from gateway.console.sessions import Sessions
from gateway.console.turns import turns
from gateway.console.webhooks import webhooks_room
from gateway.domain.errors import NotFound
from gateway.domain.identity import Role
from gateway.domain.ports import Wake
from gateway.domain.registry import McpServer
from gateway.services.approvals import ApprovalService
from gateway.services.audit import AuditService
from gateway.services.grants import Grants
from gateway.services.overview import Overview
from gateway.services.pins import PinService
from gateway.services.policy import Policy
from gateway.services.webhook_endpoints import WebhookEndpoints
from gateway.web.answers import Pace
from gateway.web.doors import Doors

_LARGEST_FORM = 64 * 1024
_INBOX = Room("inbox", PATH, "Inbox")
_TURNS = Room("turns", f"{PATH}/turns", "Turns")
_SERVERS = Room("servers", f"{PATH}/servers", "Servers", (Role.APPROVER, Role.AUDITOR))
_RULES = Room("rules", f"{PATH}/rules", "Rules", (Role.AUDITOR, Role.APPROVER))
_GRANTS = Room("grants", f"{PATH}/grants", "Grants", (Role.APPROVER, Role.AUDITOR))
_AUDIT = Room("audit", f"{PATH}/audit", "Audit", (Role.AUDITOR,))
_WEBHOOKS = Room("webhooks", f"{PATH}/webhooks", "Webhooks", (Role.ADMIN,))
_PLAYGROUND = Room("playground", f"{PATH}/playground", "Playground", (Role.CALLER,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the console shows.

    Attributes:
        playground: `None` where it is not allowed.
    """

    approvals: ApprovalService
    audit: AuditService
    overview: Overview
    wake: Wake
    servers: Sequence[McpServer]
    pins: PinService
    policy: Policy
    grants: Grants
    webhooks: WebhookEndpoints
    playground: Playground | None = None


def console_router(doors: Doors, sessions: Sessions, pace: Pace, services: Services) -> Router:
    """The doors to the console, under `/console`."""
    rooms = [_INBOX, _TURNS, _SERVERS, _RULES, _GRANTS, _AUDIT, _WEBHOOKS]
    if services.playground is not None:
        rooms.append(_PLAYGROUND)
    desk = Desk(doors, sessions, rooms)

    @get("/static/{name:str}", sync_to_thread=False)
    def asset(name: FromPath[str]) -> Page:
        """A stylesheet, a script, or the icon."""
        found = desk.asset(name)
        if found is None:
            raise NotFound("There is no such file.")
        return found

    @get("/{rest:path}", sync_to_thread=False)
    def nothing(rest: FromPath[str]) -> Page:
        """Any other address."""
        raise NotFound("This address does not exist.")

    chat = playground(desk, services.playground) if services.playground is not None else []
    return Router(
        path=PATH,
        route_handlers=[
            *entry(desk),
            *inbox(desk, services.approvals),
            *approval_room(desk, services.approvals, services.overview, services.audit),
            *turns(desk, services.overview),
            *servers_room(desk, services.servers, services.pins),
            *rules_room(desk, services.policy, services.pins),
            *grants_room(desk, services.grants),
            *audit_room(desk, services.audit),
            *webhooks_room(desk, services.webhooks),
            *live(desk, services.wake, pace),
            *chat,
            asset,
            nothing,
        ],
        request_max_body_size=_LARGEST_FORM,
        exception_handlers=error_handlers(desk),
    )


async def take_back_cors(message: Message, scope: Scope) -> None:
    """Take from the console's answers what CORS allows other origins; it knows no paths."""
    if message["type"] == "http.response.start" and _is_ours(scope["path"]):
        message["headers"] = [
            (name, value)
            for name, value in message["headers"]
            if not name.lower().startswith(b"access-control-")
        ]


def _is_ours(path: str) -> bool:
    return path == PATH or path.startswith(PATH + "/")
