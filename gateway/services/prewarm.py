"""Answer `generate: false`: a turn that holds its input, and that no model has seen (API-6).

Clients send it on a WebSocket before their first real turn, which then continues it with what is
new. Upstreams over HTTP do not know the field, so the gateway answers itself: one turn on record
with the input, no output, and no tokens.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator

from msgspec.structs import replace

from gateway.domain import events
from gateway.domain.documents import Document, encode, raw
from gateway.domain.errors import BadRequest
from gateway.domain.history import ids_of, pack
from gateway.domain.own_response import own_response
from gateway.domain.ports import Turn, TurnHead, TurnStore
from gateway.domain.requests import Bounds, CreateRequest, parse_create
from gateway.services.callers import Caller
from gateway.services.health import Health
from gateway.services.preparation import Preparation
from gateway.services.records import EventStream

_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Prewarming:
    """Puts input on record without a model."""

    def __init__(
        self, *, preparation: Preparation, turns: TurnStore, health: Health, bounds: Bounds
    ) -> None:
        self._preparation = preparation
        self._turns = turns
        self._health = health
        self._bounds = bounds

    async def answer(self, caller: Caller, document: Document) -> EventStream:
        """Record a request's input as a turn, and tell of it as of any other.

        Raises:
            GatewayError: As for a turn that is sent; nothing was recorded.
        """
        request = parse_create(document, self._bounds)
        _check(caller, request)
        self._health.require_store()
        prepared = await self._preparation.prepare(caller, request)
        state = prepared.state
        state.turn_id = "resp_" + secrets.token_hex(24)
        begun = own_response(state, status="in_progress")
        ended = {
            **begun,
            "status": raw("completed"),
            "completed_at": raw(int(time.time())),
            "usage": raw(_NO_USAGE),
        }
        await self._turns.record(
            Turn(
                head=TurnHead(
                    id=state.turn_id,
                    tenant=state.tenant,
                    upstream=state.upstream,
                    end_user=state.end_user,
                    parent=state.parent,
                    stored=False,
                    legs=0,
                    subject=state.subject,
                    model=state.model,
                    served=True,
                    facts=replace(state.facts, id=state.facts.id or state.turn_id),
                    window=state.window,
                    began=state.started_at,
                ),
                items=pack(state.items),
                response=encode(ended),
                item_ids=ids_of(state.items),
            ),
            ttl=caller.tenant.ttl,
            new=True,
        )
        return EventStream({}, _told(begun, ended))


def _check(caller: Caller, request: CreateRequest) -> None:
    stateless = caller.tenant.stateless or request.store is False
    if stateless and caller.tenant.cache == "off":
        raise BadRequest(
            "'generate' cannot be false: nothing is kept for this tenant that a turn could "
            "continue.",
            code="generate_not_supported",
            param="generate",
        )
    if request.conversation is not None:
        raise BadRequest(
            "'generate' cannot be false with 'conversation': what is kept so is continued by "
            "'previous_response_id', which a conversation excludes.",
            code="generate_not_supported",
            param="generate",
        )
    if request.approval_responses:
        raise BadRequest(
            "'generate' cannot be false when approvals are answered: they would not be sent.",
            code="generate_not_supported",
            param="generate",
        )


async def _told(begun: Document, ended: Document) -> AsyncGenerator[bytes, None]:
    for number, (kind, response) in enumerate(
        [("response.created", begun), ("response.completed", ended)]
    ):
        yield events.write(
            kind,
            {"type": raw(kind), "sequence_number": raw(number), "response": raw(response)},
        )
