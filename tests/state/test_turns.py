"""Turns and chains: written before the terminal event, read in one round trip (CHAIN, STATE)."""

from __future__ import annotations

import dataclasses

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, execute
from gateway.adapters.redis.turns import RedisTurnStore
from gateway.domain.errors import ResponseDeleted, Undecipherable, Unprocessable

from .conftest import Stores
from .make import OTHER, TENANT, calls, turn


async def chain_of(store: RedisTurnStore, count: int, *, size: int = 40) -> list[str]:
    ids = [f"resp_{n}" for n in range(count)]
    for n, turn_id in enumerate(ids):
        parent = ids[n - 1] if n else None
        await store.record(turn(turn_id, parent, items=b"x" * size + turn_id.encode()), ttl=600)
    return ids


async def ids_of(store: RedisTurnStore, turn_id: str) -> list[str] | None:
    chain = await store.chain(TENANT, turn_id, ttl=600)
    return None if chain is None else [one.head.id for one in chain.turns]


async def test_a_turn_comes_back_as_it_was_recorded(stores: Stores) -> None:
    whole = turn(
        "resp_1",
        "resp_0",
        items=b'[{"o":"in"}]',
        response=b'{"id":"resp_1"}',
        item_ids=("msg_1", "rs_1"),
        batch="resp_leg",
        legs=3,
        stored=False,
        status="in_progress",
    )
    await stores.turns.record(whole, ttl=600)
    assert await stores.turns.read(TENANT, "resp_1") == whole
    assert await stores.turns.head(TENANT, "resp_1") == whole.head


async def test_a_turn_without_content_keeps_none(stores: Stores) -> None:
    bare = turn("resp_1", items=b"")
    await stores.turns.record(bare, ttl=600)
    assert await stores.turns.read(TENANT, "resp_1") == bare


async def test_recording_again_replaces_everything(stores: Stores) -> None:
    await stores.turns.record(turn("resp_1", item_ids=("msg_1", "msg_2"), response=b"1"), ttl=600)
    later = turn("resp_1", item_ids=("msg_2", "msg_3"), items=b"new", status="failed")
    await stores.turns.record(later, ttl=600)
    assert await stores.turns.read(TENANT, "resp_1") == later
    found = await stores.turns.turns_of_items(TENANT, ["msg_1", "msg_2", "msg_3"])
    assert found == {"msg_2": "resp_1", "msg_3": "resp_1"}


async def test_what_is_unknown_is_none(stores: Stores) -> None:
    assert await stores.turns.head(TENANT, "resp_1") is None
    assert await stores.turns.read(TENANT, "resp_1") is None
    assert await stores.turns.chain(TENANT, "resp_1", ttl=600) is None
    assert await stores.turns.turns_of_items(TENANT, ["msg_1"]) == {}
    assert await stores.turns.turns_of_items(TENANT, []) == {}
    assert not await stores.turns.delete(TENANT, "resp_1")


@pytest.mark.parametrize("odd", ["", "\ud800", "{x}", "a\nb", "*", "../x", "é"])
async def test_odd_ids_are_unknown_and_no_error(stores: Stores, odd: str) -> None:
    assert await stores.turns.head(TENANT, odd) is None
    assert await stores.turns.chain(TENANT, odd, ttl=600) is None
    assert await stores.turns.turns_of_items(TENANT, [odd]) == {}
    assert not await stores.turns.delete(TENANT, odd)


async def test_a_chain_begins_with_its_first_turn(stores: Stores) -> None:
    ids = await chain_of(stores.turns, 3)
    chain = await stores.turns.chain(TENANT, ids[-1], ttl=600)
    assert chain is not None
    assert [one.head.id for one in chain.turns] == ids
    assert [one.items for one in chain.turns] == [b"x" * 40 + one.encode() for one in ids]


@pytest.mark.covers("CHAIN-4")
async def test_two_turns_on_one_parent_are_two_chains(stores: Stores) -> None:
    await chain_of(stores.turns, 2)
    for fork in ("resp_left", "resp_right"):
        await stores.turns.record(turn(fork, "resp_1"), ttl=600)
    assert await ids_of(stores.turns, "resp_left") == ["resp_0", "resp_1", "resp_left"]
    assert await ids_of(stores.turns, "resp_right") == ["resp_0", "resp_1", "resp_right"]


