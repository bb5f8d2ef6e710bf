"""Which versions of the configuration the live replicas have, in one sorted set (APPR-4)."""

from __future__ import annotations

import secrets

from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.ports import Fleet

ALIVE = 10.0
"""Seconds that a replica counts as alive after it was last heard of."""


class RedisFleet(Fleet):
    """The replicas of one Redis; each is forgotten soon after it died."""

    def __init__(self, client: Client) -> None:
        self._script = Script(client, "fleet.lua")
        self._replica = secrets.token_hex(8)
        self._member = ""

    @override
    @store_errors
    async def announce(self, version: str) -> None:
        self._member = f"{version} {self._replica}"
        await self._script(keys.FLEET, self._member, round(ALIVE * 1000))

    @override
    @store_errors
    async def has(self, version: str) -> bool:
        members: list[bytes] = await self._script(keys.FLEET)
        return any(member.split()[0] == version.encode() for member in members)

    @override
    @store_errors
    async def leave(self) -> None:
        await self._script(keys.FLEET, self._member, 0)
