"""The one pipe of every turn: leg, intercept, settle, record (APPR-1, APPR-2, CHAIN-4, STREAM-1).

    open leg ─> events through the interceptor ─> settle ─┬─ nothing asked ─> record ─> terminal
        ^                                                 ├─ rules decided ─> dispatch ─┐
        └─────────────────────────────────────────────────┼─────────────────────────────┘
                                                          └─ a person decides ─> held

The caller's stream, a JSON answer and a continuation on another replica run the same steps; they
differ in where the bytes go. From its first hold on, each leg of a turn is a job of its own, so
that a crash in any of them leaves a job behind and never a turn that nobody ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from gateway.domain import events
from gateway.domain.approvals import Approval, ApprovalStatus, Batch, BatchStatus, withdrawn
from gateway.domain.documents import NULL, Raw, encode, parse_array, raw
from gateway.domain.errors import (
    GatewayError,
    UpstreamDisconnected,
    UpstreamRefused,
)
from gateway.domain.history import Kept
from gateway.domain.own_response import own_response
from gateway.domain.ports import (
    ApprovalStore,
    ByteStream,
    Job,
    JobQueue,
    Meter,
    UpstreamAnswer,
)
from gateway.domain.scrubbing import Scrubber
from gateway.domain.turns import FIRST_RUN, TurnState
from gateway.services.answers import LEASE, responses
from gateway.services.failpoints import Point, reached
from gateway.services.failures import as_error, batch_after, unknown_response
from gateway.services.interception import Interceptor, LegResult
from gateway.services.legs import Leg, Legs, request_id
from gateway.services.recording import Overtaken, Recorder
from gateway.services.settlement import ReceiptMismatch, Running, Settlement

logger = logging.getLogger("gateway.turns")


READ_ON = 0.1
"""Seconds that the end of an upstream's body may take after its terminal event."""

LOOK_LATER = 3
"""Leases after which a worker looks whether a turn that was to be held has its batch."""


@dataclass(frozen=True, slots=True)
class Next:
    """The turn goes on at once with another leg."""

    leg: Leg


@dataclass(frozen=True, slots=True)
class Held:
    """A person decides; the turn goes on as a job."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Ended:
    """The turn is over and on record; `batch` where the caller itself is asked."""

    batch: Batch | None = None


Outcome = Next | Held | Ended


class Tee:
    """Keeps a copy of the caller's stream for whoever joins later; this one keeps nothing."""

    keeps = False
    """Whether blocks are wanted; numbering each of them costs time."""

    def add(self, sequence: int, block: bytes) -> None:
        """Take a block and the `sequence_number` of its last event."""

    async def flush(self, *, end: bool = False) -> None:
        """Write what was taken to the event log."""