@pytest.mark.covers("STATE-6")
async def test_a_thousand_turns_are_one_round_trip(stores: Stores, client: Client) -> None:
    ids = await chain_of(stores.turns, 1000, size=5300)
    before = await calls(client, "evalsha")
    chain = await stores.turns.chain(TENANT, ids[-1], ttl=600)
    assert await calls(client, "evalsha") == before + 1
    assert chain is not None
    assert [one.head.id for one in chain.turns] == ids
    assert sum(len(one.items) for one in chain.turns) > 5_000_000


@pytest.mark.covers("STATE-6")
async def test_a_turns_size_does_not_grow_with_its_chain(stores: Stores, client: Client) -> None:
    ids = await chain_of(stores.turns, 300)
    sizes = [
        int(await execute(client, "MEMORY", "USAGE", keys.turn(TENANT, one)))
        for one in (ids[9], ids[299])
    ]
    assert sizes[1] <= sizes[0] + 64


async def test_a_deleted_turn_breaks_the_chain(stores: Stores) -> None:
    ids = await chain_of(stores.turns, 3)
    assert await stores.turns.delete(TENANT, ids[1])
    assert await ids_of(stores.turns, ids[2]) is None
    assert await ids_of(stores.turns, ids[0]) == [ids[0]]


@pytest.mark.covers("STATE-4")
async def test_deletion_takes_index_and_log_along(stores: Stores, client: Client) -> None:
    await stores.turns.record(turn("resp_1", item_ids=("msg_1",), response=b"{}"), ttl=600)
    await stores.log.append(TENANT, "resp_1", [(0, b"event")], ttl=600)
    assert await stores.turns.delete(TENANT, "resp_1")
    # What is left are ids: the mark that it is gone, and the list of the newest turns.
    assert set(await client.keys()) == {keys.gone(TENANT, "resp_1"), keys.turns(TENANT)}
    assert not await stores.turns.delete(TENANT, "resp_1")


async def test_deletion_leaves_an_item_that_a_later_turn_holds(stores: Stores) -> None:
    for turn_id in ("resp_1", "resp_2"):
        await stores.turns.record(turn(turn_id, item_ids=("msg_1",)), ttl=600)
    await stores.turns.delete(TENANT, "resp_1")
    assert await stores.turns.turns_of_items(TENANT, ["msg_1"]) == {"msg_1": "resp_2"}


@pytest.mark.covers("STATE-4", "STATE-6")
async def test_reading_a_chain_keeps_all_of_it_alive(stores: Stores, client: Client) -> None:
    await stores.turns.record(turn("resp_0", item_ids=("msg_0",)), ttl=60)
    await stores.turns.record(turn("resp_1", "resp_0", item_ids=("msg_1",)), ttl=60)
    await stores.turns.chain(TENANT, "resp_1", ttl=600)
    for name in ("resp_0", "resp_1"):
        assert await client.pttl(keys.turn(TENANT, name)) > 590_000
    for name in ("msg_0", "msg_1"):
        assert await client.pttl(keys.item(TENANT, name)) > 590_000


async def test_a_circle_is_no_chain(stores: Stores) -> None:
    await stores.turns.record(turn("resp_a", "resp_b"), ttl=600)
    await stores.turns.record(turn("resp_b", "resp_a"), ttl=600)
    assert await ids_of(stores.turns, "resp_a") is None


