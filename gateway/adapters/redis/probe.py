"""Asks whether the store takes writes (OPS-1)."""

from __future__ import annotations

from gateway.adapters.redis.client import Client, execute, store_errors

_KEY = b"gw:probe"
_LIFE = 60_000


class RedisProbe:
    """Writes one small value that nobody reads."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @store_errors
    async def probe(self) -> None:
        """Write; raises `StoreUnavailable` or `StorageFull`."""
        await execute(self._client, "SET", _KEY, b"1", "PX", _LIFE)
