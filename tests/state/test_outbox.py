"""Events about other things than approvals: kept at once, once, and readable by nobody (APPR-9)."""

from __future__ import annotations

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.client import Client
from gateway.adapters.redis.webhooks import RedisOutbox
from gateway.domain.errors import StoreUnavailable

from .conftest import Stores
from .make import OTHER, TENANT, everything, names

DRIFT = {"object": "tool_pin", "server": "canary-server", "tool": "canary-tool"}


@pytest.fixture
def outbox(client: Client, ring: KeyRing) -> RedisOutbox:
    return RedisOutbox(client, ring)


@pytest.mark.covers("APPR-9")
async def test_an_event_is_a_job_and_the_same_again_is_none(
    outbox: RedisOutbox, stores: Stores
) -> None:
    assert await outbox.emit(TENANT, "tool.drifted", "t", DRIFT, occurrence="hash 2")
    assert not await outbox.emit(TENANT, "tool.drifted", "t", DRIFT, occurrence="hash 2")
    assert await outbox.emit(TENANT, "tool.drifted", "t", DRIFT, occurrence="hash 3")
    assert await outbox.emit(OTHER, "tool.drifted", "t", DRIFT, occurrence="hash 2")
    jobs = await stores.jobs.take([TENANT, OTHER], limit=10)
    assert [(job.kind, job.event) for job in jobs] == [("webhook", "tool.drifted")] * 3
    assert len({job.event_id for job in jobs}) == 3
    assert all("." not in job.event_id and job.occurred_at > 1e9 for job in jobs)


@pytest.mark.covers("APPR-9", "STATE-4")
async def test_a_dump_shows_no_name_and_every_key_ends(outbox: RedisOutbox, client: Client) -> None:
    await outbox.emit(TENANT, "tool.drifted", "canary.subject", DRIFT, occurrence="canary")
    found = await everything(client)
    assert b"tool.drifted" in found
    assert b"canary" not in found
    assert all([await client.pttl(name) > 0 async for name in names(client)])


async def test_an_event_that_nobody_could_ask_for_is_an_error(outbox: RedisOutbox) -> None:
    with pytest.raises(ValueError, match=r"no event 'tool\.lost'"):
        await outbox.emit(TENANT, "tool.lost", "t", {})


async def test_what_cannot_be_kept_is_an_error_and_not_lost_in_silence(ring: KeyRing) -> None:
    closed = Client.from_url("redis://127.0.0.1:1")
    with pytest.raises(StoreUnavailable):
        await RedisOutbox(closed, ring).emit(TENANT, "tool.drifted", "t", {})
    await closed.aclose()