async def test_a_chain_without_end_is_refused(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.adapters.redis.turns._LONGEST_CHAIN", 5)
    ids = await chain_of(stores.turns, 6)
    assert await ids_of(stores.turns, ids[4]) == ids[:5]
    with pytest.raises(Unprocessable) as caught:
        await ids_of(stores.turns, ids[5])
    assert caught.value.code == "chain_too_long"


@pytest.mark.covers("AUTH-2", "CHAIN-1")
async def test_another_tenants_ids_are_unknown_everywhere(stores: Stores) -> None:
    await stores.turns.record(turn("resp_1", item_ids=("msg_1",)), ttl=600)
    assert await stores.turns.head(OTHER, "resp_1") is None
    assert await stores.turns.read(OTHER, "resp_1") is None
    assert await stores.turns.chain(OTHER, "resp_1", ttl=600) is None
    assert await stores.turns.turns_of_items(OTHER, ["msg_1"]) == {}
    assert not await stores.turns.delete(OTHER, "resp_1")
    await stores.turns.record(turn("resp_2", "resp_1", tenant=OTHER), ttl=600)
    assert await stores.turns.chain(OTHER, "resp_2", ttl=600) is None
    assert await stores.turns.head(TENANT, "resp_1") is not None


@pytest.mark.covers("AUTH-2", "OPS-2")
@pytest.mark.parametrize("tenants", [("a", "a}"), ("a{b", "a%7Bb"), ("x}:turn:1{x", "x")])
def test_no_two_tenants_share_a_prefix_or_leave_their_slot(tenants: tuple[str, str]) -> None:
    one, other = (keys.prefix(tenant) for tenant in tenants)
    assert one != other
    for name in (one, other):
        assert (name.count(b"{"), name.count(b"}")) == (1, 1)


def test_a_tenant_without_a_name_has_no_keys() -> None:
    with pytest.raises(ValueError, match="tenant"):
        keys.prefix("")


@pytest.mark.covers("STATE-4")
@pytest.mark.parametrize("field", ["h", "c", "r"])
async def test_a_sealed_field_of_another_turn_does_not_open(
    stores: Stores, client: Client, field: str
) -> None:
    for turn_id in ("resp_1", "resp_2"):
        await stores.turns.record(turn(turn_id, response=b"{}"), ttl=600)
    foreign = await client.hget(keys.turn(TENANT, "resp_2"), field)
    assert foreign is not None
    await client.hset(keys.turn(TENANT, "resp_1"), field, foreign)
    with pytest.raises(Undecipherable):
        await stores.turns.read(TENANT, "resp_1")


async def test_a_parent_that_was_exchanged_is_noticed(stores: Stores, client: Client) -> None:
    await chain_of(stores.turns, 3)
    await client.hset(keys.turn(TENANT, "resp_2"), "p", "resp_0")
    with pytest.raises(Undecipherable):
        await ids_of(stores.turns, "resp_2")


@pytest.mark.covers("STATE-4")
async def test_a_chain_goes_on_through_a_rotation_of_keys(client: Client) -> None:
    old, new = ("k1", b"\1" * 32), ("k2", b"\2" * 32)
    await RedisTurnStore(client, KeyRing([old])).record(turn("resp_0"), ttl=600)
    both = RedisTurnStore(client, KeyRing([new, old]))
    await both.record(turn("resp_1", "resp_0"), ttl=600)
    assert await ids_of(both, "resp_1") == ["resp_0", "resp_1"]
    late = RedisTurnStore(client, KeyRing([new]))
    assert await late.head(TENANT, "resp_1") is not None
    with pytest.raises(Undecipherable):
        await late.head(TENANT, "resp_0")


async def test_a_head_survives_the_server_forgetting_its_scripts(
    stores: Stores, client: Client
) -> None:
    await stores.turns.record(turn("resp_0"), ttl=600)
    await client.script_flush()
    await stores.turns.record(dataclasses.replace(turn("resp_0"), response=b"2"), ttl=600)
    read = await stores.turns.read(TENANT, "resp_0")
    assert read is not None
    assert read.response == b"2"


async def test_a_deleted_turn_is_not_written_again(stores: Stores) -> None:
    """Its worker may still be at it; a log, too, would show what was to be forgotten."""
    await stores.turns.record(turn("resp_1", item_ids=("msg_1",)), ttl=600)
    await stores.turns.delete(TENANT, "resp_1")
    with pytest.raises(ResponseDeleted):
        await stores.turns.record(turn("resp_1", item_ids=("msg_1",)), ttl=600)
    await stores.log.append(TENANT, "resp_1", [(0, b"event")], ttl=600)
    assert await stores.turns.read(TENANT, "resp_1") is None
    assert await stores.turns.turns_of_items(TENANT, ["msg_1"]) == {}
    assert await stores.log.read(TENANT, "resp_1", cursor="") is None
    await stores.turns.record(turn("resp_1", tenant=OTHER), ttl=600)  # nobody else is concerned
    assert await stores.turns.read(OTHER, "resp_1") is not None
