"""Jobs in Redis streams: one stream and one group of workers per tenant and lane (APPR-4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
from redis.exceptions import NoScriptError
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.ports import Job, JobQueue, Lane

LEASE = 10.0
"""Seconds after which a job that is not done goes to another worker."""


@dataclass(slots=True)
class _Turn:
    """Whose turn it is: tenants are asked in a ring, so that none waits behind a busy one."""

    at: int = 0

    def order(self, tenants: Sequence[str]) -> Sequence[str]:
        if not tenants:
            return ()
        self.at = (self.at + 1) % len(tenants)
        return (*tenants[self.at :], *tenants[: self.at])


class RedisJobQueue(JobQueue):
    """Jobs of all tenants.

    Args:
        consumer_name: Names this process; no two that run may have the same.
        lease: Seconds until a job goes to another worker, unless `extend` is called.
    """

    def __init__(self, client: Client, consumer_name: str, *, lease: float = LEASE) -> None:
        self._client = client
        self._consumer = consumer_name
        self._lease = round(lease * 1000)
        self._script = Script(client, "jobs.lua")
        self._places: dict[tuple[str, Lane], bytes] = {}
        self._turns: dict[Lane, _Turn] = {"main": _Turn(), "background": _Turn()}

    @override
    @store_errors
    async def take(
        self, tenants: Sequence[str], *, limit: int, lane: Lane = "main"
    ) -> Sequence[Job]:
        jobs: list[Job] = []
        waiting = list(self._turns[lane].order(tenants))
        while waiting and len(jobs) < limit:
            free = limit - len(jobs)
            asked, waiting = waiting[:free], waiting[free:]
            jobs += await self._ask(asked, lane, free // len(asked))
        return jobs

    async def _ask(self, tenants: Sequence[str], lane: Lane, most: int) -> list[Job]:
        try:
            answers = await self._ask_at_once(tenants, lane, most)
        except NoScriptError:
            await self._script.load()
            answers = await self._ask_at_once(tenants, lane, most)
        jobs = []
        for tenant, (place, found) in zip(tenants, answers, strict=True):
            self._places[tenant, lane] = place
            jobs += [_job(tenant, token, fields) for token, fields in found]
        return jobs

    async def _ask_at_once(self, tenants: Sequence[str], lane: Lane, most: int) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for tenant in tenants:
                pipe.execute_command(
                    "EVALSHA",
                    self._script.sha,
                    1,
                    keys.jobs(tenant, lane),
                    "take",
                    tenant,
                    self._consumer,
                    most,
                    self._lease,
                    self._places.get((tenant, lane), b"0-0"),
                )
            return await pipe.execute()

    @override
    @store_errors
    async def done(self, job: Job) -> None:
        await self._call("done", job, job.token)

    @override
    @store_errors
    async def extend(self, job: Job) -> bool:
        return bool(await self._call("extend", job, job.token, self._consumer))

    @override
    @store_errors
    async def add(self, job: Job, *, delay: float = 0.0) -> None:
        await self._call("add", job, round(delay * 1000), _pack(job))

    async def _call(self, operation: str, job: Job, *args: bytes | str | int) -> Any:
        return await self._script(keys.jobs(job.tenant, job.lane), operation, job.tenant, *args)


def _pack(job: Job) -> bytes:
    fields = {
        "k": job.kind,
        "s": job.subject,
        "o": f"{job.occurred_at:.3f}",
        "e": job.event,
        "i": job.event_id,
        "t": job.target,
        "a": str(job.attempt) if job.attempt else "",
    }
    flat = [part for name, value in fields.items() if value for part in (name, value)]
    return msgspec.msgpack.encode(flat)


def _job(tenant: str, token: bytes, flat: Sequence[bytes]) -> Job:
    fields = {
        name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)
    }
    return Job(
        token=token.decode(),
        tenant=tenant,
        kind=cast("Literal['continue', 'webhook']", fields["k"]),
        subject=fields["s"],
        event=fields.get("e", ""),
        event_id=fields.get("i", ""),
        occurred_at=float(fields.get("o", "0")),
        target=fields.get("t", ""),
        attempt=int(fields.get("a", "0")),
    )
