"""The audit: search it, verify it, take it away (APPR-11, APPR-10)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page
from gateway.console.pages import HEADERS
from gateway.console.render import Piece, layout
from gateway.console.sessions import Visitor
from gateway.domain.audit import Document, Verdict
from gateway.domain.errors import BadRequest, GatewayError
from gateway.services.audit import AuditService, Listed, Wanted
from gateway.web.audit import Lines, moment_of
from gateway.web.doors import AnyRequest

_AUDIT = f"{PATH}/audit"
_FIELDS = ("event", "actor", "approval", "since", "until")
_NOTHING = Listed([], None, False)
_ASIDE = frozenset({"object", "id", "sequence", "tenant", "time", "event", "actor", "hash"})
_OUTCOMES = {"approve": "approved", "deny": "denied"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One entry.

    Attributes:
        about: What it is about, in a few words; the rest is in `facts`.
        approval: The approval that it is about, "" for others.
    """

    entry: Document
    about: str
    outcome: str
    approval: str
    facts: Sequence[Piece]


class AuditRoom:
    """Reads the audit."""

    def __init__(self, desk: Desk, audit: AuditService) -> None:
        self._desk = desk
        self._audit = audit

    async def list(self, request: AnyRequest) -> Page:
        """List entries, newest first."""
        visitor = self._desk.enter(request, "audit")
        query = request.query_params
        asked = {name: query.get(name, "").strip() for name in (*_FIELDS, "after")}
        try:
            listed = await self._audit.list(
                visitor.caller,
                _wanted(asked),
                after=asked["after"] or None,
                limit=views.PAGE,
                newest=True,
            )
        except BadRequest as exc:
            return self._page(visitor, asked, _NOTHING, problem=exc)
        return self._page(visitor, asked, listed)

    async def verify(self, request: AnyRequest) -> Page:
        """Follow the whole chain, and show what was found."""
        visitor = self._desk.enter(request, "audit")
        await self._desk.signed_form(request, visitor, "verify")
        verdict = await self._audit.verify(visitor.caller)
        return self._desk.page(visitor, "verdict.html", {"room": "audit", **_told(verdict)})

    async def export(self, request: AnyRequest) -> ASGIApp:
        """Send the whole chain as a file."""
        visitor = self._desk.enter(request, "audit")
        return Lines(await self._audit.export(visitor.caller), HEADERS)

    def _page(
        self,
        visitor: Visitor,
        asked: Mapping[str, str],
        listed: Listed,
        *,
        problem: GatewayError | None = None,
    ) -> Page:
        values = {
            "room": "audit",
            "asked": asked,
            "narrowed": any(asked[name] for name in _FIELDS),
            "lines": [_line(entry) for entry in listed.entries],
            "ticket": self._desk.ticket(visitor, "verify"),
            "older": _path({**asked, "after": listed.last_id or ""}) if listed.more else "",
        }
        return self._desk.page(visitor, "audit.html", values, problem=problem)


def _wanted(asked: Mapping[str, str]) -> Wanted:
    return Wanted(
        event=asked["event"] or None,
        actor=asked["actor"] or None,
        approval=asked["approval"] or None,
        since=_moment(asked, "since"),
        until=_moment(asked, "until"),
    )


def _moment(asked: Mapping[str, str], name: str) -> int | None:
    """Read a time; the form says that it means UTC, as a browser's field has no offset."""
    text = asked[name]
    if not text:
        return None
    local = len(text) in (16, 19) and text[10] in "T "
    return moment_of(f"{text}Z" if local else text, name)


def _path(asked: Mapping[str, str]) -> str:
    given = {name: value for name, value in asked.items() if value}
    return f"{_AUDIT}?{urlencode(given)}" if given else _AUDIT


def _line(entry: Document) -> Line:
    tool, server = entry.get("tool"), entry.get("server_label")
    subject = entry.get("approval_id") or entry.get("subject") or entry.get("response_id") or ""
    facts = {name: value for name, value in entry.items() if name not in _ASIDE}
    outcome = str(entry.get("outcome") or "")
    return Line(
        entry=entry,
        about=f"{tool} on {server}" if tool and server else str(subject),
        outcome=_OUTCOMES.get(outcome, outcome),
        approval=str(entry.get("approval_id") or ""),
        facts=layout(json.dumps(facts)),
    )


def _told(verdict: Verdict) -> dict[str, object]:
    return {"verdict": verdict, "export": f"{_AUDIT}/export"}


def audit_room(desk: Desk, audit: AuditService) -> list[HTTPRouteHandler]:
    """The doors to the audit."""
    room = AuditRoom(desk, audit)

    @get("/audit")
    async def list_audit(request: AnyRequest) -> Page:
        """Search entries."""
        return await room.list(request)

    @post("/audit/verify", status_code=200)
    async def verify_audit(request: AnyRequest) -> Page:
        """Verify the chain."""
        return await room.verify(request)

    @get("/audit/export")
    async def export_audit(request: AnyRequest) -> ASGIApp:
        """Download the chain."""
        return await room.export(request)

    return [list_audit, verify_audit, export_audit]
