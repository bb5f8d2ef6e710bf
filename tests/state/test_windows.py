"""Windows of compacted chains: read instead of turns, gone with any turn they were made from."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client
from gateway.adapters.redis.turns import RedisTurnStore
from gateway.domain.errors import Undecipherable
from gateway.domain.ports import Window

from .conftest import Stores
from .make import OTHER, TENANT, calls, everything, turn

CHAIN = "resp_0"
MODEL = "gpt-5"


async def chain_of(store: RedisTurnStore, count: int, *, ttl: int = 600) -> None:
    for n in range(count):
        await store.record(turn(f"resp_{n}", f"resp_{n - 1}" if n else None), ttl=ttl)


async def keep(store: RedisTurnStore, turn_id: str, text: str = "short", **changes: Any) -> Any:
    values: dict[str, Any] = {"model": MODEL, **changes}
    drop = values.pop("drop", "")
    window = Window(turn_id=turn_id, items=text.encode(), **values)
    return await store.keep_window(TENANT, window, ttl=600, chain_id=CHAIN, drop=drop)


async def read(
    store: RedisTurnStore, turn_id: str, *, model: str = MODEL, tenant: str = TENANT, ttl: int = 600
) -> tuple[str, list[str]] | None:
    """What a turn goes on from: the window's text, and the turns after it."""
    chain = await store.chain(tenant, turn_id, ttl=ttl, chain_id=CHAIN, model=model)
    if chain is None:
        return None
    text = chain.window.items.decode() if chain.window is not None else ""
    return text, [one.head.id for one in chain.turns]


async def windows(client: Client) -> set[bytes]:
    prefix = keys.prefix(TENANT)
    return {key.removeprefix(prefix) async for key in client.scan_iter(prefix + b"window*")}


@pytest.mark.covers("STATE-6")
async def test_a_window_takes_the_place_of_the_turns_up_to_its_own(
    stores: Stores, client: Client
) -> None:
    await chain_of(stores.turns, 5)
    await keep(stores.turns, "resp_2")
    assert await read(stores.turns, "resp_2") == ("short", [])
    before = await calls(client, "evalsha")
    assert await read(stores.turns, "resp_4") == ("short", ["resp_3", "resp_4"])
    assert await calls(client, "evalsha") == before + 1
    assert await read(stores.turns, "resp_1") == ("", ["resp_0", "resp_1"])


@pytest.mark.covers("STATE-6")
async def test_the_newest_window_is_read_and_the_last_but_one_is_kept_for_forks(
    stores: Stores, client: Client
) -> None:
    await chain_of(stores.turns, 6)
    await keep(stores.turns, "resp_1", "one")
    await keep(stores.turns, "resp_3", "two", before="resp_1")
    await keep(stores.turns, "resp_5", "three", before="resp_3", drop="resp_1")
    assert await read(stores.turns, "resp_5") == ("three", [])
    assert await read(stores.turns, "resp_4") == ("two", ["resp_4"])
    assert await read(stores.turns, "resp_2") == ("", ["resp_0", "resp_1", "resp_2"])
    assert len(await windows(client)) == 2 + 1


@pytest.mark.covers("STATE-6", "CHAIN-4")
async def test_of_two_windows_of_one_turn_the_first_stays(stores: Stores) -> None:
    await chain_of(stores.turns, 2)
    both = await asyncio.gather(*(keep(stores.turns, "resp_1", text) for text in ("a", "b")))
    assert both[0] == both[1]
    assert await read(stores.turns, "resp_1") == (both[0].items.decode(), [])


@pytest.mark.covers("STATE-6")
async def test_another_model_does_not_get_the_window(stores: Stores) -> None:
    await chain_of(stores.turns, 2)
    await keep(stores.turns, "resp_1")
    assert await read(stores.turns, "resp_1", model="other") == ("", ["resp_0", "resp_1"])
    await keep(stores.turns, "resp_1", "theirs", model="other")
    assert await read(stores.turns, "resp_1", model="other") == ("theirs", [])
    assert await read(stores.turns, "resp_1") == ("short", [])


