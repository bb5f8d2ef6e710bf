"""Create a response: one pipe, as a stream or as JSON (API-1, APPR-3, STREAM-1, STREAM-2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import msgspec
from typing_extensions import override

from gateway.domain.conversations import LOCK, RENEW
from gateway.domain.documents import Document, encode, raw
from gateway.domain.errors import GatewayError, StoreUnavailable, UpstreamDisconnected
from gateway.domain.events import COMMENT
from gateway.domain.ports import ApprovalStore, ByteStream, ConversationStore, EventLog
from gateway.domain.requests import Bounds, parse_create
from gateway.domain.turns import View
from gateway.services.callers import Caller
from gateway.services.chains import Chains, Past
from gateway.services.following import Following
from gateway.services.health import Health
from gateway.services.interception import json_result
from gateway.services.legs import Leg
from gateway.services.notices import Notices, wants_notices
from gateway.services.pipe import Ended, Held, Next, Pipe, Tee
from gateway.services.preparation import Preparation, Prepared
from gateway.services.records import Answer, EventStream, Records, gateway_field
from gateway.services.settlement import Running

EARLY = 10.0
"""Seconds after which a stream is opened to the caller although the upstream is silent, with a
comment (APPR-3); an error then arrives as an event."""

_BUFFER = 1 << 20


class LogTee(Tee):
    """Copies the caller's stream into the turn's event log when it is flushed.

    Up to `_BUFFER` bytes wait in memory for a hold that may not come; beyond, the log is written
    as the stream goes, so memory stays bounded (STREAM-1).
    """

    keeps = True

    def __init__(self, log: EventLog, running: Running) -> None:
        self._log = log
        self._running = running
        self._blocks: list[tuple[int, bytes]] = []
        self._size = 0
        self.begun = False

    @override
    def add(self, sequence: int, block: bytes) -> None:
        """Take a block."""
        if self._size > _BUFFER and not self._running.state.keep:
            # Nothing is kept of such a turn before it is held; a re-reader then begins later.
            self._blocks, self._size = [], 0
        self._blocks.append((sequence, block))
        self._size += len(block)

    @property
    def full(self) -> bool:
        """Whether more should not be kept in memory."""
        state = self._running.state
        return self._size > _BUFFER and state.keep and state.turn_id != ""

    @override
    async def flush(self, *, end: bool = False) -> None:
        """Write what was taken."""
        if not self._blocks and not end:
            return
        blocks, self._blocks, self._size = self._blocks, [], 0
        state = self._running.state
        self.begun = True
        await self._log.append(
            state.tenant, state.turn_id, blocks, ttl=self._running.tenant.ttl, end=end
        )


class TurnService:
    """Creates responses."""

    def __init__(
        self,
        *,
        preparation: Preparation,
        pipe: Pipe,
        chains: Chains,
        records: Records,
        approvals: ApprovalStore,
        conversations: ConversationStore,
        log: EventLog,
        following: Following,
        health: Health,
        bounds: Bounds,
        early: float = EARLY,
    ) -> None:
        self._preparation = preparation
        self._pipe = pipe
        self._chains = chains
        self._records = records
        self._approvals = approvals
        self._conversations = conversations
        self._log = log
        self._following = following
        self._health = health
        self._bounds = bounds
        self._early = early

    async def create(
        self, caller: Caller, document: Document, *, wait: float
    ) -> Answer | EventStream:
        """Create a response, as the body's `stream` says.

        Args:
            wait: Seconds to hold a JSON answer for a person's decision (`Prefer: wait=N`).

        Raises:
            GatewayError: Refused by the gateway or by the upstream; nothing was streamed yet.
        """
        request = parse_create(document, self._bounds)
        keeps_nothing = caller.tenant.cache == "off" and (
            caller.tenant.stateless or request.store is False
        )
        if not keeps_nothing:
            self._health.require_store()
        prepared = await self._preparation.prepare(caller, request)
        if prepared.join is not None:
            return await self._join(caller, prepared.join, streamed=request.stream, wait=wait)
        running = self._running(caller, prepared)
        if prepared.state.lock:
            running.keeping = asyncio.ensure_future(self._keep(running))
        if prepared.state.background:
            return await self._queued(running, wait, notices=wants_notices(caller))
        leg = Leg(
            state=prepared.state,
            tools=prepared.tools,
            input=prepared.input,
            previous=prepared.previous,
            first=running.batch is None,
        )
        # The lease of answers that are sent with the turn would not outlast a compaction.
        past = prepared.past if running.batch is None else None
        if request.stream:
            return await self._stream(running, leg, past, notices=wants_notices(caller))
        return await self._json(running, leg, past, wait)

    async def _ready(self, running: Running, leg: Leg, past: Past | None) -> Leg:
        """Compact what was before a leg where that is due: its stream may be open meanwhile."""
        if past is None:
            return leg
        if past.due:
            past = await self._chains.compacted(past, running.state, running.tenant)
            running.base = past.followed_by(running.state)
            leg = replace(leg, input=running.base)
        return self._chains.backed(leg, past, running)

    def _running(self, caller: Caller, prepared: Prepared) -> Running:
        state = prepared.state
        return Running(
            state=state,
            tools=prepared.tools,
            tenant=caller.tenant,
            view=View(state, has_mcp=bool(prepared.tools.attachments)),
            base=prepared.input if prepared.previous is None else None,
            batch=prepared.answers.batch if prepared.answers else None,
        )

    async def _stream(
        self, running: Running, leg: Leg, past: Past | None, *, notices: bool
    ) -> EventStream:
        async def opened() -> ByteStream:
            return await self._pipe.open(running, await self._ready(running, leg, past))

        opening = asyncio.ensure_future(opened())

        async def close() -> None:
            await _close_unused(opening)
            await self._pipe.release(running)

        try:
            await asyncio.wait({opening}, timeout=self._early)
            headers = opening.result().headers if opening.done() else {}
        except GatewayError as exc:
            await self._pipe.failed(running, exc)
            await self._pipe.release(running)
            raise
        except BaseException:
            await close()
            raise
        return EventStream(headers, self._events(running, opening, notices), close)

    async def _events(
        self, running: Running, opening: asyncio.Future[ByteStream], notices: bool
    ) -> AsyncGenerator[bytes, None]:
        async def first() -> ByteStream:
            return await opening

        if not opening.done():
            yield COMMENT
        tee = LogTee(self._log, running) if running.tools.attachments else Tee()
        async with aclosing(self._pipe.events(running, first, tee)) as blocks:
            async for block in blocks:
                yield block
                del block
                if isinstance(tee, LogTee) and tee.full:
                    await tee.flush()
        if isinstance(tee, LogTee) and tee.begun and not running.waits:
            await tee.flush(end=True)
        if running.waits:
            state = running.state
            look = Notices(self._approvals, state.tenant, state.turn_id).look if notices else None
            followed = self._following.events(
                state.tenant, state.turn_id, after=state.sequence - 1, notices=look
            )
            async with aclosing(followed) as blocks:
                async for block in blocks:
                    yield block
                    del block

    async def _keep(self, running: Running) -> None:
        """Keep a turn's conversation from other turns while this process runs it."""
        state, ttl = running.state, running.tenant.ttl
        token, kept = state.lock, True
        while kept:
            await asyncio.sleep(RENEW)
            with contextlib.suppress(StoreUnavailable):
                kept = await self._conversations.lock(
                    state.tenant, state.conversation_id, token, seconds=LOCK, ttl=ttl
                )

    async def _queued(
        self, running: Running, wait: float, *, notices: bool
    ) -> Answer | EventStream:
        """Run a turn as a job, and answer with a view on it (STREAM-3)."""
        state = running.state
        try:
            await self._pipe.queue(running, LogTee(self._log, running) if state.streamed else Tee())
        finally:
            await self._pipe.release(running)
        if not state.streamed and not wait:  # what it is by now, a worker may have changed already
            return Answer(body=running.scrubber.scrub(encode(state.first)))
        if not state.streamed:
            return await self._records.wait(state.tenant, state.turn_id, seconds=wait)
        look = Notices(self._approvals, state.tenant, state.turn_id).look if notices else None
        followed = self._following.events(state.tenant, state.turn_id, after=-1, notices=look)
        return EventStream({}, followed)

    async def _json(self, running: Running, leg: Leg, past: Past | None, wait: float) -> Answer:
        try:
            return await self._json_legs(running, await self._ready(running, leg, past), wait)
        except GatewayError as exc:
            await self._pipe.failed(running, exc)
            raise
        finally:
            await self._pipe.release(running)

    async def _json_legs(self, running: Running, leg: Leg, wait: float) -> Answer:
        while True:
            answer = await self._pipe.send(running, leg)
            try:
                result = json_result(answer.body)
            except msgspec.DecodeError as exc:
                raise UpstreamDisconnected(
                    "The upstream's answer is not a JSON object.", code="upstream_malformed"
                ) from exc
            outcome = await self._pipe.settle(running, result)
            match outcome:
                case Next(leg=following):
                    leg = following
                case Held():
                    state = running.state
                    return await self._records.wait(state.tenant, state.turn_id, seconds=wait)
                case Ended(batch=batch):
                    body = answer.body
                    if running.view.changes_final(result.response) or batch is not None:
                        shown = running.view.final(result.response)
                        if batch is not None:
                            shown["gateway"] = raw(gateway_field(batch))
                        body = encode(shown)
                    return Answer(headers=answer.headers, body=running.scrubber.scrub(body))

    async def _join(
        self, caller: Caller, turn_id: str, *, streamed: bool, wait: float
    ) -> Answer | EventStream:
        tenant = caller.tenant.id
        if streamed and await self._following.exists(tenant, turn_id):
            return EventStream({}, self._following.events(tenant, turn_id, after=-1))
        return await self._records.wait(tenant, turn_id, seconds=wait)


async def _close_unused(opening: asyncio.Future[ByteStream]) -> None:
    """Close an upstream stream whose reader has gone, opened or still opening (STREAM-2)."""
    opening.cancel()
    await asyncio.wait({opening})
    if not opening.cancelled() and opening.exception() is None:
        await opening.result().aclose()
