"""Tool pins in a real Valkey (MCP-5)."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.client import Client
from gateway.adapters.redis.pins import RedisPinStore
from gateway.domain.errors import Undecipherable
from gateway.domain.pins import define
from gateway.domain.ports import PinnedServer

pytestmark = [pytest.mark.anyio, pytest.mark.covers("MCP-5")]

SERVER = PinnedServer("github", "sha256:1")
MOVED = PinnedServer("github", "sha256:2")
TOOL = define(b'{"name": "search", "description": "Search the issues."}')


@pytest.fixture
def pins(client: Client, ring: KeyRing) -> RedisPinStore:
    return RedisPinStore(client, ring)


async def pinned(store: RedisPinStore, tenant: str = "acme") -> None:
    (empty,) = await store.read(tenant, [SERVER])
    after, _ = empty.after([TOOL], "first_use")
    assert await store.write(tenant, SERVER, after)


async def test_pins_are_read_together_by_another_process_too(
    pins: RedisPinStore, client: Client, ring: KeyRing
) -> None:
    await pinned(pins)
    for store in (pins, pins, RedisPinStore(client, ring)):
        found, moved = await store.read("acme", [SERVER, MOVED])
        assert found.pins["search"].trusted == TOOL
        assert found.pins["search"].seen_at > 1e9
        assert (moved.pins, moved.version) == ({}, 0)
        (foreign,) = await store.read("rival", [SERVER])
        assert foreign.pins == {}


async def test_of_writers_at_once_one_wins_and_the_others_are_told(
    pins: RedisPinStore, client: Client, ring: KeyRing
) -> None:
    stores = [RedisPinStore(client, ring) for _ in range(20)]
    won: list[str] = []

    async def write(index: int, store: RedisPinStore) -> None:
        (empty,) = await store.read("acme", [SERVER])
        empty = replace(empty, version=0, pins={})
        name = f"tool{index}"
        after, _ = empty.after([define(b'{"name": "%s"}' % name.encode())], "first_use")
        if await store.write("acme", SERVER, after):
            won.append(name)

    async with anyio.create_task_group() as group:
        for index, store in enumerate(stores):
            group.start_soon(write, index, store)
    (found,) = await pins.read("acme", [SERVER])
    assert list(found.pins) == won
    assert found.version == 1


async def test_a_change_by_one_process_is_seen_by_the_others_at_once(
    pins: RedisPinStore, client: Client, ring: KeyRing
) -> None:
    await pinned(pins)
    await pins.read("acme", [SERVER])
    other = RedisPinStore(client, ring)
    (read,) = await other.read("acme", [SERVER])
    changed, _ = read.after([define(b'{"name": "search"}')], "first_use")
    assert await other.write("acme", SERVER, changed)
    (found,) = await pins.read("acme", [SERVER])
    assert found.status("search", "first_use") == "quarantined"


async def test_an_older_record_put_back_does_not_open(
    pins: RedisPinStore, client: Client, ring: KeyRing
) -> None:
    await pinned(pins)
    (key,) = await client.keys("gw:{acme}:pins:*")
    old = await client.hget(key, "d")
    (read,) = await pins.read("acme", [SERVER])
    changed, _ = read.after([define(b'{"name": "search"}')], "first_use")
    assert await pins.write("acme", SERVER, changed)
    await client.hset(key, "d", old)
    with pytest.raises(Undecipherable):
        await RedisPinStore(client, ring).read("acme", [SERVER])


async def test_nothing_in_a_dump_can_be_read(pins: RedisPinStore, client: Client) -> None:
    await pinned(pins)
    (key,) = await client.keys("*")
    dumped = str([key, await client.hgetall(key)])
    for word in ("search", "issues", "github"):
        assert word not in dumped
