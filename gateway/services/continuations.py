"""Go on with held turns: any replica, exactly one of them, at most once (APPR-4, APPR-5).

A continuation is a job. Its worker claims the batch with a fencing token, sends the answers, and
writes the events to the turn's log, where whoever holds the caller's stream reads them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager

from gateway.domain.approvals import Batch, BatchStatus
from gateway.domain.documents import Raw, raw
from gateway.domain.errors import (
    Conflict,
    GatewayError,
    StoreUnavailable,
    UpstreamDisconnected,
)
from gateway.domain.history import replay, unpack
from gateway.domain.identity import Tenant
from gateway.domain.ports import (
    ApprovalStore,
    ByteStream,
    EventLog,
    Job,
    JobQueue,
    Meter,
    TurnStore,
)
from gateway.domain.registry import McpServer
from gateway.domain.requests import item_of
from gateway.domain.turns import TurnState, View, read_state
from gateway.services.answers import LEASE
from gateway.services.failpoints import Point, reached
from gateway.services.following import RUNNING, Following
from gateway.services.pipe import Pipe, Tee, continuation
from gateway.services.preparation import restore_tools
from gateway.services.records import Records
from gateway.services.settlement import Running, Settlement
from gateway.services.turns import LogTee

logger = logging.getLogger("gateway.continuations")

_OVER = frozenset(
    {BatchStatus.DONE, BatchStatus.FAILED, BatchStatus.INDETERMINATE, BatchStatus.ABANDONED}
)


class Continuations:
    """Runs continuation jobs."""

    def __init__(
        self,
        *,
        approvals: ApprovalStore,
        turns: TurnStore,
        log: EventLog,
        jobs: JobQueue,
        records: Records,
        following: Following,
        pipe: Pipe,
        settlement: Settlement,
        servers: Mapping[str, McpServer],
        tenants: Mapping[str, Tenant],
        lease: float = LEASE,
    ) -> None:
        self._lease = lease
        self._approvals = approvals
        self._turns = turns
        self._log = log
        self._jobs = jobs
        self._records = records
        self._following = following
        self._pipe = pipe
        self._settlement = settlement
        self._servers = servers
        self._tenants = tenants

    async def run(self, job: Job) -> None:
        """Run one job; a job that another worker holds is left to it."""
        reached(Point.BEFORE_CLAIM)
        batch = await self._approvals.claim(job.tenant, job.subject, lease=self._lease)
        if batch is not None:
            reached(Point.AFTER_CLAIM)
            try:
                async with self._renewed(batch):
                    await self._continue(batch)
            except* StoreUnavailable:
                raise  # the job comes again when its lease lapses
            except* Exception:
                logger.exception("a held turn cannot go on", extra={"turn": batch.turn_id})
                await self._spoil(batch)
            reached(Point.BEFORE_DONE)
            await self._jobs.done(job)
            return
        left = await self._approvals.batch(job.tenant, job.subject)
        if left is not None and left.status is BatchStatus.INDETERMINATE:
            await self._give_up(left)
        if left is None or left.status in _OVER:
            await self._jobs.done(job)

    @asynccontextmanager
    async def _renewed(self, batch: Batch) -> AsyncGenerator[None, None]:
        """Renew the claim while the leg runs."""

        async def renew() -> None:
            held = True
            while held:
                await asyncio.sleep(self._lease / 3)
                try:
                    held = await self._approvals.renew(
                        batch.tenant, batch.id, fence=batch.fence, lease=self._lease
                    )
                except GatewayError as exc:
                    logger.warning("a claim could not be renewed", extra={"code": exc.code})

        async with asyncio.TaskGroup() as group:
            task = group.create_task(renew())
            try:
                yield
            finally:
                task.cancel()

    async def _continue(self, batch: Batch) -> None:
        running = self._running(batch)
        state = running.state
        tee = self._tee(running)

        async def opening() -> ByteStream:
            if not state.stored:
                running.base = await self._base(state, running.tenant)
            checked = await self._settlement.revalidate(running, batch)
            return await self._pipe.open(running, continuation(running, checked))

        async with aclosing(self._pipe.events(running, opening, tee)) as blocks:
            async for _ in blocks:
                if not running.waits:
                    await tee.flush()
        if not running.waits:
            await tee.flush(end=True)
        logger.info("a held turn went on", extra={"turn": state.turn_id, "batch": batch.id})

    async def _base(self, state: TurnState, tenant: Tenant) -> Raw:
        """Write the first leg's input again: the chain as it is now, and the turn's own items."""
        own = [item_of(item.i) for item in state.items if item.o == "in"]
        if state.parent is None:
            return raw([item.raw for item in own])
        chain = await self._turns.chain(state.tenant, state.parent, ttl=tenant.ttl)
        if chain is None:
            raise Conflict("The chain was deleted while the turn was held.", code="chain_deleted")
        return raw(replay((unpack(turn.items) for turn in chain), own))

    async def _give_up(self, batch: Batch) -> None:
        """End a turn whose continuation was sent by a replica that died: its answer is lost."""
        turn = await self._turns.head(batch.tenant, batch.turn_id)
        if turn is not None and turn.status in RUNNING:
            error = UpstreamDisconnected(
                "The answer to the approvals was lost after it was sent; what ran is not known.",
                code="continuation_indeterminate",
            )
            await self.end(batch, error)

    async def _spoil(self, batch: Batch) -> None:
        """End a turn that a fault of ours keeps from going on, so that nobody waits for ever."""
        await self._approvals.finish(
            batch.tenant, batch.id, fence=batch.fence, status=BatchStatus.FAILED
        )
        turn = await self._turns.read(batch.tenant, batch.turn_id)
        if turn is not None:
            tenant = self._tenants.get(batch.tenant, Tenant(id=batch.tenant))
            await self._records.end(turn, status="failed", ttl=tenant.ttl)

    async def end(self, batch: Batch, error: GatewayError) -> None:
        """End a held turn with an error: on record, and on every stream that follows it."""
        running = self._running(batch)
        tee = self._tee(running)
        state = running.state
        last = await self._following.last_number(batch.tenant, batch.turn_id)
        state.sequence = max(state.sequence, last + 1)  # a dead replica may have got further

        async def refused() -> ByteStream:
            raise error

        async with aclosing(self._pipe.events(running, refused, tee)) as blocks:
            async for _ in blocks:
                pass
        await tee.flush(end=True)

    def _tee(self, running: Running) -> Tee:
        """Keep the events of a streamed turn; half a stream of a JSON turn helps nobody."""
        return LogTee(self._log, running) if running.state.streamed else Tee()

    def _running(self, batch: Batch) -> Running:
        state = read_state(batch.held)
        return Running(
            state=state,
            tools=restore_tools(state.tools, self._servers),
            tenant=self._tenants.get(state.tenant, Tenant(id=state.tenant)),
            view=View(state, has_mcp=True),
            held=True,
            recorded=True,
        )


class Sweeper:
    """Expires approvals whose time is over, for all tenants."""

    def __init__(self, approvals: ApprovalStore, meter: Meter) -> None:
        self._approvals = approvals
        self._meter = meter

    async def sweep(self, tenants: Mapping[str, Tenant]) -> None:
        """Expire once."""
        for tenant in tenants:
            try:
                for approval_id in await self._approvals.expire_due(tenant):
                    await self._count(tenant, approval_id)
            except GatewayError:
                logger.exception("approvals could not be expired", extra={"tenant": tenant})

    async def _count(self, tenant: str, approval_id: str) -> None:
        approval = await self._approvals.get(tenant, approval_id)
        if approval is not None:
            self._meter.approval(server=approval.server, outcome=approval.status.value)
