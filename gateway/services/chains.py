"""What a turn goes on from: its chain, compacted where that is due (STATE-1, STATE-6).

Compaction saves tokens and guards nothing, so it fails open: where the upstream does not offer it
or is in trouble, the turn goes on with the whole chain.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from gateway.domain.compaction import (
    COMPACT,
    compacted_output,
    compaction_body,
    is_due,
    manages_itself,
)
from gateway.domain.documents import NULL, Raw, parse_document, raw
from gateway.domain.errors import GatewayError, UpstreamError, UpstreamRefused
from gateway.domain.history import Kept, closed, guarded, pack, replay, unpack
from gateway.domain.identity import Tenant
from gateway.domain.ports import Meter, TurnStore, UpstreamAnswer, Window
from gateway.domain.registry import Model
from gateway.domain.requests import item_of
from gateway.domain.tools import Tools
from gateway.domain.trace import LegSummary, summarize
from gateway.domain.turns import TurnState, text_field
from gateway.services.callers import previous_not_found
from gateway.services.legs import Leg, Legs, request_id
from gateway.services.settlement import Running

logger = logging.getLogger("gateway.chains")

PATIENCE = 120.0
"""Seconds that a compaction may take."""

NOT_OFFERED, IN_TROUBLE = 600.0, 30.0
"""Seconds for which an upstream is not asked again, by what it said."""

_NO_SUCH_PATH = frozenset({404, 405, 501})


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What was before a turn.

    Attributes:
        items: As they are sent upstream; those of the window first.
        window: What takes the place of the first turns.
        due: Whether it is to be compacted before it is sent.
    """

    items: Sequence[Kept]
    window: Window | None = None
    due: bool = False

    def followed_by(self, state: TurnState) -> Raw:
        """Write the whole input of the turn's first leg."""
        own = [item_of(item.i) for item in state.items if item.o == "in"]
        held = self.window.held if self.window is not None else ()
        return raw(replay([self.items], own, held=held))


