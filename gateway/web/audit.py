"""The audit's doors: read it, verify it, take it away (APPR-11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from litestar import Router, get
from litestar.datastructures import MultiDict
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.domain.audit import Verdict, canonical
from gateway.domain.errors import BadRequest
from gateway.domain.identity import Role
from gateway.domain.lists import listing, page_limit
from gateway.services.audit import AuditService, Wanted
from gateway.web.answers import json_answer
from gateway.web.doors import AnyRequest, Doors

_FILTERS = frozenset(
    {"after", "limit", "order", "event", "actor", "approval", "since", "until", "api-version"}
)


def audit_router(doors: Doors, audit: AuditService) -> Router:
    """The doors to the audit: for auditors and admins, each of their own tenant."""

    @get("/v1/audit")
    async def list_audit(request: AnyRequest) -> ASGIApp:
        """List entries, newest first; filters narrow, and an unknown one is refused."""
        caller = doors.caller(request, Role.AUDITOR)
        query = request.query_params
        unknown = sorted(set(query) - _FILTERS)
        if unknown:
            raise BadRequest(
                f"There is no filter '{unknown[0]}'.", code="invalid_value", param=unknown[0]
            )
        listed = await audit.list(
            caller,
            Wanted(
                event=query.get("event"),
                actor=query.get("actor"),
                approval=query.get("approval"),
                since=_moment(query, "since"),
                until=_moment(query, "until"),
            ),
            after=query.get("after"),
            limit=page_limit(query.get("limit", "20"), most=1000),
            newest=_newest(query.get("order", "desc")),
        )
        # A page may hold less than was looked at: reading goes on behind the last one looked at.
        body = {**listing(listed.entries, listed.more), "last_id": listed.last_id}
        return json_answer(caller, body)

    @get("/v1/audit/verify")
    async def verify_audit(request: AnyRequest) -> ASGIApp:
        """Follow the whole chain, and tell whether it holds."""
        caller = doors.caller(request, Role.AUDITOR)
        return json_answer(caller, _show(await audit.verify(caller)))

    @get("/v1/audit/export")
    async def export_audit(request: AnyRequest) -> ASGIApp:
        """Stream the whole chain as JSON lines; its last line is a signed checkpoint."""
        caller = doors.caller(request, Role.AUDITOR)
        return Lines(await audit.export(caller), {"gateway-request-id": caller.request_id})

    return Router(path="/", route_handlers=[list_audit, verify_audit, export_audit])


class Lines:
    """JSON lines, page by page, until the client leaves.

    A page that cannot be read breaks the connection: an export without its last line is known as
    such. The first page is read before the status is sent.
    """

    def __init__(
        self, pages: AsyncIterator[Sequence[Mapping[str, Any]]], extra: Mapping[str, str]
    ) -> None:
        self._pages = pages
        self._extra = extra

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        leaving = asyncio.ensure_future(_left(receive))
        started = False
        try:
            async for page in self._pages:
                if leaving.done():
                    return
                if not started:
                    await self._start(send)
                    started = True
                body = b"".join(canonical(one) + b"\n" for one in page)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()

    async def _start(self, send: Send) -> None:
        headers = {
            "content-type": "application/x-ndjson",
            "content-disposition": 'attachment; filename="audit.jsonl"',
            "cache-control": "no-store",
            **self._extra,
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _moment(query: MultiDict[str], name: str) -> int | None:
    text = query.get(name)
    return None if text is None else moment_of(text, name)


def moment_of(text: str, name: str) -> int:
    """Read a time: seconds since the epoch, or RFC 3339 with its offset; milliseconds.

    Raises:
        BadRequest: It is neither; names the parameter.
    """
    try:
        moment = datetime.fromisoformat(text) if "-" in text else None
        seconds = float(text) if moment is None else moment.timestamp()
    except (ValueError, OverflowError):
        moment, seconds = None, -1.0
    # Without an offset it would be in the server's own zone, which is a guess.
    if not 0 <= seconds < 1e11 or (moment is not None and moment.tzinfo is None):
        raise BadRequest(
            f"'{name}' must be seconds since the epoch, or a time like 2026-11-20T12:00:00Z.",
            code="invalid_value",
            param=name,
        )
    return round(seconds * 1000)


def _newest(order: str) -> bool:
    if order not in ("asc", "desc"):
        raise BadRequest("'order' must be asc or desc.", code="invalid_value", param="order")
    return order == "desc"


def _show(verdict: Verdict) -> dict[str, object]:
    shown: dict[str, object] = {
        "object": "audit.verification",
        "ok": verdict.ok,
        "entries": verdict.entries,
        "first": verdict.first,
        "last": verdict.head.sequence if verdict.entries else None,
        "head_hash": verdict.head.hash,
        "checkpoint": asdict(verdict.checkpoint) if verdict.checkpoint else None,
    }
    if verdict.problem is not None:
        shown["problem"] = {"sequence": verdict.broken_at, "message": verdict.problem}
    return shown
