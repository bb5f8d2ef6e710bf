"""A background turn: its event log, and those who wait for it."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import anyio


@dataclass(kw_only=True, eq=False)
class Job:
    """The growing event log of one background response."""

    events: list[dict[str, Any]] = field(default_factory=list)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    started_at: float = field(default_factory=time.monotonic)
    ended: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

    def append(self, event: dict[str, Any]) -> None:
        """Add an event and wake those who follow."""
        self.events.append(event)
        self._wake()

    def end(self) -> None:
        """Say that no event will follow."""
        self.ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def follow(self, after: int = -1) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events after a sequence number: those kept, then those to come."""
        position = after + 1
        while True:
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if self.ended:
                return
            await self._changed.wait()
