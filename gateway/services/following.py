"""Follow a turn that goes on elsewhere: its event log, or its end (APPR-3, APPR-4).

Holding a stream is only a view on a durable record; whoever reads here can leave and come back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from gateway.domain import events
from gateway.domain.documents import raw
from gateway.domain.errors import ResponseDeleted, StoreUnavailable
from gateway.domain.hints import turn_hint
from gateway.domain.lifecycle import Lifecycle
from gateway.domain.ports import EventLog, Hint, TurnStore, Wake
from gateway.services.failures import ending
from gateway.services.waiting import first

LOOK_AGAIN = 5.0
"""Seconds after which a waiter looks without a hint, since hints may be lost."""

Look = Callable[[], Awaitable[bytes]]

RUNNING = frozenset({"in_progress", "queued"})


@dataclass(frozen=True, slots=True)
class Told:
    """What a turn's event log holds.

    Attributes:
        last: The last `sequence_number`, -1 without one.
        ended: Whether the log has ended.
        final: Whether its last event is the turn's: a crash can come before the end's mark.
        blocks: The blocks after the number that was asked for.
    """

    last: int
    ended: bool
    blocks: tuple[bytes, ...]
    final: bool = False


class Following:
    """Views on turns that are held or run elsewhere.

    Args:
        lifecycle: When this process drains, every view ends in good order: the turn goes on, and
            another replica shows it (STREAM-4).
    """

    def __init__(
        self, *, log: EventLog, turns: TurnStore, wake: Wake, lifecycle: Lifecycle
    ) -> None:
        self._log = log
        self._turns = turns
        self._wake = wake
        self._drained = lifecycle.drained

    async def events(
        self, tenant: str, turn_id: str, *, after: int, notices: Look | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Yield the turn's events after a `sequence_number`, until its last one.

        It also ends when this process drains; what is missing then is read at another replica.

        Args:
            after: -1 for all of them.
            notices: Asked for further events whenever something may have changed.
        """
        cursor, seen = "", after
        with self._wake.listen(turn_hint(tenant, turn_id)) as hint:
            while True:
                if self._drained.is_set():
                    yield draining(turn_id, seen, told=notices is not None)
                    return
                try:
                    page = await self._log.read(tenant, turn_id, cursor=cursor)
                except StoreUnavailable:
                    await self._wait(hint, LOOK_AGAIN)  # the hold outlives the store's restart
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
                    await self._wait(hint, LOOK_AGAIN)

    async def told(self, tenant: str, turn_id: str, *, after: int | None = None) -> Told | None:
        """Read what followers of the turn have been told, `None` without an event log.

        Args:
            after: Return the blocks that end after this `sequence_number`; `None` returns none.
        """
        cursor, last, newest = "", -1, b""
        blocks: list[bytes] = []
        while (page := await self._log.read(tenant, turn_id, cursor=cursor)) is not None:
            for number, block in page.blocks:
                last, newest = max(last, number), block
                if after is not None and number > after:
                    blocks.append(block)
            if page.end or not page.blocks:
                return Told(last, page.end, tuple(blocks), _is_final(newest))
            cursor = page.cursor
        return None

    async def exists(self, tenant: str, turn_id: str) -> bool:
        """Tell whether the turn has an event log."""
        return await self._log.read(tenant, turn_id, cursor="", limit=1) is not None

    async def until_settled(self, tenant: str, turn_id: str, *, seconds: float) -> None:
        """Wait until the turn has ended, or for `seconds`."""
        deadline = time.monotonic() + seconds
        with self._wake.listen(turn_hint(tenant, turn_id)) as hint:
            while (left := deadline - time.monotonic()) > 0 and not self._drained.is_set():
                head = await self._turns.head(tenant, turn_id)
                if head is None or head.status not in RUNNING:
                    return
                await self._wait(hint, min(left, LOOK_AGAIN))

    async def _wait(self, hint: Hint, seconds: float) -> None:
        """Wait for a hint, but not beyond the moment when this process drains."""
        await first(hint.wait(seconds), self._drained.wait())


def draining(turn_id: str, seen: int, *, told: bool) -> bytes:
    """Say where a stream goes on that ends because its replica stops (STREAM-4).

    A comment, which strict clients skip; an event for those who asked for the gateway's own.
    """
    comment = f": draining; go on with starting_after={seen}\n\n".encode()
    if not told:
        return comment
    kind = "gateway.draining"
    where = {"type": kind, "response_id": turn_id, "starting_after": seen}
    return comment + events.write(kind, {name: raw(value) for name, value in where.items()})


def _deleted(turn_id: str, sequence: int) -> bytes:
    """End a stream whose turn was deleted, or kept no longer, under its reader."""
    return ending(
        sequence=sequence,
        error=ResponseDeleted("The response was deleted."),
        response={"id": raw(turn_id), "object": raw("response"), "output": raw([])},
    )


def _is_final(block: bytes) -> bool:
    """Tell whether a block holds the last event of a turn."""
    parts = events.split(block)
    return any(isinstance(part, events.Frame) and part.type in events.TERMINAL for part in parts)


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