class Chains:
    """Reads chains, and compacts them."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        legs: Legs,
        models: Mapping[str, Model],
        meter: Meter,
        patience: float = PATIENCE,
    ) -> None:
        self._turns = turns
        self._legs = legs
        self._models = models
        self._meter = meter
        self._patience = patience
        self._paused: dict[tuple[str, str], float] = {}

    async def past(self, state: TurnState, tenant: Tenant) -> Past | None:
        """Read what was before a turn; `None` when not all of it is there any more."""
        model = text_field(state.body, "model")
        chain = await self._turns.chain(
            state.tenant,
            state.parent or "",
            ttl=tenant.ttl,
            chain_id=state.facts.id,
            model=model,
        )
        if chain is None:
            return None
        items = unpack(chain.window.items) if chain.window is not None else []
        for turn in chain.turns:
            items += unpack(turn.items)
        threshold = self._threshold(state, tenant)
        due = bool(threshold and model and state.facts.id) and is_due(chain, threshold)
        state.window = chain.window.turn_id if chain.window is not None else ""
        return Past(items=items, window=chain.window, due=due)

    def _threshold(self, state: TurnState, tenant: Tenant) -> int:
        """Say at how many tokens a chain is compacted; 0 is never."""
        if manages_itself(state.body):
            return 0
        model = self._models.get(state.model)
        if model is not None and model.compact_at_tokens is not None:
            return model.compact_at_tokens
        return tenant.compact_at_tokens or 0

    async def compacted(self, past: Past, state: TurnState, tenant: Tenant) -> Past:
        """Compact what was before a turn, if that is due and can be done.

        Raises:
            NotFound: A turn of the chain was deleted meanwhile.
            StoreUnavailable: The window cannot be kept.
        """
        place = (state.upstream, text_field(state.body, "model"))
        if not past.due or time.monotonic() < self._paused.get(place, 0.0):
            return past
        try:
            count = closed(past.items)
            if count <= (len(unpack(past.window.items)) if past.window is not None else 0):
                return past  # all that is new waits for an answer
            output = await self._ask(past.items[:count], state)
        except (GatewayError, TimeoutError, ValueError, msgspec.DecodeError) as exc:
            self._give_up(place, state, exc)
            return past
        before = past.window
        window = await self._turns.keep_window(
            state.tenant,
            Window(
                turn_id=state.parent or "",
                model=place[1],
                items=pack([*(Kept("in", item) for item in output), *past.items[count:]]),
                held=(
                    *(before.held if before is not None else ()),
                    *guarded(past.items[:count]),
                ),
                before=before.turn_id if before is not None else "",
            ),
            ttl=tenant.ttl,
            chain_id=state.facts.id,
            # The one before stays for turns that go on from a little earlier; none older does.
            drop=before.before if before is not None else "",
        )
        if window is None:
            raise previous_not_found(state.parent or "")
        state.window = window.turn_id
        return Past(items=unpack(window.items), window=window)

    def backed(self, leg: Leg, past: Past, running: Running) -> Leg:
        """Let a leg be sent whole, should the upstream not be able to read its window (STATE-5)."""
        window = past.window
        if window is None:
            return leg

        async def whole() -> Raw:
            running.base = await self._without(window, running.state, running.tenant)
            return running.base

        return replace(leg, whole=whole)

    async def _without(self, window: Window, state: TurnState, tenant: Tenant) -> Raw:
        """Write a turn's input from the turns alone, and drop the window that was refused."""
        turn_id = state.parent or ""
        chain = await self._turns.chain(state.tenant, turn_id, ttl=tenant.ttl)
        if chain is None:
            raise previous_not_found(turn_id)
        await self._turns.drop_window(state.tenant, window)
        self._pause((state.upstream, window.model), NOT_OFFERED)
        state.window = ""
        items = [kept for turn in chain.turns for kept in unpack(turn.items)]
        return Past(items=items).followed_by(state)

    async def _ask(self, items: Sequence[Kept], state: TurnState) -> list[Raw]:
        """Have the upstream compact some items, and note in the turn what it took."""
        asked = msgspec.structs.replace(state, body=compaction_body(state.body))
        leg = Leg(state=asked, tools=Tools(()), input=raw(replay([items], ())), previous=None)
        began = time.time()
        async with asyncio.timeout(self._patience):
            answer = await self._legs.send(leg, None, COMPACT)
        output = compacted_output(answer.body)
        summary = _summary(answer, began)
        state.compacted = summary
        state.facts = msgspec.structs.replace(
            state.facts, tokens=state.facts.tokens + summary.tokens
        )
        self._meter.compaction(state.upstream, "done")
        self._meter.tokens(
            upstream=state.upstream,
            model=state.model,
            input=summary.input_tokens,
            output=summary.output_tokens,
        )
        logger.info(
            "a chain was compacted",
            extra={
                **_where(state),
                "upstream_request": summary.request,
                "tokens": summary.input_tokens,
                "ms": round((summary.ended - began) * 1000, 1),
            },
        )
        return output

    def _pause(self, place: tuple[str, str], seconds: float) -> None:
        now = time.monotonic()
        self._paused = {one: until for one, until in self._paused.items() if until > now}
        self._paused[place] = now + seconds

    def _give_up(self, place: tuple[str, str], state: TurnState, error: Exception) -> None:
        """Note that a turn goes on uncompacted, and ask less where asking again is in vain."""
        status = error.status_code if isinstance(error, UpstreamRefused) else 0
        seconds = _how_long(error, status)
        if seconds:
            self._pause(place, seconds)
        self._meter.compaction(state.upstream, "failed")
        logger.warning(
            "a chain could not be compacted; the turn goes on with all of it",
            extra={
                **_where(state),
                "status": status,
                "code": getattr(error, "code", None) or type(error).__name__,
                "pause": seconds,
            },
        )


def _how_long(error: Exception, status: int) -> float:
    if status in _NO_SUCH_PATH:
        return NOT_OFFERED
    refused = isinstance(error, UpstreamRefused) and status < 500 and status != 429
    return IN_TROUBLE if isinstance(error, UpstreamError | TimeoutError) and not refused else 0.0


def _summary(answer: UpstreamAnswer, began: float) -> LegSummary:
    document = parse_document(answer.body)
    return summarize(
        text_field(document, "id"),
        document.get("usage", NULL),
        request=request_id(answer.headers),
        began=began,
        ended=time.time(),
    )


def _where(state: TurnState) -> dict[str, object]:
    return {
        "request": state.request_id,
        "after": state.parent,
        "upstream": state.upstream,
        "tenant": state.tenant,
    }
