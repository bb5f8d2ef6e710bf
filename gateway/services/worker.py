"""The background loop of a replica: jobs of all tenants, and expiries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.domain.errors import GatewayError
from gateway.domain.hints import JOBS
from gateway.domain.identity import Tenant
from gateway.domain.ports import Fleet, Job, JobQueue, Lane, Meter, Wake
from gateway.services.continuations import Continuations, Sweeper
from gateway.services.waiting import first
from gateway.services.webhooks import FanOut

logger = logging.getLogger("gateway.worker")

LOOK_EVERY = 1.0
"""Seconds after which the worker looks for jobs and expiries without a hint."""

ANNOUNCE_EVERY = 3.0
"""Seconds between two signs of life of a replica; one that gives none for 10 s is dead."""

MOST_AT_ONCE = 64
"""Jobs that one replica runs at the same time, beside background turns."""


@dataclass(slots=True)
class _Room:
    """How many jobs of a lane run at the same time, and how many may."""

    most: int
    running: int = 0


class Worker:
    """Takes jobs and runs them; a job that fails is taken again when its lease lapses.

    Args:
        version: Of this replica's rules and servers, for the other replicas.
        most_in_background: Background turns that run at the same time; further ones stay queued.
    """

    def __init__(
        self,
        *,
        jobs: JobQueue,
        wake: Wake,
        fleet: Fleet,
        version: str,
        lease: float,
        continuations: Continuations,
        webhooks: FanOut,
        sweeper: Sweeper,
        tenants: Mapping[str, Tenant],
        meter: Meter,
        most_in_background: int,
    ) -> None:
        self._jobs = jobs
        self._wake = wake
        self._fleet = fleet
        self._version = version
        self._lease = lease
        self._announced = float("-inf")
        self._continuations = continuations
        self._webhooks = webhooks
        self._sweeper = sweeper
        self._tenants = tenants
        self._meter = meter
        self._rooms: dict[Lane, _Room] = {
            "main": _Room(MOST_AT_ONCE),
            "background": _Room(most_in_background),
        }
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what was begun (STREAM-4)."""
        with self._wake.listen(JOBS) as hint:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    await self._announce()
                    self._freed.clear()
                    jobs = await self._look()
                    for job in jobs:
                        self._count(job.lane, 1)
                        group.create_task(self._job(job))
                    if not jobs:
                        await first(hint.wait(LOOK_EVERY), stop.wait(), self._freed.wait())
                with contextlib.suppress(GatewayError):  # then it is forgotten in its own time
                    await self._fleet.leave()

    async def _announce(self) -> None:
        now = time.monotonic()
        if now - self._announced < ANNOUNCE_EVERY:
            return
        try:
            await self._fleet.announce(self._version)
            self._announced = now
        except GatewayError as exc:
            logger.warning("the replica is not known to others", extra={"code": exc.code})

    async def _look(self) -> list[Job]:
        jobs: list[Job] = []
        try:
            await self._sweeper.sweep(self._tenants)
            for lane in self._rooms:
                jobs += await self._take(lane)
        except GatewayError as exc:
            logger.warning("no jobs can be taken", extra={"code": exc.code})
        except Exception:  # the loop outlives every fault: without it approvals stop for good
            logger.exception("no jobs can be taken")
        else:
            return jobs
        await asyncio.sleep(LOOK_EVERY)
        return jobs

    async def _take(self, lane: Lane) -> Sequence[Job]:
        room = self._rooms[lane]
        if room.running >= room.most:
            return ()
        return await self._jobs.take(list(self._tenants), limit=room.most - room.running, lane=lane)

    def _count(self, lane: Lane, change: int) -> None:
        room = self._rooms[lane]
        if change < 0 and room.running == room.most:
            self._freed.set()  # others may have waited for the place
        room.running += change
        self._meter.jobs(lane, change)

    async def _job(self, job: Job) -> None:
        keeping = asyncio.ensure_future(self._keep(job))
        try:
            if job.kind == "continue":
                await self._continuations.run(job)
            else:
                await self._webhooks.run(job)
                await self._jobs.done(job)
        except Exception:  # one bad job must not end the loop; it is taken again
            logger.exception("a job failed", extra={"kind": job.kind, "subject": job.subject})
        finally:
            keeping.cancel()
            self._count(job.lane, -1)

    async def _keep(self, job: Job) -> None:
        """Keep a job from other workers while it runs: the lease is for those that died."""
        kept = True
        while kept:
            await asyncio.sleep(self._lease / 3)
            with contextlib.suppress(GatewayError):
                kept = await self._jobs.extend(job)
