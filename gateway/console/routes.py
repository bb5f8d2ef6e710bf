"""The console's doors, under `/console` (APPR-10). Each room has a module of its own."""

from __future__ import annotations

from litestar import Router, get
from litestar.params import FromPath
from litestar.types import Message, Scope

from gateway.console.approval import approval_room
from gateway.console.desk import PATH, Desk, Page, error_handlers
from gateway.console.entry import entry
from gateway.console.inbox import inbox
from gateway.console.live import live
from gateway.console.sessions import Sessions
from gateway.domain.errors import NotFound
from gateway.domain.ports import Wake
from gateway.services.approvals import ApprovalService
from gateway.web.answers import Pace
from gateway.web.doors import Doors

_LARGEST_FORM = 64 * 1024


def console_router(
    doors: Doors, approvals: ApprovalService, sessions: Sessions, wake: Wake, pace: Pace
) -> Router:
    """The doors to the console, under `/console`."""
    desk = Desk(doors, sessions)

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

    return Router(
        path=PATH,
        route_handlers=[
            *entry(desk),
            *inbox(desk, approvals),
            *approval_room(desk, approvals),
            *live(desk, wake, pace),
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
