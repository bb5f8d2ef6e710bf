"""Turns: the newest, and one as a timeline of legs, calls and approvals (APPR-10)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.console import views
from gateway.console.desk import PATH, Desk, Page
from gateway.console.pages import redirect
from gateway.domain.ports import TurnHead
from gateway.domain.trace import LegSummary
from gateway.services.overview import Overview, TurnSheet
from gateway.web.doors import AnyRequest

_TURNS = f"{PATH}/turns"
_LEFT_OUT: dict[str, str] = {
    "reasoning": "its reasoning",
    "ids": "the ids of its items",
    "compaction": "what was compacted",
    "include": "asking for encrypted reasoning",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A span of a turn's time, in hundredths of the whole.

    Attributes:
        kind: "leg", "hold" for the time that a person took, or "compaction".
        start, width: For the drawing; at least one hundredth wide.
    """

    kind: str
    title: str
    note: str
    seconds: str
    start: int
    width: int


def turns(desk: Desk, overview: Overview) -> list[HTTPRouteHandler]:
    """The doors to turns."""

    @get("/turns")
    async def recent(request: AnyRequest) -> Page:
        """List the newest turns, or go to the one that is asked for."""
        visitor = desk.enter(request, "turns")
        wanted = request.query_params.get("id", "").strip()
        if wanted:
            return redirect(f"{_TURNS}/{quote(wanted, safe='')}")
        before = request.query_params.get("before", "")
        found, older = await overview.recent(visitor.caller, before=before)
        now = time.time()
        values = {
            "room": "turns",
            "lines": [(head, views.ago(now - head.began), took(head)) for head in found],
            "older": f"{_TURNS}?{urlencode({'before': older})}" if older else "",
            "first": not before,
        }
        return desk.page(visitor, "turns.html", values)

    @get("/turns/{turn_id:str}")
    async def show(request: AnyRequest, turn_id: FromPath[str]) -> Page:
        """Show one turn."""
        visitor = desk.enter(request, "turns")
        sheet = await overview.show(visitor.caller, turn_id)
        values = {
            "room": "turns",
            "sheet": sheet,
            "head": sheet.head,
            "bars": bars(sheet),
            "took": took(sheet.head),
            "tokens": tokens(sheet.head.trace),
            "left_out": _LEFT_OUT,
            "kept": views.span(sheet.kept_until - time.time()) if sheet.kept_until else "",
        }
        return desk.page(visitor, "turn.html", values)

    return [recent, show]


def took(head: TurnHead) -> str:
    """Say how long a turn took, "" while it runs."""
    if not head.trace or head.status in ("in_progress", "queued"):
        return ""
    return _seconds(head.trace[-1].ended - head.began)


def tokens(trace: Sequence[LegSummary]) -> LegSummary:
    """Add up the legs."""
    return LegSummary(
        id="",
        input_tokens=sum(leg.input_tokens for leg in trace),
        cached_tokens=sum(leg.cached_tokens for leg in trace),
        output_tokens=sum(leg.output_tokens for leg in trace),
        reasoning_tokens=sum(leg.reasoning_tokens for leg in trace),
    )


def bars(sheet: TurnSheet) -> list[Bar]:
    """Lay the legs, and what a person took between them, along the turn's time."""
    trace = sheet.head.trace
    if not trace:
        return []
    begin, end = min(sheet.head.began, trace[0].began), trace[-1].ended
    compacted = sheet.head.compacted
    whole = max(end - begin, 0.001)
    laid: list[Bar] = []

    def lay(kind: str, title: str, note: str, since: float, until: float) -> None:
        start = min(99, max(0, round(100 * (since - begin) / whole)))
        width = min(100 - start, max(1, round(100 * (until - since) / whole)))
        length = _seconds(until - since)
        laid.append(
            Bar(kind=kind, title=title, note=note, seconds=length, start=start, width=width)
        )

    if compacted is not None:
        note = f"of {compacted.input_tokens:,} tokens before this turn"
        lay("compaction", "Compaction", note, compacted.began, compacted.ended)
    for place, leg in enumerate(trace):
        note = f"{leg.input_tokens:,} tokens in, {leg.output_tokens:,} out"
        lay("leg", f"Leg {place + 1}", note, leg.began, leg.ended)
        asked = [one for one in sheet.approvals if one.response_id == leg.id]
        if asked and place + 1 < len(trace):
            names = ", ".join(f"{one.tool}: {one.status.value}" for one in asked)
            lay("hold", "Approval", names, leg.ended, trace[place + 1].began)
    return laid


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))} ms"
    return f"{seconds:.1f} s" if seconds < 120 else views.span(seconds)
