"""Event logs of turns in Redis streams (STREAM-3, APPR-4).

One entry per block of frames, sealed and bound to its place. The entry's id is its last
sequence number plus one, because Redis allows no entry `0-0`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.hints import turn_hint
from gateway.domain.ports import Cipher, EventLog, LogPage

_Entries = list[tuple[bytes, dict[bytes, bytes]]]


class RedisEventLog(EventLog):
    """Event logs in Redis, sealed by the cipher."""

    def __init__(self, client: Client, cipher: Cipher) -> None:
        self._client = client
        self._cipher = cipher
        self._append = Script(client, "event_log.lua")

    @override
    @store_errors
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

        The numbers rise. A block whose number is not above the last one kept is a repeat and is
        dropped, and so is everything after the end.
        """
        sealed: list[bytes | int] = []
        for number, block in blocks:
            sealed += (number, self._seal(tenant, turn_id, number, block))
        await self._append(
            keys.log(tenant, turn_id),
            ttl * 1000,
            turn_hint(tenant, turn_id),
            int(end),
            keys.gone(tenant, turn_id),
            *sealed,
        )

    @override
    @store_errors
    async def read(
        self, tenant: str, turn_id: str, *, cursor: str, limit: int = 256
    ) -> LogPage | None:
        key = keys.log(tenant, turn_id)
        start = f"({cursor}" if cursor else "-"
        found = await self._client.xrange(key, min=start, max="+", count=limit)
        entries = cast("_Entries", found)
        if not entries:
            return await self._nothing_new(key, cursor)
        blocks = []
        for entry, fields in entries:
            if b"d" in fields:
                number = _number(entry)
                blocks.append((number, self._open(tenant, turn_id, number, fields[b"d"])))
        last, fields = entries[-1]
        return LogPage(tuple(blocks), last.decode(), b"e" in fields)

    async def _nothing_new(self, key: bytes, cursor: str) -> LogPage | None:
        last = cast("_Entries", await self._client.xrevrange(key, count=1))
        if not last:
            return None
        entry, fields = last[0]
        # Something may have come between the two looks: then the next look will find it.
        ended = b"e" in fields and _place(entry.decode()) <= _place(cursor)
        return LogPage((), cursor, ended)

    def _seal(self, tenant: str, turn_id: str, number: int, block: bytes) -> bytes:
        bound = _bound(turn_id, number)
        return self._cipher.encrypt(block, tenant=tenant, kind="event", id=bound)

    def _open(self, tenant: str, turn_id: str, number: int, sealed: bytes) -> bytes:
        bound = _bound(turn_id, number)
        return self._cipher.decrypt(sealed, tenant=tenant, kind="event", id=bound)


def _bound(turn_id: str, number: int) -> str:
    # The place belongs to what is sealed: blocks cannot change places unnoticed.
    return f"{number}:{turn_id}"


def _number(entry: bytes) -> int:
    return int(entry.partition(b"-")[0]) - 1


def _place(entry: str) -> tuple[int, int]:
    major, _, minor = entry.partition("-")
    return int(major or 0), int(minor or 0)
