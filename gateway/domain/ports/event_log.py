"""The events of a held turn, in order (STREAM-3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class EventLog(Protocol):
    """The event stream of a turn that can be joined later (STREAM-3, APPR-4)."""

    async def append(
        self,
        tenant: str,
        turn_id: str,
        blocks: Sequence[tuple[int, bytes]],
        *,
        ttl: int,
        end: bool = False,
    ) -> None:
        """Append blocks of whole frames, each with the `sequence_number` of its last event.

        `end` says that no more will come. Wakes whoever waits for the turn.
        """
        ...

    async def read(
        self, tenant: str, turn_id: str, *, cursor: str, limit: int = 256
    ) -> LogPage | None:
        """Read blocks after `cursor` ("" = from the start); `None` when there is no log."""
        ...


@dataclass(frozen=True, slots=True)
class LogPage:
    """A part of an event log: blocks, where to go on, and whether the log has ended there."""

    blocks: Sequence[tuple[int, bytes]]
    cursor: str
    end: bool
