"""Redis dies, stalls, fills up, or turns read-only: nothing approved is lost or done twice, callers
get a clear 503, and all goes on without a hand (OPS-2, OPS-4)."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import pytest

from tests.reliability.support import (
    GITHUB,
    Ledger,
    Replica,
    Site,
    amount,
    eventually,
    report,
    spread,
)

pytestmark = [pytest.mark.timeout(300)]

SOON = 2.0
"""Seconds within which a store that does not answer is told: `redis.timeout` is one."""


@dataclass(frozen=True)
class Refusal:
    """How a plain turn was answered."""

    status: int
    code: str
    seconds: float


async def ask(replica: Replica, site: Site) -> Refusal:
    """Send a turn that asks nobody."""
    headers = {"authorization": f"Bearer {site.keys['caller']}"}
    begun = time.monotonic()
    async with httpx2.AsyncClient(trust_env=False, timeout=30, headers=headers) as client:
        answer = await client.post(
            replica.url + "/v1/responses",
            json={"model": "gpt-4.1", "input": "/echo hello", "tools": [GITHUB]},
        )
    error: dict[str, Any] = answer.json().get("error") or {}
    return Refusal(answer.status_code, str(error.get("code")), time.monotonic() - begun)


async def sent(site: Site) -> int:
    """How many requests the provider has been sent."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        listed = (await client.get(site.provider + "/_emulator/requests")).json()
    return len(listed["requests"] if isinstance(listed, dict) else listed)


@asynccontextmanager
async def outage(
    site: Site, name: str, begin: Callable[[], object], end: Callable[[], object], code: str
) -> AsyncIterator[None]:
    """Bring a fault about while a turn is held; afterwards, that turn must go on by itself."""
    one, two = site.up("one", "two")
    ledger = Ledger(site)
    async with anyio.create_task_group() as group:
        held = ledger.new()
        group.start_soon(ledger.turn, one, held)
        await held.held.wait()
        (approval,) = await _pending(ledger)
        begin()
        try:
            begun = time.monotonic()
            # Each replica looks for itself; before it has, a turn of it may reach the provider.
            noticed = await eventually(lambda: _ready(503, one, two), "both say 503")
            before = await sent(site)
            refusals = [await ask(replica, site) for replica in (one, two)]
            assert {(refusal.status, refusal.code) for refusal in refusals} == {(503, code)}
            assert max(refusal.seconds for refusal in refusals) < SOON
            assert await sent(site) == before, "the upstream was asked although nothing can be kept"
            assert (one.health("/livez"), two.health("/livez")) == (200, 200)
            decision = time.monotonic()
            assert await ledger.decide(approval, at=two) in (503, 0)
            decision = time.monotonic() - decision
            assert decision < SOON + 1
            yield
            lasted = time.monotonic() - begun
        finally:
            end()
        recovered = await eventually(lambda: _ready(200, one, two), "both are ready again")
        assert await ledger.decide(approval, at=two) == 200
        async with ledger.approver():
            await ledger.turn(two)
    counted = await ledger.check()
    report(
        name,
        noticed=round(noticed, 2),
        refused_within=spread([refusal.seconds for refusal in refusals]),
        decision_refused_within=round(decision, 2),
        lasted=round(lasted, 1),
        ready_again_after=round(recovered, 2),
        **counted,
    )


async def _pending(ledger: Ledger) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def some() -> bool:
        found[:] = await ledger.pending()
        return bool(found)

    await eventually(some, "an approval is pending")
    return found


async def _ready(status: int, *replicas: Replica) -> bool:
    """Tell whether `/readyz` of each replica has this status."""
    said = [await anyio.to_thread.run_sync(one.health, "/readyz") for one in replicas]
    return set(said) == {status}


@pytest.mark.covers("OPS-2", "OPS-4", "APPR-4")
async def test_a_redis_that_stalls_is_told_within_seconds(site: Site) -> None:
    def stop() -> None:
        site.valkey.signal(signal.SIGSTOP)

    def go_on() -> None:
        site.valkey.signal(signal.SIGCONT)

    async with outage(site, "redis paused (SIGSTOP)", stop, go_on, "store_unavailable"):
        pass


@pytest.mark.covers("OPS-2", "OPS-4")
async def test_a_redis_that_is_full_refuses_before_the_upstream_is_asked(site: Site) -> None:
    def fill() -> None:
        assert site.valkey.call("CONFIG", "SET", "maxmemory", "1") == "OK"

    def empty() -> None:
        assert site.valkey.call("CONFIG", "SET", "maxmemory", "0") == "OK"

    async with outage(site, "redis full (maxmemory)", fill, empty, "storage_full"):
        pass


@pytest.mark.covers("OPS-2", "OPS-4")
async def test_a_redis_that_became_a_replica_is_left(site: Site) -> None:
    def demote() -> None:
        assert site.valkey.call("REPLICAOF", "127.0.0.1", "1") == "OK"

    def promote() -> None:
        assert site.valkey.call("REPLICAOF", "NO", "ONE") == "OK"

    async with outage(site, "redis read-only (REPLICAOF)", demote, promote, "store_unavailable"):
        pass


@pytest.mark.covers("OPS-2", "APPR-4", "APPR-5")
async def test_a_redis_that_is_killed_comes_back_with_every_decision(site: Site) -> None:
    site.up("one", "two")
    ledger = Ledger(site)
    kills = amount(3, long=15)
    async with ledger.load(6):
        for _ in range(kills):
            await ledger.until(10)
            site.valkey.kill()
            site.valkey.start().ready()
            await ledger.until(3)
    counted = await ledger.check()
    gap = round(ledger.longest_gap(), 2)
    report("redis killed and restarted", kills=kills, longest_gap=gap, **counted)
