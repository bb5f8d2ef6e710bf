"""Live updates: a stream that says that something changed; the page asks for what (APPR-10)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp

from gateway.console.desk import Desk
from gateway.console.pages import HEADERS
from gateway.domain.hints import inbox_hint
from gateway.domain.ports import Wake
from gateway.services.records import EventStream
from gateway.web.answers import Pace, SSEAnswer
from gateway.web.doors import AnyRequest

_CHANGED = b"event: changed\ndata: {}\n\n"
_LOOK_EVERY = 20.0
"""Seconds after which the page is told to look without a hint, which may be lost."""

_BREATH = 0.25
"""Seconds between two updates: a burst of changes is one look."""


def live(desk: Desk, wake: Wake, pace: Pace) -> list[HTTPRouteHandler]:
    """The door to live updates."""

    @get("/events")
    async def events(request: AnyRequest) -> ASGIApp:
        """Tell of changes to the tenant's approvals, never what they are."""
        visitor = desk.require(request)
        tenant = visitor.caller.tenant.id

        async def changes() -> AsyncGenerator[bytes, None]:
            yield b": open\n\n"
            with wake.listen(inbox_hint(tenant)) as hint:
                while desk.visitor(request) is not None:  # the session may end before the stream
                    await hint.wait(_LOOK_EVERY)
                    yield _CHANGED
                    await asyncio.sleep(_BREATH)

        return SSEAnswer(EventStream({}, changes()), pace, HEADERS)

    return [events]
