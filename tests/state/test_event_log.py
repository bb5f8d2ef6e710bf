"""The event stream of a turn can be joined from any replica, byte for byte (STREAM-3, APPR-4)."""

from __future__ import annotations

import pytest

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, execute
from gateway.domain.errors import Undecipherable

from .conftest import Stores
from .make import OTHER, TENANT

BLOCKS = [(0, b"a"), (3, b"b\n\n\xff"), (4, b"c")]


@pytest.mark.covers("APPR-4")
async def test_blocks_are_read_as_they_were_appended(stores: Stores) -> None:
    await stores.log.append(TENANT, "resp_1", BLOCKS[:2], ttl=60)
    await stores.log.append(TENANT, "resp_1", BLOCKS[2:], ttl=60, end=True)
    page = await stores.log.read(TENANT, "resp_1", cursor="")
    assert page is not None
    assert (list(page.blocks), page.end) == (BLOCKS, True)


async def test_reading_goes_on_after_the_cursor(stores: Stores) -> None:
    log = stores.log
    await log.append(TENANT, "resp_1", BLOCKS, ttl=60)
    first = await log.read(TENANT, "resp_1", cursor="", limit=2)
    assert first is not None
    assert (list(first.blocks), first.end) == (BLOCKS[:2], False)
    second = await log.read(TENANT, "resp_1", cursor=first.cursor)
    assert second is not None
    assert (list(second.blocks), second.end) == (BLOCKS[2:], False)
    nothing = await log.read(TENANT, "resp_1", cursor=second.cursor)
    assert nothing is not None
    assert (nothing.blocks, nothing.cursor, nothing.end) == ((), second.cursor, False)
    await log.append(TENANT, "resp_1", [(9, b"d")], ttl=60, end=True)
    last = await log.read(TENANT, "resp_1", cursor=second.cursor)
    assert last is not None
    assert (list(last.blocks), last.end) == ([(9, b"d")], True)


async def test_a_reader_at_the_end_is_told_again_that_it_is_the_end(stores: Stores) -> None:
    await stores.log.append(TENANT, "resp_1", BLOCKS, ttl=60, end=True)
    page = await stores.log.read(TENANT, "resp_1", cursor="")
    assert page is not None
    again = await stores.log.read(TENANT, "resp_1", cursor=page.cursor)
    assert again is not None
    assert (again.blocks, again.end) == ((), True)


@pytest.mark.parametrize("blocks", [[], BLOCKS])
async def test_an_end_can_come_alone(stores: Stores, blocks: list[tuple[int, bytes]]) -> None:
    await stores.log.append(TENANT, "resp_1", blocks, ttl=60)
    await stores.log.append(TENANT, "resp_1", [], ttl=60, end=True)
    page = await stores.log.read(TENANT, "resp_1", cursor="")
    assert page is not None
    assert (list(page.blocks), page.end) == (blocks, True)


@pytest.mark.covers("APPR-4")
async def test_what_comes_twice_is_kept_once(stores: Stores) -> None:
    log = stores.log
    await log.append(TENANT, "resp_1", BLOCKS[:2], ttl=60)
    await log.append(TENANT, "resp_1", BLOCKS, ttl=60)
    for _ in range(2):
        await log.append(TENANT, "resp_1", BLOCKS, ttl=60, end=True)
    await log.append(TENANT, "resp_1", [(8, b"late")], ttl=60)
    page = await log.read(TENANT, "resp_1", cursor="")
    assert page is not None
    assert list(page.blocks) == BLOCKS
    end = await log.read(TENANT, "resp_1", cursor=page.cursor)
    assert end is not None
    assert end.end


async def test_there_is_no_log_of_an_unknown_turn(stores: Stores) -> None:
    await stores.log.append(TENANT, "resp_1", BLOCKS, ttl=60)
    assert await stores.log.read(TENANT, "resp_2", cursor="") is None
    assert await stores.log.read(TENANT, "resp_2", cursor="3-0") is None
    assert await stores.log.read(OTHER, "resp_1", cursor="") is None


async def test_blocks_cannot_change_places(stores: Stores, client: Client) -> None:
    await stores.log.append(TENANT, "resp_1", BLOCKS[:1], ttl=60)
    await stores.log.append(TENANT, "resp_2", BLOCKS[:1], ttl=60)
    ((_, fields),) = await execute(client, "XRANGE", keys.log(TENANT, "resp_1"), "-", "+")
    await client.delete(keys.log(TENANT, "resp_2"))
    await client.xadd(keys.log(TENANT, "resp_2"), fields, id="1-0")
    await client.xadd(keys.log(TENANT, "resp_1"), fields, id="2-0")
    for turn_id in ("resp_1", "resp_2"):
        with pytest.raises(Undecipherable):
            await stores.log.read(TENANT, turn_id, cursor="")
