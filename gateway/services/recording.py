"""What is put on record of a turn, in its own record and in its conversation (CHAIN-4, CHAIN-5).

The pipe and its jobs record here; whoever ends a turn from outside does so in `endings.py`.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from gateway.domain.conversations import Progress, entry_of
from gateway.domain.documents import Document, encode, raw
from gateway.domain.errors import (
    Conflict,
    GatewayError,
    ResponseDeleted,
)
from gateway.domain.history import contents_of, ids_of, pack
from gateway.domain.ports import (
    AuditLog,
    ConversationStore,
    Meter,
    Outbox,
    Turn,
    TurnHead,
    TurnStore,
)
from gateway.domain.requests import conversation_of
from gateway.domain.turns import text_field
from gateway.services.endings import UNKEPT_TTL, count
from gateway.services.settlement import ReceiptMismatch, Running, id_reused

logger = logging.getLogger("gateway.turns")

LONGEST_NAME = 200
"""Characters of an upstream's name for something that go on record."""


class Overtaken(Conflict):
    """Another worker holds the batch: what this one knows of it is old, and it must not speak."""

    default_code = "already_continued"


class Recorder:
    """Records turns while they run, and how they end."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        outbox: Outbox,
        audit: AuditLog,
        meter: Meter,
    ) -> None:
        self._turns = turns
        self._conversations = conversations
        self._outbox = outbox
        self._audit = audit
        self._meter = meter

    async def record(
        self,
        running: Running,
        response: Document,
        *,
        batch: str = "",
        status: str | None = None,
        code: str | None = None,
    ) -> None:
        """Put a turn on record.

        Args:
            batch: The batch of approvals that it waits for, or that its caller is asked about.
            status: While it goes on; `None` where it ends, as its response says.
            code: Why it failed.

        Raises:
            Overtaken: A background turn was cancelled, or is another worker's by now.
            UpstreamDisconnected: Its id is another turn's.
            ResponseDeleted: It goes on and was deleted: nobody is asked about such a turn.
        """
        state = running.state
        ends = status is None
        if ends:
            self._count(running, response, code)
        if not state.keep and not running.held:
            return
        if ends and state.conversation_id:
            await self._converse(running, _status(response), code)
        shown = running.view.final(response) if ends else response
        turn = _turn(running, shown, status or _status(response), batch, code or "")
        new, running.recorded = not running.recorded, True
        # A background turn may be cancelled while it runs: then this end must not be written.
        claimed = running.batch if state.background else None
        try:
            written = await self._turns.record(
                turn,
                ttl=running.tenant.ttl if state.keep or not ends else UNKEPT_TTL,
                new=new,
                claim=(claimed.id, claimed.fence) if claimed else None,
            )
        except ResponseDeleted:
            if ends:
                return
            raise
        if not written and claimed is not None:
            raise Overtaken("The claim of the response was lost.")
        if not written:
            raise id_reused(state.turn_id)

    async def fail(self, running: Running, error: GatewayError) -> None:
        """Put a turn on record as ended by an error; raises as `record`."""
        told = {"code": error.code or "server_error", "message": error.message}
        shown = running.view.final(running.state.first)
        failed = {**shown, "status": raw("failed"), "error": raw(told)}
        await self.record(running, failed, code=error.code)

    async def keep_conversation(self, running: Running) -> None:
        """Keep a turn's conversation for it until it ends, in whatever process that is."""
        state = running.state
        if not state.conversation_id or state.lock == state.turn_id:
            return
        ttl = running.tenant.ttl
        await self._conversations.lock(
            state.tenant,
            state.conversation_id,
            state.turn_id,
            seconds=ttl,
            ttl=ttl,
            instead=state.lock,
        )
        state.lock = state.turn_id

    async def _converse(self, running: Running, status: str, code: str | None) -> None:
        """Take an ended turn into its conversation, before its terminal event leaves (CHAIN-5).

        A turn that failed leaves nothing there, and the next one may begin; one that was cancelled
        or deleted while it ran in background has lost its claim, and leaves nothing either.
        """
        state = running.state
        claimed = running.batch if state.background else None
        if code is None and status in ("completed", "incomplete"):
            await self._conversations.append(
                state.tenant,
                state.conversation_id,
                [entry_of(kept) for kept in state.items if kept.o != "lost"],
                ttl=running.tenant.ttl,
                token=state.lock,
                progress=Progress(state.facts),
                claim=(claimed.id, claimed.fence) if claimed else ("", 0),
            )
        else:
            await self._conversations.unlock(state.tenant, state.conversation_id, state.lock)

    async def leave_conversation(self, running: Running) -> None:
        """Let others work on a turn's conversation, unless the turn waits."""
        keeping, running.keeping = running.keeping, None
        if keeping is not None:
            keeping.cancel()
        state = running.state
        if state.conversation_id and not running.held:
            with contextlib.suppress(GatewayError):  # else it ends by its time
                await self._conversations.unlock(state.tenant, state.conversation_id, state.lock)

    def _count(self, running: Running, response: Document, code: str | None) -> None:
        state = running.state
        self.ended(running, _status(response), code=code)
        usage = state.usage
        self._meter.tokens(
            upstream=state.upstream,
            model=state.model,
            input=_number(usage.get("input_tokens")),
            output=_number(usage.get("output_tokens")),
        )
        for leg in state.trace:
            for reason, items in leg.withheld.items():
                self._meter.withheld(state.upstream, reason, items)

    def ended(self, running: Running, status: str, *, code: str | None = None) -> None:
        """Count and log the end of a turn: ids and names, never content (OPS-1)."""
        state = running.state
        seconds = count(self._meter, state, status)
        logger.info(
            "turn ended",
            extra={
                "request": state.request_id,
                "turn": state.turn_id,
                "upstream": state.upstream,
                "upstream_request": running.upstream_request,
                "tenant": state.tenant,
                "key": state.key_id,
                "status": status,
                "code": code,
                "legs": state.legs,
                "ms": round(seconds * 1000, 1),
            },
        )

    async def lock(self, running: Running, error: ReceiptMismatch) -> None:
        """Put a call that nobody approved on record, and let no turn go on from it (APPR-7).

        The turn itself is no parent any more; a conversation would hold what it did, so it is
        locked as well.
        """
        state = running.state
        await self._audit.note(
            state.tenant,
            "approval.receipt_mismatch",
            actor="gateway",
            subject=error.approval_id or state.turn_id,
            detail={
                "response_id": state.turn_id,
                "upstream_response_id": state.last_leg,
                "server_label": error.server[:LONGEST_NAME],
                "tool": error.tool[:LONGEST_NAME],
                "upstream_request_id": running.upstream_request,
            },
        )
        told = {"object": "response", "status": "failed", "code": error.code}
        await self._outbox.emit(
            state.tenant,
            "approval.receipt_mismatch",
            state.turn_id,
            told,
            occurrence=state.last_leg,
        )
        if state.conversation_id:
            await self._conversations.append(
                state.tenant,
                state.conversation_id,
                (),
                ttl=running.tenant.ttl,
                token=state.lock,
                progress=Progress(state.facts, error.code or ""),
            )
        conversation = conversation_of(state.body)
        turn = await self._turns.read(state.tenant, conversation) if conversation else None
        if turn is not None:
            head = replace(turn.head, code=error.code or "")
            await self._turns.record(replace(turn, head=head), ttl=running.tenant.ttl)


def _turn(running: Running, shown: Document, status: str, batch: str, code: str) -> Turn:
    state = running.state
    served = not state.stored or state.legs > 1 or running.held or code != ""
    head = TurnHead(
        id=state.turn_id,
        tenant=state.tenant,
        upstream=state.upstream,
        end_user=state.end_user,
        parent=state.parent,
        last_leg=state.last_leg,
        status=status,
        stored=state.stored,
        legs=state.legs,
        subject=state.subject,
        model=state.model,
        batch=batch,
        served=served,
        facts=state.facts,
        code=code,
        began=state.started_at,
        trace=tuple(state.trace),
        conversation=state.conversation_id,
        window=state.window,
        compacted=state.compacted,
    )
    return Turn(
        head=head,
        items=pack(state.items) if state.keep else b"",
        # One whose caller is asked is shown to who chooses for it (APPR-5).
        response=running.scrubber.scrub(encode(shown)) if served or batch else b"",
        item_ids=ids_of(state.items) if state.keep else (),
        contents=contents_of(state.items) if state.keep and not state.stored else (),
    )


def _status(response: Document) -> str:
    return text_field(response, "status") or "completed"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
