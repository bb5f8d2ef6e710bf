"""Follow a turn that goes on elsewhere: its event log, or its end (APPR-3, APPR-4).

Holding a stream is only a view on a durable record; whoever reads here can leave and come back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from gateway.domain import events
from gateway.domain.documents import raw
from gateway.domain.errors import StoreUnavailable
from gateway.domain.ports import EventLog, TurnStore, Wake

LOOK_AGAIN = 5.0
"""Seconds after which a waiter looks without a hint, since hints may be lost."""

Look = Callable[[], Awaitable[bytes]]

RUNNING = frozenset({"in_progress", "queued"})


def wake_key(tenant: str, turn_id: str) -> str:
    """Name the hints of one turn."""
    return f"turn:{tenant}:{turn_id}"


class Following:
    """Views on turns that are held or run elsewhere."""

    def __init__(self, *, log: EventLog, turns: TurnStore, wake: Wake) -> None:
        self._log = log
        self._turns = turns
        self._wake = wake

    async def events(
        self, tenant: str, turn_id: str, *, after: int, notices: Look | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the turn's events after a `sequence_number`, until its last one.

        Args:
            after: -1 for all of them.
            notices: Asked for further events whenever something may have changed.
        """
        cursor, seen = "", after
        with self._wake.listen(wake_key(tenant, turn_id)) as hint:
            while True:
                try:
                    page = await self._log.read(tenant, turn_id, cursor=cursor)
                except StoreUnavailable:
                    await hint.wait(LOOK_AGAIN)  # the hold outlives the store's restart
                    continue
                if page is None:
                    yield _deleted(turn_id, seen + 1)
                    return
                if notices is not None and (told := await notices()):
                    yield told
                for last, block in page.blocks:
                    seen = max(seen, last)
                    if last > after:
                        yield _rest_of(block, after)
                cursor = page.cursor
                if page.end:
                    return
                if not page.blocks:
                    await hint.wait(LOOK_AGAIN)

    async def last_number(self, tenant: str, turn_id: str) -> int:
        """Find the last `sequence_number` of the turn's event log, -1 without one."""
        cursor, last = "", -1
        while (page := await self._log.read(tenant, turn_id, cursor=cursor)) is not None:
            last = max([last, *(number for number, _ in page.blocks)])
            if page.end or not page.blocks:
                break
            cursor = page.cursor
        return last

    async def exists(self, tenant: str, turn_id: str) -> bool:
        """Tell whether the turn has an event log."""
        return await self._log.read(tenant, turn_id, cursor="", limit=1) is not None

    async def until_settled(self, tenant: str, turn_id: str, *, seconds: float) -> None:
        """Wait until the turn has ended, or for `seconds`."""
        deadline = time.monotonic() + seconds
        with self._wake.listen(wake_key(tenant, turn_id)) as hint:
            while (left := deadline - time.monotonic()) > 0:
                head = await self._turns.head(tenant, turn_id)
                if head is None or head.status not in RUNNING:
                    return
                await hint.wait(min(left, LOOK_AGAIN))


def _deleted(turn_id: str, sequence: int) -> bytes:
    """End a stream whose turn was deleted, or kept no longer, under its reader (API-5)."""
    return events.error_frames(
        sequence=sequence,
        kind="invalid_request_error",
        code="response_deleted",
        message="The response was deleted.",
        response={"id": raw(turn_id), "object": raw("response"), "output": raw([])},
    )


def _rest_of(block: bytes, after: int) -> bytes:
    """Cut off the frames of a block that were seen."""
    if after < 0:
        return block
    kept: list[bytes] = []
    for frame in events.frames(block):
        number = events.last_sequence_number(frame)
        if number is None or number > after:
            kept.append(frame)
    return b"".join(kept)
