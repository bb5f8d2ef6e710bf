"""Go on with held turns: any replica, exactly one of them, at most once (APPR-4, APPR-5).

A continuation is a job. Its worker claims the batch with a fencing token, sends the answers, and
writes the events to the turn's log, where whoever holds the caller's stream reads them.

    job ─> claim ─> send ─┬─ an answer ───────────> the turn ends, or is held again
      ^                   ├─ nothing ran ─────────> the same job again, later
      │                   ├─ our own fault ───────> the turn fails
      │                   └─ nobody knows ─> in doubt ─┬─ harmless to repeat ─> again, later
      │                                                └─ else a person: retry, or rewind
      └───────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

from gateway.domain import events
from gateway.domain.approvals import Batch, BatchStatus
from gateway.domain.documents import Document, Raw, parse_document, raw
from gateway.domain.errors import Conflict, GatewayError, StoreUnavailable
from gateway.domain.hints import stop_hint
from gateway.domain.history import Kept, replay
from gateway.domain.identity import Tenant
from gateway.domain.ports import (
    ApprovalStore,
    ByteStream,
    ConversationStore,
    EventLog,
    Fleet,
    Job,
    JobQueue,
    Meter,
    Outbox,
    TurnStore,
    Wake,
)
from gateway.domain.registry import McpServer
from gateway.domain.requests import item_of
from gateway.domain.turns import TurnState, View, read_state
from gateway.services.answers import LEASE
from gateway.services.chains import Chains, Past
from gateway.services.endings import Endings, abandoned, cancelled
from gateway.services.failpoints import Point, reached
from gateway.services.failures import (
    aftermath,
    approves,
    as_error,
    backoff,
    doubt,
    lost,
    repeated_alone,
)
from gateway.services.following import RUNNING, Following
from gateway.services.pipe import Pipe, Tee, continuation
from gateway.services.preparation import restore_tools
from gateway.services.recording import Overtaken, Recorder
from gateway.services.settlement import ReceiptMismatch, Running, Settlement
from gateway.services.turns import LogTee

logger = logging.getLogger("gateway.continuations")

ELSEWHERE = 0.2
"""Seconds until a job comes again that another version of the configuration must take."""

_CLAIMABLE = frozenset({BatchStatus.READY, BatchStatus.CLAIMED})
_HELD = frozenset({BatchStatus.CLAIMED, BatchStatus.DISPATCHED, BatchStatus.READY})


class Continuations:
    """Runs continuation jobs.

    Args:
        version: Of the rules and servers of this replica; a turn stays with the version that
            held it while any live replica has it.
    """

    def __init__(
        self,
        *,
        approvals: ApprovalStore,
        turns: TurnStore,
        conversations: ConversationStore,
        log: EventLog,
        jobs: JobQueue,
        fleet: Fleet,
        outbox: Outbox,
        wake: Wake,
        following: Following,
        endings: Endings,
        pipe: Pipe,
        recorder: Recorder,
        chains: Chains,
        settlement: Settlement,
        servers: Mapping[str, McpServer],
        tenants: Mapping[str, Tenant],
        version: str,
        lease: float = LEASE,
    ) -> None:
        self._lease = lease
        self._version = version
        self._approvals = approvals
        self._turns = turns
        self._conversations = conversations
        self._log = log
        self._jobs = jobs
        self._fleet = fleet
        self._outbox = outbox
        self._wake = wake
        self._following = following
        self._endings = endings
        self._pipe = pipe
        self._recorder = recorder
        self._chains = chains
        self._settlement = settlement
        self._servers = servers
        self._tenants = tenants

    async def run(self, job: Job) -> None:
        """Run one job; what another worker holds is left to it."""
        batch = await self._approvals.batch(job.tenant, job.subject)
        if batch is None:
            await self._never_held(job)
        elif batch.status in _CLAIMABLE:
            if not await self._ours(batch):
                await self._jobs.add(replace(job, token=""), delay=ELSEWHERE)
                await self._jobs.done(job)
                return
            reached(Point.BEFORE_CLAIM)
            claimed = await self._approvals.claim(job.tenant, job.subject, lease=self._lease)
            if claimed is not None:
                reached(Point.AFTER_CLAIM)
                try:
                    await self._work(claimed)
                except Overtaken as exc:
                    logger.info("a claim was lost", extra={"batch": batch.id, "code": exc.code})
                    return  # whoever looks next sees to the rest
                reached(Point.BEFORE_DONE)
            elif not job.event:
                return  # its holder may die: then the job comes again
        elif batch.status is BatchStatus.DISPATCHED and not job.event:
            return
        else:
            await self._look_after(batch, job)
        await self._jobs.done(job)

    async def _ours(self, batch: Batch) -> bool:
        """Tell whether this replica may go on with a turn.

        One that was held under other rules or servers stays with them while they are alive, so
        that a replica that is not updated yet decides nothing in a turn of one that is.
        """
        version = read_state(batch.held).version
        return version in ("", self._version) or not await self._fleet.has(version)

    async def _work(self, batch: Batch) -> None:
        """Send the answers of a claimed batch, and settle whatever becomes of it."""
        running = self._running(batch)
        running.batch = batch
        try:
            async with self._renewed(batch):
                await self._send(running, batch)
        except (Overtaken, StoreUnavailable):
            # Another worker has it, or the lease ends in its own time: never two endings.
            running.batch = None
            raise
        except Exception as exc:  # noqa: BLE001  # a held turn always has an end
            running.batch = None
            await self._settle(batch, as_error(exc), running)
        finally:
            await self._pipe.release(running)  # cancelled: this process stops

    @asynccontextmanager
    async def _renewed(self, batch: Batch) -> AsyncGenerator[None, None]:
        """Renew the claim while the leg runs, and stop the leg once it is another's.

        Raises:
            Overtaken: The claim was lost.
        """
        leg = asyncio.current_task()
        overtaken = False

        async def renew() -> None:
            nonlocal overtaken
            with self._wake.listen(stop_hint(batch.tenant, batch.id)) as stop:
                while not overtaken:
                    await stop.wait(self._lease / 3)
                    try:
                        overtaken = not await self._approvals.renew(
                            batch.tenant, batch.id, fence=batch.fence, lease=self._lease
                        )
                    except GatewayError as exc:
                        logger.warning("a claim could not be renewed", extra={"code": exc.code})
            if leg is not None:
                leg.cancel()

        renewing = asyncio.ensure_future(renew())
        try:
            yield
        except asyncio.CancelledError:
            if not overtaken or leg is None:
                raise
            leg.uncancel()
            raise Overtaken("The claim of the batch was lost.") from None
        finally:
            renewing.cancel()

    async def _send(self, running: Running, batch: Batch) -> None:
        state = running.state
        tee = LogTee(self._log, running) if state.streamed else Tee()
        if state.background:
            await self._still_runs(running, batch)
        if batch.fence > 1 and state.streamed:
            await self._make_up(running)

        async def opening() -> ByteStream:
            past = None
            if not state.stored or (state.parent_leg is None and not batch.approvals):
                running.base, past = await self._base(state, running.tenant, batch)
            leg = continuation(running, await self._settlement.revalidate(running, batch))
            if past is not None and not batch.approvals:
                leg = self._chains.backed(leg, past, running)
            return await self._pipe.open(running, leg)

        async with aclosing(self._pipe.events(running, opening, tee)) as blocks:
            async for _ in blocks:
                if not running.waits:
                    await tee.flush()
        if not running.waits:
            reached(Point.AFTER_TERMINAL)
            await self._tell(batch, "completed", state.last_leg)
            await tee.flush(end=True)
        logger.info("a held turn went on", extra={"turn": state.turn_id, "batch": batch.id})

    async def _still_runs(self, running: Running, batch: Batch) -> None:
        """Check that a background turn was not cancelled between two of its legs."""
        head = await self._turns.head(batch.tenant, batch.turn_id)
        if head is None or head.status not in RUNNING:
            raise Conflict("The response has ended.")
        if not batch.approvals:
            running.batch = batch
            await self._pipe.begin(running, batch)

    async def _base(
        self, state: TurnState, tenant: Tenant, batch: Batch
    ) -> tuple[Raw | None, Past | None]:
        """Write the first leg's input again: the chain as it is now, and the turn's own items."""
        own = [item_of(item.i) for item in state.items if item.o == "in"]
        if state.conversation_id:
            entries = await self._conversations.items(
                state.tenant, state.conversation_id, ttl=tenant.ttl
            )
            if entries is None:
                raise Conflict("The conversation was deleted meanwhile.", code="chain_deleted")
            return raw(replay([[entry.kept for entry in entries]], own)), None
        if state.parent is None:
            return (raw([item.raw for item in own]) if own else None), None
        window = state.window
        past = await self._chains.past(state, tenant)
        if past is None:
            raise Conflict("The chain was deleted while the turn was held.", code="chain_deleted")
        if not batch.approvals or state.window != window:
            # The first leg, or one whose model has read a window that is no more.
            past = await self._chains.compacted(past, state, tenant)
        return past.followed_by(state), past

    async def _make_up(self, running: Running) -> None:
        """Take into the turn what an earlier attempt has shown, so that the stream has no gap.

        The caller has seen its events. Items that it left open are closed as `incomplete`; the
        next leg's numbers and indexes begin after them.
        """
        state = running.state
        told = await self._following.told(state.tenant, state.turn_id, after=state.sequence - 1)
        if told is None or told.last < state.sequence:
            return
        state.sequence = told.last + 1
        shown: dict[int, Document] = {}
        done: set[int] = set()
        for block in told.blocks:
            for part in events.split(block):
                if isinstance(part, events.Frame) and part.type in events.ITEMS:
                    document = part.document()
                    index = int(bytes(document.get("output_index", raw(0))))
                    shown[index] = parse_document(document["item"])
                    if part.type == "response.output_item.done":
                        done.add(index)
        closing: list[tuple[int, bytes]] = []
        for index, item in sorted(shown.items()):
            if index not in done:
                item["status"] = raw("incomplete")
                closing.append((state.sequence, _closing(state.sequence, index, item)))
                state.sequence += 1
            state.items.append(Kept("lost", raw(item)))
        state.output_count += len(shown)
        if closing:
            ttl = running.tenant.ttl
            await self._log.append(state.tenant, state.turn_id, closing, ttl=ttl)

    async def _settle(self, batch: Batch, error: GatewayError, running: Running) -> None:
        """Decide what follows an attempt that did not come to its end (APPR-5)."""
        what = aftermath(batch, error, dispatched=running.dispatched)
        logger.warning(
            "a continuation failed",
            extra={
                "turn": batch.turn_id,
                "batch": batch.id,
                "code": error.code,
                "then": what.status.value,
                "upstream_request": running.upstream_request,
            },
        )
        if isinstance(error, ReceiptMismatch):
            await self._recorder.lock(running, error)
        if what.status is BatchStatus.FAILED:
            await self._tell(batch, "failed", error.code or "")
        held = await self._approvals.finish(
            batch.tenant,
            batch.id,
            fence=batch.fence,
            status=what.status,
            upstream_request=running.upstream_request,
            delay=what.delay,
        )
        if not held:
            return  # it was found in doubt meanwhile, and is looked after
        if what.status is BatchStatus.FAILED:
            await self._endings.end(batch, error)
        elif what.status is BatchStatus.INDETERMINATE:
            await self._in_doubt(batch)

    async def _look_after(self, batch: Batch, job: Job) -> None:
        """Do for a batch that nobody holds what its state asks for; a repeat does no harm."""
        match batch.status:
            case BatchStatus.INDETERMINATE:
                turn = await self._turns.head(batch.tenant, batch.turn_id)
                if turn is None or turn.status not in RUNNING:
                    await self._endings.end(batch, doubt())  # only its stream had not ended
                elif not batch.approvals:
                    await self._endings.end(batch, lost())
                elif job.event not in ("retry", "give_up"):
                    await self._in_doubt(batch)
                elif job.attempt == batch.fence:
                    await self._act(batch, job.event)
            case BatchStatus.ABANDONED:
                error, status = abandoned(batch)
                await self._tell(batch, "failed", error.code or "")
                await self._endings.end(batch, error, status=status)
            case BatchStatus.FAILED:
                await self._endings.end(batch, doubt())
            case BatchStatus.DONE:
                await self._close(batch)
            case _:
                pass  # somebody decides, or somebody holds it

    async def _in_doubt(self, batch: Batch) -> None:
        """See to answers of which nobody knows what they did: send them again, or ask a person."""
        again = repeated_alone(batch)
        if again:
            delay = backoff(batch.fence)
        elif not approves(batch):
            delay = 0.0  # what was denied cannot have run: there is nothing to ask a person
        else:
            await self._ask(batch)
            delay = max((one.timeout for one in batch.approvals), default=0.0)
        job = Job(
            token="",
            tenant=batch.tenant,
            kind="continue",
            subject=batch.id,
            event="retry" if again else "give_up",
            attempt=batch.fence,
        )
        await self._jobs.add(job, delay=delay)

    async def _ask(self, batch: Batch) -> None:
        """Put on record, and tell, that a person must choose: retry or rewind."""
        await self._tell(batch, "indeterminate", str(batch.fence))
        turn = await self._turns.read(batch.tenant, batch.turn_id)
        if turn is not None and turn.head.batch != batch.id:
            # The next hold had begun when its worker died.
            head = replace(turn.head, batch=batch.id)
            await self._turns.record(replace(turn, head=head), ttl=self._tenant(batch).ttl)

    async def _act(self, batch: Batch, event: str) -> None:
        if event == "retry":
            await self._approvals.retry(batch.tenant, batch.id, by="policy:repeatable")
        else:
            chosen = "Nobody chose in time whether to send the answers again."
            reason = chosen if approves(batch) else "The upstream's answer was lost each time."
            await self._approvals.rewind(batch.tenant, batch.id, by="timeout", reason=reason)

    async def cancel(self, batch: Batch) -> bool:
        """Cancel a held turn for its caller; false when it does not wait (any more)."""
        look = Job(token="", tenant=batch.tenant, kind="continue", subject=batch.id, event="look")
        await self._jobs.add(look, delay=self._lease)  # were this process to end in between
        reason = "The response was cancelled by its caller."
        running = read_state(batch.held).background
        if not await self._approvals.abandon(
            batch.tenant, batch.id, reason=reason, running=running
        ):
            return False
        turn = await self._turns.head(batch.tenant, batch.turn_id)
        if turn is not None and turn.status in RUNNING and turn.batch not in ("", batch.id):
            # It had just asked for the next approvals; nobody needs to decide them.
            await self._approvals.abandon(batch.tenant, turn.batch, reason=reason, running=True)
        await self._endings.end(batch, cancelled(), status="cancelled")
        return True

    async def _never_held(self, job: Job) -> None:
        """End a turn that is on record as waiting, but whose batch was never opened."""
        if job.event != "look":
            return
        turn = await self._turns.read(job.tenant, job.target)
        if turn is not None and turn.head.status in RUNNING and turn.head.batch == job.subject:
            error = GatewayError(
                "The gateway stopped while it put the turn on hold. Nothing was run.",
                code="hold_lost",
            )
            await self._endings.close(await self._endings.record(turn, error), error)

    async def _close(self, batch: Batch) -> None:
        """Tell of a turn whose worker died when all else was done, and end its stream."""
        turn = await self._turns.read(batch.tenant, batch.turn_id)
        if turn is None or turn.head.status in RUNNING:
            return
        if turn.head.last_leg == batch.next_response_id:
            await self._tell(batch, "completed", turn.head.last_leg)
        await self._endings.close(turn)

    async def _tell(self, batch: Batch, event: str, occurrence: str) -> None:
        if not batch.approvals:
            return  # nobody decided anything
        told = {"object": "response", "batch": batch.id, "status": event}
        await self._outbox.emit(
            batch.tenant,
            f"continuation.{event}",
            batch.turn_id,
            told,
            occurrence=f"{batch.id}:{occurrence}",
        )

    def _tenant(self, batch: Batch) -> Tenant:
        return self._tenants.get(batch.tenant, Tenant(id=batch.tenant))

    def _running(self, batch: Batch) -> Running:
        state = read_state(batch.held)
        return Running(
            state=state,
            tools=restore_tools(state.tools, self._servers),
            tenant=self._tenant(batch),
            view=View(state, has_mcp=True),
            held=True,
            recorded=True,
        )


def _closing(sequence: int, index: int, item: Document) -> bytes:
    kind = "response.output_item.done"
    return events.write(
        kind,
        {
            "type": raw(kind),
            "sequence_number": raw(sequence),
            "output_index": raw(index),
            "item": raw(item),
        },
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