class Pipe:
    """Runs turns."""

    def __init__(
        self,
        *,
        legs: Legs,
        settlement: Settlement,
        recorder: Recorder,
        approvals: ApprovalStore,
        jobs: JobQueue,
        meter: Meter,
        lease: float = LEASE,
        version: str = "",
    ) -> None:
        self._lease = lease
        self._version = version
        self._jobs = jobs
        self._legs = legs
        self._settlement = settlement
        self._recorder = recorder
        self._approvals = approvals
        self._meter = meter

    async def open(self, running: Running, leg: Leg) -> ByteStream:
        """Open a leg's stream, with fresh secrets, dispatched first where it answers a batch."""
        tools, running.scrubber = await self._legs.join(running.tools, running.state.upstream)
        await self._dispatch(running)
        running.leg_began = time.time()
        with _scrubbed(running.scrubber):
            stream = await self._legs.open(leg, tools)
        if running.dispatched:
            reached(Point.AFTER_POST)
        running.upstream_request = request_id(stream.headers)
        return stream

    async def send(self, running: Running, leg: Leg) -> UpstreamAnswer:
        """Send a leg and read its JSON."""
        tools, running.scrubber = await self._legs.join(running.tools, running.state.upstream)
        await self._dispatch(running)
        running.leg_began = time.time()
        with _scrubbed(running.scrubber):
            answer = await self._legs.send(leg, tools)
        running.upstream_request = request_id(answer.headers)
        return answer

    async def _dispatch(self, running: Running) -> None:
        """Write `dispatched` before the request leaves: it is sent at most once (APPR-5)."""
        batch = running.batch
        running.dispatched = False
        running.upstream_request = ""
        if batch is None:
            return
        reached(Point.BEFORE_DISPATCH)
        if not await self._approvals.dispatch(
            running.state.tenant, batch.id, fence=batch.fence, superseded=withdrawn(batch)
        ):
            running.batch = None
            raise Overtaken("The approvals were continued elsewhere.")
        running.dispatched = True
        reached(Point.AFTER_DISPATCH)

    async def events(
        self, running: Running, opening: Callable[[], Awaitable[ByteStream]], tee: Tee
    ) -> AsyncGenerator[bytes, None]:
        """Yield the caller's stream until the turn ends or is held.

        Errors become an `error` event and `response.failed`, never a silent end (API-5). Those of
        a turn that was held are raised: the job that goes on with it decides what follows.

        Args:
            opening: Opens the first leg's stream, or hands over the open one.
        """
        by_job = running.held
        reader = Interceptor(running.state, running.view, running.scrubber)
        try:
            stream = await opening()
            while True:
                reader = Interceptor(running.state, running.view, running.scrubber)
                leg = self._leg(stream, reader, tee)
                if _in_background(running.state):
                    leg = self._begun(running, leg)
                async with aclosing(leg) as blocks:
                    async for block in blocks:
                        yield block
                        del block  # or it would stay while the next is awaited, in each stream
                if running.state.legs == 0 and reader.first_event_at is not None:
                    seconds = reader.first_event_at - running.state.started_at
                    self._meter.first_event(upstream=running.state.upstream, seconds=seconds)
                result = _ended(reader)
                running.state.sequence = reader.sequence
                outcome = await self._settle(running, result, tee)
                if not isinstance(outcome, Next):
                    break
                stream = await self.open(running, outcome.leg)
            if isinstance(outcome, Ended):
                if running.held:
                    reached(Point.BEFORE_TERMINAL)
                block = reader.terminal_frame()
                tee.add(reader.sequence, block)
                yield block
        except Exception as exc:  # a stream never ends silently (API-5)
            if by_job:
                running.batch = None
                raise
            block = await self._failed(running, reader, as_error(exc))
            tee.add(reader.sequence + 1, block)
            yield block
        finally:
            await self.release(running)

    async def _leg(
        self, stream: ByteStream, reader: Interceptor, tee: Tee
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(stream):
            chunks = aiter(stream)
            async for chunk in chunks:
                block = reader.feed(chunk)
                if block:
                    if tee.keeps:
                        tee.add(reader.sequence - 1, block)
                    yield block
                if reader.fault is not None:
                    raise reader.fault
                if reader.result is not None:
                    await _read_on(chunks, reader)
                    return
                del chunk, block
            block = reader.finish()
            if block:
                tee.add(reader.sequence - 1, block)
                yield block

    async def _begun(
        self, running: Running, leg: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Put a background turn on record once it has an id: it outlives its reader (STREAM-2)."""
        noted = False
        async with aclosing(leg) as blocks:
            async for block in blocks:
                if not noted and running.state.turn_id:
                    noted = True
                    await self._recorder.record(running, running.state.first, status="queued")
                yield block

    async def settle(self, running: Running, result: LegResult) -> Outcome:
        """Settle a JSON leg."""
        return await self._settle(running, result, Tee())

    async def _settle(self, running: Running, result: LegResult, tee: Tee) -> Outcome:
        """Settle a leg; what follows is on record before the batch that it answers is done.

        A crash in between leaves a batch whose lease lapses, and never a turn that nobody ends.
        """
        answered = running.batch
        outcome = await self._follow(running, result, tee)
        if answered is not None:
            reached(Point.BEFORE_FINISH)
            await self._finish(running, answered, BatchStatus.DONE, result.id)
            if running.batch is answered:
                running.batch = None
        return outcome

    async def _follow(self, running: Running, result: LegResult, tee: Tee) -> Outcome:
        approvals = await self._settlement.note(running, result)
        if not approvals:
            await self._recorder.record(running, result.response)
            return Ended()
        pending = [one for one in approvals if one.status is ApprovalStatus.PENDING]
        if not pending and not running.held:
            batch = await self._settlement.open(running, approvals, held=b"", lease=self._lease)
            return Next(continuation(running, await self._settlement.revalidate(running, batch)))
        if any(one.by == "caller" for one in pending):
            batch = await self._settlement.open(running, approvals, held=b"", lease=None)
            await self._recorder.record(running, result.response, batch=batch.id)
            return Ended(batch)
        return await self._hold(running, result, approvals, tee)

    async def _hold(
        self, running: Running, result: LegResult, approvals: Sequence[Approval], tee: Tee
    ) -> Held:
        """Put the turn on record as waiting, before the batch can be decided anywhere."""
        running.held = True
        await self._let_go(running, result.id, tee)
        shown = {**running.view.final(result.response), "status": raw("in_progress")}
        await self._recorder.record(running, shown, batch=result.id, status="in_progress")
        held = encode(running.state)
        reached(Point.BEFORE_OPEN_BATCH)
        batch = await self._settlement.open(running, approvals, held=held, lease=None)
        reached(Point.AFTER_OPEN_BATCH)
        running.waits = True
        return Held(batch)

    async def queue(self, running: Running, tee: Tee) -> None:
        """Make a background turn a job, before anything of it is sent (STREAM-3).

        Its batch has no approvals: claim, lease, fence and `dispatched` do
        for its first leg what they do for answers.
        """
        state = running.state
        running.held = True
        state.turn_id = "resp_" + secrets.token_hex(24)
        state.first = own_response(state, status="queued")
        opened: list[bytes] = []
        for kind in ("response.created", "response.queued"):
            event = {
                "type": raw(kind),
                "sequence_number": raw(state.sequence),
                "response": raw(state.first),
            }
            opened.append(events.write(kind, event))
            state.sequence += 1
        tee.add(state.sequence - 1, b"".join(opened))
        batch_id = FIRST_RUN + secrets.token_hex(24)
        await self._let_go(running, batch_id, tee)
        await self._recorder.record(running, state.first, batch=batch_id, status="queued")
        await self._approvals.open_batch(
            tenant=state.tenant,
            batch_id=batch_id,
            turn_id=state.turn_id,
            approvals=(),
            held=encode(state),
            ttl=running.tenant.ttl,
        )

    async def begin(self, running: Running, batch: Batch) -> None:
        """Put a background turn on record as running."""
        shown = {**running.state.first, "status": raw("in_progress")}
        await self._recorder.record(running, shown, batch=batch.id, status="in_progress")

    async def _let_go(self, running: Running, batch_id: str, tee: Tee) -> None:
        """Prepare for other replicas: the events so far, and a look at what became of the turn.

        Were this process to end before the batch is there, nobody else would ever end the turn.
        """
        state = running.state
        state.version = self._version
        await self._recorder.keep_conversation(running)
        await tee.flush()
        look = Job(
            token="",
            tenant=state.tenant,
            kind="continue",
            subject=batch_id,
            event="look",
            target=state.turn_id,
        )
        await self._jobs.add(look, delay=LOOK_LATER * self._lease)

    async def _finish(
        self, running: Running, batch: Batch, status: BatchStatus, next_id: str | None = None
    ) -> None:
        await self._approvals.finish(
            running.state.tenant,
            batch.id,
            fence=batch.fence,
            status=status,
            next_response_id=next_id,
            upstream_request=running.upstream_request,
        )

    async def failed(self, running: Running, error: GatewayError) -> None:
        """Note that a turn failed: its batch, its record where it was held, and its metrics."""
        batch, running.batch = running.batch, None
        locked = isinstance(error, ReceiptMismatch)
        try:
            if isinstance(error, ReceiptMismatch):
                await self._recorder.lock(running, error)
            if batch is not None:
                await self._finish(running, batch, batch_after(running, error))
            if running.held or locked:
                await self._recorder.fail(running, error)
        except GatewayError:
            logger.exception("a failed turn could not be recorded")
        if not running.held and not locked:
            self._recorder.ended(running, "error", code=error.code)

    async def _failed(self, running: Running, reader: Interceptor, error: GatewayError) -> bytes:
        await self.failed(running, error)
        response = running.state.first or unknown_response(running)
        code, message = reader.told or (error.code, error.message)
        return running.scrubber.scrub(
            events.error_frames(
                sequence=reader.sequence,
                kind=error.type,
                code=code,
                message=message,
                response=running.view.response(response),
                told=reader.told is not None,
            )
        )

    async def release(self, running: Running) -> None:
        """End what a turn held that is over, or was left by its caller.

        What an open batch ran is not known.
        """
        await self._recorder.leave_conversation(running)
        batch, running.batch = running.batch, None
        if batch is not None:
            status = BatchStatus.INDETERMINATE if running.dispatched else BatchStatus.READY
            try:
                await self._finish(running, batch, status)
            except GatewayError:
                logger.exception("a batch could not be released")


@contextmanager
def _scrubbed(scrubber: Scrubber) -> Iterator[None]:
    """Take the turn's secrets out of an upstream's error, which may repeat the request (MCP-3)."""
    try:
        yield
    except UpstreamRefused as exc:
        exc.body = scrubber.scrub(exc.body)
        raise


async def _read_on(chunks: AsyncIterator[bytes], reader: Interceptor) -> None:
    """Read what follows the terminal event, so that the connection can be used again.

    It is there at once or does not matter: then the connection is closed instead.
    """
    with contextlib.suppress(TimeoutError, GatewayError):
        async with asyncio.timeout(READ_ON):
            async for chunk in chunks:
                if reader.feed(chunk) or reader.passed_end:
                    return


def continuation(running: Running, batch: Batch) -> Leg:
    """Write the leg that answers a decided batch; upstream wants all answers at once."""
    state = running.state
    running.batch = batch
    if not batch.approvals:
        return _first_of_background(running)
    answers = responses(batch)
    state.items.extend(Kept("gw", answer) for answer in answers)
    if not state.stored:
        made = [item.i for item in state.items if item.o not in ("in", "lost")]
        return Leg(
            state=state,
            tools=running.tools,
            input=raw(_first_input(running) + made),
            previous=None,
            first=False,
        )
    return Leg(
        state=state,
        tools=running.tools,
        input=raw(answers),
        previous=None if state.conversation else state.last_leg,
        first=False,
    )


def _first_of_background(running: Running) -> Leg:
    state = running.state
    asked = running.base
    if state.parent_leg is not None:  # the upstream holds what was before
        asked = state.asked if bytes(state.asked) != b"null" else None
    return Leg(state=state, tools=running.tools, input=asked, previous=state.parent_leg)


def _in_background(state: TurnState) -> bool:
    return bytes(state.body.get("background", NULL)) == b"true"


def _first_input(running: Running) -> list[Raw]:
    data = bytes(running.base) if running.base is not None else b""
    if data[:1] == b"[":
        return parse_array(data)
    return [item.i for item in running.state.items if item.o == "in"]  # a string, as an item


def _ended(reader: Interceptor) -> LegResult:
    if reader.result is None:
        raise UpstreamDisconnected(
            "The upstream ended the stream without a terminal event.", code="upstream_incomplete"
        )
    return reader.result
