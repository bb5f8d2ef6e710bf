"""Grants: what answers in a person's place, and the way to end it (APPR-8, APPR-10)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page
from gateway.console.pages import redirect
from gateway.console.sessions import Visitor
from gateway.domain.errors import BadRequest
from gateway.domain.grants import Grant, Scope
from gateway.domain.identity import Role
from gateway.services.grants import Grants
from gateway.web.doors import AnyRequest

_GRANTS = f"{PATH}/grants"
_TABS = (("active", "Active"), ("all", "All"))
_COVERS = {
    Scope.ONCE: "the same call, one more time",
    Scope.EXACT_ARGS: "this tool with the same arguments",
    Scope.TOOL: "this tool with any arguments",
    Scope.SERVER: "every tool of the server that the rule asks for",
}
_ENDS = {
    "drift": "the tool's definition changed",
    "policy": "the rule changed",
    "chain": "a response of its chain was deleted",
    "approval": "the approval that it came with was not granted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One grant.

    Attributes:
        left: How long it lives yet, "" where it does not.
        ended: Why it answers no more, in words.
        ticket: Of the form that ends it; "" where the visitor may not, or it has ended.
    """

    grant: Grant
    covers: str
    left: str
    ended: str
    ticket: str


class GrantRoom:
    """Lists grants, and ends them."""

    def __init__(self, desk: Desk, grants: Grants) -> None:
        self._desk = desk
        self._grants = grants

    async def list(self, request: AnyRequest) -> Page:
        """List the grants of the tenant, newest first."""
        visitor = self._desk.enter(request, "grants")
        query = request.query_params
        status = query.get("status") or "active"
        if status not in dict(_TABS):
            raise BadRequest("There is no such filter.", param="status")
        after = query.get("after") or None
        found, more = await self._grants.list(
            visitor.caller,
            active=status == "active",
            server=None,
            tool=None,
            subject=None,
            after=after,
            limit=views.PAGE,
        )
        values = {
            "room": "grants",
            "status": status,
            "tabs": [(name, title, _path(name)) for name, title in _TABS],
            "lines": [self._line(visitor, grant) for grant in found],
            "revoked": await self._revoked(visitor, query.get("revoked", "")),
            "first": after is None,
            "older": _path(status, found[-1].id) if more and found else "",
        }
        return self._desk.page(visitor, "grants.html", values)

    async def revoke(self, request: AnyRequest, grant_id: str) -> Page:
        """End a grant at once."""
        visitor = self._desk.enter(request, "grants", Role.CALLER, Role.APPROVER)
        await self._desk.signed_form(request, visitor, grant_id)
        grant = await self._grants.revoke(visitor.caller, grant_id)
        return redirect(f"{_GRANTS}?{urlencode({'revoked': grant.id})}")

    async def _revoked(self, visitor: Visitor, grant_id: str) -> Grant | None:
        """Read the grant that was just ended, so that the page can say so."""
        if not grant_id:
            return None
        grant = await self._grants.retrieve(visitor.caller, grant_id)
        return grant if grant.status == "revoked" else None

    def _line(self, visitor: Visitor, grant: Grant) -> Line:
        alive = grant.status in ("active", "waiting")
        may = alive and self._grants.may_revoke(visitor.caller, grant)
        return Line(
            grant=grant,
            covers=_COVERS[grant.scope],
            left=views.span(grant.expires_at - time.time()) if grant.status == "active" else "",
            ended=_ENDS.get(grant.ended, ""),
            ticket=self._desk.ticket(visitor, grant.id) if may else "",
        )


def _path(status: str, after: str = "") -> str:
    asked = {"status": status} if status != "active" else {}
    asked |= {"after": after} if after else {}
    return f"{_GRANTS}?{urlencode(asked)}" if asked else _GRANTS


def grants_room(desk: Desk, grants: Grants) -> Sequence[HTTPRouteHandler]:
    """The doors to grants."""
    room = GrantRoom(desk, grants)

    @get("/grants")
    async def list_grants(request: AnyRequest) -> Page:
        """All grants."""
        return await room.list(request)

    @post("/grants/{grant_id:str}/revoke", status_code=200)
    async def revoke_grant(request: AnyRequest, grant_id: FromPath[str]) -> Page:
        """End one."""
        return await room.revoke(request, grant_id)

    return [list_grants, revoke_grant]