@pytest.mark.covers("STATE-4", "STATE-6")
@pytest.mark.parametrize("deleted", ["resp_0", "resp_1", "resp_2"])
async def test_a_window_goes_with_each_turn_that_it_was_made_from(
    stores: Stores, client: Client, deleted: str
) -> None:
    await chain_of(stores.turns, 5)
    await keep(stores.turns, "resp_2", "one")
    await keep(stores.turns, "resp_4", "two", before="resp_2")
    assert await stores.turns.delete(TENANT, deleted, chain_id=CHAIN)
    assert await windows(client) == set()
    assert await read(stores.turns, "resp_4") is None


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_a_window_stays_when_a_turn_is_deleted_that_it_was_not_made_from(
    stores: Stores,
) -> None:
    await chain_of(stores.turns, 4)
    await stores.turns.record(turn("resp_fork", "resp_2"), ttl=600)
    await keep(stores.turns, "resp_2")
    assert await stores.turns.delete(TENANT, "resp_3", chain_id=CHAIN)
    assert await read(stores.turns, "resp_fork") == ("short", ["resp_fork"])


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_what_is_made_while_a_turn_is_deleted_is_not_kept(
    stores: Stores, client: Client
) -> None:
    await chain_of(stores.turns, 3)
    await stores.turns.delete(TENANT, "resp_1", chain_id=CHAIN)
    assert await keep(stores.turns, "resp_2") is None
    assert await windows(client) == set()


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_a_window_lives_as_long_as_its_turns(stores: Stores, client: Client) -> None:
    await chain_of(stores.turns, 3, ttl=60)
    await keep(stores.turns, "resp_1")
    (name,) = await windows(client) - {b"windows:" + CHAIN.encode()}
    key = keys.prefix(TENANT) + name
    for n in range(2):
        assert await client.pttl(keys.turn(TENANT, f"resp_{n}")) > 590_000
    await read(stores.turns, "resp_2", ttl=6000)
    for one in (key, *(keys.turn(TENANT, f"resp_{n}") for n in range(3))):
        assert await client.pttl(one) > 5_990_000
    assert await client.pttl(keys.prefix(TENANT) + b"windows:resp_0") > 5_990_000


async def test_half_a_chain_is_no_chain_although_a_window_holds_it(
    stores: Stores, client: Client
) -> None:
    await chain_of(stores.turns, 3)
    await keep(stores.turns, "resp_1")
    await client.delete(keys.turn(TENANT, "resp_0"))
    assert await read(stores.turns, "resp_2") is None


@pytest.mark.covers("STATE-4", "STATE-6", "AUTH-2")
async def test_a_window_is_sealed_and_no_other_tenants(stores: Stores, client: Client) -> None:
    await chain_of(stores.turns, 2)
    await keep(stores.turns, "resp_1", "a canary in a window")
    assert b"canary" not in await everything(client)
    await stores.turns.record(turn("resp_1", tenant=OTHER), ttl=600)
    assert await read(stores.turns, "resp_1", tenant=OTHER) == ("", ["resp_1"])


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_a_window_that_was_exchanged_is_noticed(stores: Stores, client: Client) -> None:
    await chain_of(stores.turns, 3)
    for place in (1, 2):
        await keep(stores.turns, f"resp_{place}", f"of {place}")
    await keep(stores.turns, "resp_2", "theirs", model="other")
    prefix = keys.prefix(TENANT)
    names = sorted(await windows(client) - {b"windows:resp_0"})
    sealed = {name: await client.get(prefix + name) for name in names}
    (one,) = (name for name in names if name.startswith(b"window:resp_1"))
    for other in (name for name in names if name != one):
        await client.set(prefix + one, sealed[other] or b"")
        with pytest.raises(Undecipherable):
            await read(stores.turns, "resp_1")
    two, theirs = (name for name in names if name != one)
    await client.set(prefix + two, sealed[theirs] or b"")
    await client.set(prefix + theirs, sealed[two] or b"")
    for model in (MODEL, "other"):
        with pytest.raises(Undecipherable):
            await read(stores.turns, "resp_2", model=model)
