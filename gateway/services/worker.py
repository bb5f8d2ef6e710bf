"""The background loop of a replica: jobs of all tenants, and expiries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from gateway.domain.errors import GatewayError
from gateway.domain.identity import Tenant
from gateway.domain.ports import Job, JobQueue, Wake
from gateway.services.continuations import Continuations, Sweeper
from gateway.services.waiting import first
from gateway.services.webhooks import FanOut

logger = logging.getLogger("gateway.worker")

LOOK_EVERY = 1.0
"""Seconds after which the worker looks for jobs and expiries without a hint."""

MOST_AT_ONCE = 64
"""Jobs that one replica runs at the same time."""


class Worker:
    """Takes jobs and runs them; a job that fails is taken again when its lease lapses."""

    def __init__(
        self,
        *,
        jobs: JobQueue,
        wake: Wake,
        continuations: Continuations,
        webhooks: FanOut,
        sweeper: Sweeper,
        tenants: Mapping[str, Tenant],
    ) -> None:
        self._jobs = jobs
        self._wake = wake
        self._continuations = continuations
        self._webhooks = webhooks
        self._sweeper = sweeper
        self._tenants = tenants
        self._running = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what was begun."""
        with self._wake.listen("jobs") as hint:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    jobs = await self._look()
                    for job in jobs:
                        self._running += 1
                        group.create_task(self._job(job))
                    if not jobs:
                        await first(hint.wait(LOOK_EVERY), stop.wait())

    async def _look(self) -> list[Job]:
        free = MOST_AT_ONCE - self._running
        if free <= 0:
            return []
        try:
            await self._sweeper.sweep(self._tenants)
            return list(await self._jobs.take(list(self._tenants), limit=free))
        except GatewayError as exc:
            logger.warning("no jobs can be taken", extra={"code": exc.code})
        except Exception:  # the loop outlives every fault: without it approvals stop for good
            logger.exception("no jobs can be taken")
        await asyncio.sleep(LOOK_EVERY)
        return []

    async def _job(self, job: Job) -> None:
        try:
            if job.kind == "continue":
                await self._continuations.run(job)
            else:
                await self._webhooks.run(job)
                await self._jobs.done(job)
        except Exception:  # one bad job must not end the loop; it is taken again
            logger.exception("a job failed", extra={"kind": job.kind, "subject": job.subject})
        finally:
            self._running -= 1
