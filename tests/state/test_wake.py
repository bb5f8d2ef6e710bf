"""Hints reach whoever waits on any replica, also after the connection was lost (APPR-4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.adapters.redis.client import Client, open_clients
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.adapters.redis.wake import RedisWake
from gateway.domain.approvals import BatchStatus

from .conftest import Stores
from .make import APPROVE, TENANT, approval, calls, opened, turn, vote

TURN = f"turn:{TENANT}:resp_turn"


async def listening(client: Client) -> None:
    """Wait until the process is subscribed."""
    async with asyncio.timeout(30):
        while not dict(await client.pubsub_numsub("gw:wake")).get(b"gw:wake"):
            await asyncio.sleep(0.005)


@pytest.fixture
async def wake(valkey: EmbeddedValkey, client: Client) -> AsyncIterator[RedisWake]:
    async with open_clients(valkey.url) as clients, asyncio.TaskGroup() as group:
        wake = RedisWake(clients.pubsub)
        run = group.create_task(wake.run())
        await listening(client)
        yield wake
        run.cancel()


async def test_a_hint_before_the_wait_is_not_lost(wake: RedisWake, client: Client) -> None:
    with wake.listen("turn:a:b") as hint:
        await client.publish("gw:wake", "turn:a:b")
        assert await hint.wait(30)
        assert not await hint.wait(0.01)


async def test_a_hint_is_for_its_key_alone(wake: RedisWake, client: Client) -> None:
    with wake.listen("turn:a:b") as mine, wake.listen("turn:a:c") as other:
        await client.publish("gw:wake", "turn:a:b")
        assert await mine.wait(30)
        assert not await other.wait(0.01)


async def test_all_who_listen_are_told(wake: RedisWake, client: Client) -> None:
    with wake.listen("turn:a:b") as one, wake.listen("turn:a:b") as two:
        await client.publish("gw:wake", "turn:a:b")
        assert await one.wait(30)
        assert await two.wait(30)


async def test_listeners_leave_nothing_behind(wake: RedisWake) -> None:
    with wake.listen("turn:a:b"), wake.listen("turn:a:b"):
        pass
    assert not wake._listeners


async def test_whoever_waits_for_jobs_hears_of_every_tenants(
    wake: RedisWake, client: Client
) -> None:
    with wake.listen("jobs") as workers, wake.listen("jobs:acme") as acme:
        await client.publish("gw:wake", "jobs:acme")
        assert await workers.wait(30)
        assert await acme.wait(30)


async def test_every_step_of_a_held_turn_is_hinted(wake: RedisWake, stores: Stores) -> None:
    asked, approvals = approval(quorum=2), stores.approvals
    with wake.listen(TURN) as hint, wake.listen("jobs") as jobs:
        await opened(approvals, asked)
        assert await hint.wait(30)
        assert await jobs.wait(30)  # the webhook
        await vote(approvals, asked, "ann", APPROVE)
        assert await hint.wait(30)
        assert await jobs.wait(30)  # the webhook of the vote
        await vote(approvals, asked, "ben", APPROVE)
        assert await hint.wait(30)
        assert await jobs.wait(30)
        await approvals.claim(TENANT, asked.batch_id, lease=30)
        await approvals.finish(TENANT, asked.batch_id, fence=1, status=BatchStatus.DONE)
        assert await hint.wait(30)
        await stores.log.append(TENANT, "resp_turn", [(0, b"x")], ttl=60)
        assert await hint.wait(30)
        await stores.turns.record(turn("resp_turn", status="in_progress"), ttl=60)
        await stores.turns.record(turn("resp_turn"), ttl=60)
        assert await hint.wait(30)


async def test_a_lost_connection_is_made_anew_and_wakes_everybody(
    wake: RedisWake, client: Client
) -> None:
    with wake.listen("turn:a:b") as hint:
        await client.client_kill_filter(_type="pubsub")
        assert await hint.wait(30)
        await listening(client)
        await client.publish("gw:wake", "turn:a:b")
        assert await hint.wait(30)


@pytest.mark.covers("APPR-4", "OPS-4")
async def test_waiting_survives_a_restart_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.adapters.redis.wake._LONGEST_PAUSE", 0.1)
    with EmbeddedValkey(tmp_path) as first:
        url = first.url
        async with open_clients(url) as clients, asyncio.TaskGroup() as group:
            wake = RedisWake(clients.pubsub)
            run = group.create_task(wake.run())
            await listening(clients.commands)
            with wake.listen("turn:a:b") as hint:
                first.__exit__(None, None, None)
                assert not await hint.wait(0.2)
                with EmbeddedValkey(tmp_path):
                    assert await hint.wait(30)
                    await listening(clients.commands)
                    await clients.commands.publish("gw:wake", "turn:a:b")
                    assert await hint.wait(30)
                    run.cancel()


async def test_a_silent_connection_is_asked_whether_it_lives(
    valkey: EmbeddedValkey, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.adapters.redis.wake._SILENCE", 0.02)
    async with open_clients(valkey.url) as clients, asyncio.TaskGroup() as group:
        wake = RedisWake(clients.pubsub)
        run = group.create_task(wake.run())
        await listening(client)
        await client.config_resetstat()
        async with asyncio.timeout(30):
            while await calls(client, "ping") < 2:
                await asyncio.sleep(0.005)
        stats = await client.info("commandstats")
        assert "cmdstat_subscribe" not in stats
        run.cancel()
