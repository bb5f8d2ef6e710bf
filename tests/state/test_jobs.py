"""Jobs reach one worker at a time and none is lost (APPR-4, APPR-9)."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, execute
from gateway.adapters.redis.jobs import RedisJobQueue
from gateway.domain.ports import Job

from .make import OTHER, TENANT


async def lapse(client: Client, taken: Job) -> None:
    """Let a taken job look as if its worker had been silent for a minute."""
    name = keys.jobs(taken.tenant)
    await execute(client, "XCLAIM", name, "workers", "worker-1", 0, taken.token, "IDLE", 60_000)


async def pass_minute(client: Client) -> None:
    """Let a minute pass for the jobs that are due later."""
    later = keys.jobs(TENANT) + b":later"
    for packed in await client.zrange(later, 0, -1):
        assert isinstance(packed, bytes)
        await client.zincrby(later, -60_000, packed)


def job(subject: str = "apr_1", **changes: object) -> Job:
    values = {
        "token": "",
        "tenant": TENANT,
        "kind": "webhook",
        "subject": subject,
        "event": "approval.requested",
        "event_id": "evt_1",
        "occurred_at": 1763640000.125,
        "attempt": 2,
    }
    return Job(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def queue(client: Client) -> RedisJobQueue:
    return RedisJobQueue(client, "worker-1")


@pytest.fixture
def other(client: Client) -> RedisJobQueue:
    return RedisJobQueue(client, "worker-2")


async def subjects(queue: RedisJobQueue, *tenants: str, limit: int = 10) -> list[str]:
    return [job.subject for job in await queue.take(tenants or (TENANT,), limit=limit)]


async def test_a_job_comes_as_it_was_added(queue: RedisJobQueue) -> None:
    added = job()
    await queue.add(added)
    (taken,) = await queue.take([TENANT], limit=10)
    assert taken == job(token=taken.token)
    assert taken.token


@pytest.mark.covers("APPR-4")
async def test_a_job_goes_to_one_worker(queue: RedisJobQueue, other: RedisJobQueue) -> None:
    for n in range(20):
        await queue.add(job(f"apr_{n}"))
    taken = await asyncio.gather(
        *(worker.take([TENANT], limit=4) for worker in (queue, other) for _ in range(4))
    )
    names = [one.subject for some in taken for one in some]
    assert sorted(names) == sorted(f"apr_{n}" for n in range(20))


async def test_a_done_job_is_gone_for_good(client: Client, queue: RedisJobQueue) -> None:
    await queue.add(job())
    (taken,) = await queue.take([TENANT], limit=10)
    await queue.done(taken)
    await queue.done(taken)
    assert await client.dbsize() == 0
    await queue.add(job("apr_2"))
    assert await subjects(queue) == ["apr_2"]


@pytest.mark.covers("STREAM-3", "APPR-4")
async def test_background_turns_wait_in_a_lane_of_their_own(
    client: Client, queue: RedisJobQueue, other: RedisJobQueue
) -> None:
    for subject in ("run_1", "run_2", "resp_1"):
        await queue.add(job(subject, kind="continue"))
    await queue.add(job("run_3", kind="continue"), delay=0.001)
    assert await subjects(queue) == ["resp_1"]
    (first,) = await queue.take([TENANT], limit=1, lane="background")
    assert (first.subject, first.lane) == ("run_1", "background")
    name = keys.jobs(TENANT, "background")
    await execute(client, "XCLAIM", name, "workers", "worker-1", 0, first.token, "IDLE", 60_000)
    assert await queue.extend(first)
    await queue.done(first)
    found: list[str] = []
    with anyio.fail_after(30):
        while len(found) < 2:
            found += [one.subject for one in await other.take([TENANT], limit=9, lane="background")]
    assert sorted(found) == ["run_2", "run_3"]


@pytest.mark.covers("APPR-4")
async def test_a_dead_workers_job_is_taken_over(
    client: Client, queue: RedisJobQueue, other: RedisJobQueue
) -> None:
    await queue.add(job())
    (taken,) = await queue.take([TENANT], limit=10)
    assert await subjects(other) == []
    await lapse(client, taken)
    assert await subjects(other) == ["apr_1"]
    assert await subjects(queue) == []


async def test_a_lapsed_job_is_found_behind_many_live_ones(
    client: Client, queue: RedisJobQueue, other: RedisJobQueue
) -> None:
    for n in range(300):
        await queue.add(job(f"apr_{n}"))
    taken = await queue.take([TENANT], limit=300)
    await lapse(client, taken[-1])
    found = [await subjects(other, limit=1) for _ in range(40)]
    assert found.count(["apr_299"]) == 1
    assert found.count([]) == 39


async def test_a_job_that_is_extended_stays(
    client: Client, queue: RedisJobQueue, other: RedisJobQueue
) -> None:
    await queue.add(job())
    (taken,) = await queue.take([TENANT], limit=10)
    await lapse(client, taken)
    assert await queue.extend(taken)
    assert await subjects(other) == []


async def test_a_job_that_was_taken_over_or_done_is_not_extended(
    client: Client, queue: RedisJobQueue, other: RedisJobQueue
) -> None:
    await queue.add(job())
    (taken,) = await queue.take([TENANT], limit=10)
    await lapse(client, taken)
    assert await subjects(other) == ["apr_1"]
    assert not await queue.extend(taken)
    assert await other.extend(taken)
    await other.done(taken)
    assert not await other.extend(taken)


async def test_a_delayed_job_comes_when_it_is_due(client: Client, queue: RedisJobQueue) -> None:
    await queue.add(job("soon"), delay=60)
    await queue.add(job("late"), delay=3600)
    assert await subjects(queue) == []
    await pass_minute(client)
    assert await subjects(queue) == ["soon"]
    assert await client.zcard(keys.jobs(TENANT) + b":later") == 1


async def test_a_delayed_job_that_is_added_twice_comes_once(
    client: Client, queue: RedisJobQueue
) -> None:
    for _ in range(2):
        await queue.add(job(), delay=60)
    await pass_minute(client)
    assert await subjects(queue) == ["apr_1"]


async def test_no_more_is_taken_than_asked_for(queue: RedisJobQueue) -> None:
    tenants = [f"t{n}" for n in range(7)]
    for tenant in tenants:
        for n in range(5):
            await queue.add(job(f"{tenant}-{n}", tenant=tenant))
    seen: list[str] = []
    while taken := await queue.take(tenants, limit=3):
        assert len(taken) <= 3
        seen += [one.subject for one in taken]
    assert len(set(seen)) == len(seen) == 35


async def test_a_quiet_tenant_does_not_wait_for_a_busy_one(queue: RedisJobQueue) -> None:
    for n in range(50):
        await queue.add(job(f"busy-{n}"))
    await queue.add(job("quiet", tenant=OTHER))
    assert "quiet" in await subjects(queue, TENANT, OTHER, limit=4)


async def test_each_job_knows_its_tenant(queue: RedisJobQueue) -> None:
    await queue.add(job("a"))
    await queue.add(job("b", tenant=OTHER))
    taken = await queue.take([TENANT, OTHER, "nobody"], limit=10)
    assert {one.subject: one.tenant for one in taken} == {"a": TENANT, "b": OTHER}
    assert await queue.take([], limit=10) == []


async def test_looking_for_jobs_leaves_nothing_behind(client: Client, queue: RedisJobQueue) -> None:
    await queue.take([TENANT, OTHER], limit=10)
    assert await client.dbsize() == 0
