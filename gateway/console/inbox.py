"""The inbox: what waits for a person (APPR-10)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast
from urllib.parse import urlencode

from litestar import get
from litestar.handlers import HTTPRouteHandler

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page
from gateway.domain.approvals import ApprovalStatus
from gateway.domain.errors import BadRequest
from gateway.services.approvals import ApprovalService, Whose
from gateway.web.doors import AnyRequest

_DEFAULTS = {"status": "pending", "view": "all"}


class Inbox:
    """Lists approvals."""

    def __init__(self, desk: Desk, approvals: ApprovalService) -> None:
        self._desk = desk
        self._approvals = approvals

    async def show(self, request: AnyRequest) -> Page:
        """List the approvals that the visitor may see."""
        visitor = self._desk.require(request)
        asked = _asked(request.query_params)
        after = asked.pop("after", None)
        found, more = await self._approvals.list(
            visitor.caller,
            status=None if asked["status"] == "all" else asked["status"],
            server=asked.get("server"),
            tool=asked.get("tool"),
            after=after,
            limit=views.PAGE,
            whose=cast("Whose", asked["view"]),
        )
        now = time.time()
        lines = [
            views.line(one, now, decidable=self._approvals.may_decide(visitor.caller, one))
            for one in found
        ]
        values = {
            "room": "inbox",
            "now": now,
            "status": asked["status"],
            "view": asked["view"],
            "tabs": _tabs(asked, await self._approvals.counts(visitor.caller) or {}),
            "views": _views(asked),
            "narrowed": _narrowed(asked),
            "lines": lines,
            "here": _path(asked),
            "newest": _path(asked),
            "older": _path({**asked, "after": found[-1].id}) if found and more else "",
            "first": after is None,
            "live": after is None,
        }
        return self._desk.page(visitor, "inbox.html", values)


def inbox(desk: Desk, approvals: ApprovalService) -> list[HTTPRouteHandler]:
    """The door to the inbox."""
    room = Inbox(desk, approvals)

    @get("/")
    async def show(request: AnyRequest) -> Page:
        """The inbox."""
        return await room.show(request)

    return [show]


def _asked(query: Mapping[str, str]) -> dict[str, str]:
    """Read the filters.

    Raises:
        BadRequest: One has a value that it cannot have.
    """
    names = ("status", "view", "server", "tool", "after")
    asked = {**_DEFAULTS, **{name: query[name] for name in names if query.get(name)}}
    if asked["status"] != "all" and asked["status"] not in set(ApprovalStatus):
        raise BadRequest("There is no such filter.", param="status")
    if asked["view"] not in ("mine", "team", "all"):
        raise BadRequest("There is no such view.", param="view")
    return asked


def _path(asked: Mapping[str, str]) -> str:
    """Name the inbox with these filters."""
    given = {name: value for name, value in asked.items() if _DEFAULTS.get(name) != value}
    return f"{PATH}?{urlencode(given)}" if given else PATH


def _tabs(asked: Mapping[str, str], counts: Mapping[str, int]) -> list[dict[str, object]]:
    """Name the tabs by status; counts are of the whole tenant, without the other filters."""
    return [
        {
            "value": value,
            "title": title,
            "path": _path({**asked, "status": value}),
            "count": counts.get(value),
        }
        for value, title in views.FILTERS
    ]


def _views(asked: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"value": value, "title": title, "path": _path({**asked, "view": value})}
        for value, title in views.VIEWS
    ]


def _narrowed(asked: Mapping[str, str]) -> list[dict[str, str]]:
    """Name the filters by server and tool, each with the way to remove it."""
    found = []
    for name in ("server", "tool"):
        if name in asked:
            rest = {key: value for key, value in asked.items() if key != name}
            found.append({"title": f"{name} {asked[name]}", "path": _path(rest)})
    return found
