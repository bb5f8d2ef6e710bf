"""The playground: a chat that streams through the public API like any frontend (APPR-10).

The page has no power of its own. It asks for a pass, and calls `/v1/responses` with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from litestar import Response, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.console.desk import Desk, Page
from gateway.console.pages import HEADERS
from gateway.console.sessions import PASS_LIFETIME
from gateway.domain.documents import encode
from gateway.domain.registry import McpServer
from gateway.domain.tools import may_use
from gateway.web.doors import AnyRequest


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something to try: what the button says, and what is sent."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Playground:
    """What the playground offers.

    Attributes:
        models: The first one is chosen; callers may type another.
    """

    models: Sequence[str]
    servers: Sequence[McpServer]
    suggestions: Sequence[Suggestion]


def playground(desk: Desk, offered: Playground) -> list[HTTPRouteHandler]:
    """The doors to the playground."""

    @get("/playground", sync_to_thread=False)
    def show(request: AnyRequest) -> Page:
        """The chat."""
        visitor = desk.enter(request, "playground")
        tenant = visitor.caller.tenant
        values = {
            "room": "playground",
            "models": offered.models,
            "servers": [one for one in offered.servers if may_use(tenant, one.label)],
            "suggestions": offered.suggestions,
            "stateless": tenant.stateless,
            "ticket": desk.ticket(visitor, "pass"),
        }
        return desk.page(visitor, "playground.html", values)

    @post("/playground/pass", status_code=200)
    async def issue_pass(request: AnyRequest) -> Response[bytes]:
        """Give the page a pass for the API."""
        visitor = desk.enter(request, "playground")
        await desk.signed_form(request, visitor, "pass")
        body = {"pass": desk.sessions.issue_pass(visitor), "expires_in": PASS_LIFETIME}
        return Response(encode(body), media_type="application/json", headers=HEADERS)

    return [show, issue_pass]
