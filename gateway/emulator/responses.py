"""The service behind `/responses`: creates turns, keeps what is stored, shows it again."""

import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from anyio.abc import TaskGroup

from gateway.emulator import errors, faults
from gateway.emulator.context import Context, build_context
from gateway.emulator.delivery import Delivery
from gateway.emulator.emission import Event
from gateway.emulator.envelope import build_usage, count_tokens
from gateway.emulator.faults import Fault, FaultDesk, FaultKind
from gateway.emulator.items import (
    Item,
    is_message,
    new_id,
    normalise_input,
    now,
    text_of,
    with_id,
    without_ciphertext,
)
from gateway.emulator.jobs import Job
from gateway.emulator.sealing import Sealer
from gateway.emulator.settings import EmulatorSettings
from gateway.emulator.store import Store, StoredResponse
from gateway.emulator.turn_request import (
    ENCRYPTED,
    check_names,
    last_user_text,
    parse_input,
    parse_turn_request,
    require_model,
)
from gateway.emulator.turns import SERVER_ERROR, TERMINAL, Turn

log = logging.getLogger(__name__)

_ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})


class Responses:
    """The turns of one emulated account."""

    def __init__(
        self, *, settings: EmulatorSettings, store: Store, fault_desk: FaultDesk, tasks: TaskGroup
    ) -> None:
        self._settings = settings
        self._store = store
        self._faults = fault_desk
        self._tasks = tasks
        self._sealer = Sealer(settings.resource)

    def create(self, body: Mapping[str, Any], fault: Fault | None) -> Delivery:
        """Begin a turn.

        Raises:
            ApiError: what the provider refuses before the first byte.
        """
        fault = fault or self._asked_for(body)
        refused = faults.refusal(fault, azure=self._settings.azure) if fault else None
        if refused is not None:
            raise refused
        request = parse_turn_request(body, self._settings)
        context = build_context(request, store=self._store, sealer=self._sealer)
        turn = Turn(
            request=request,
            context=context,
            settings=self._settings,
            sealer=self._sealer,
            failure=SERVER_ERROR if fault and fault.kind is FaultKind.FAILED else None,
        )
        if request.background:
            return self._begin_job(turn, fault)
        return Delivery(
            events=self._recorded(turn),
            as_stream=request.stream,
            obfuscated=request.obfuscated,
            fault=fault,
            delay=self._settings.first_byte_delay,
            refusal=lambda: turn.refusal,
        )

    def _asked_for(self, body: Mapping[str, Any]) -> Fault | None:
        """Find the fault that the user asked for, in the turn's own message where it goes on."""
        text = last_user_text(body)
        sent = body.get("input")
        if text or not isinstance(sent, list):
            return self._faults.from_text(text)
        if not any(item.get("type") == "mcp_approval_response" for item in sent):
            return None
        before = body.get("previous_response_id")
        earlier = self._store.response(str(before)).context if before else ()
        items = [*earlier, *normalise_input(sent)]
        said = [text_of(item) for item in items if is_message(item, "user")]
        return self._faults.from_text(said[-1], answered=True) if said else None

    async def _recorded(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Pass the events on; keep the response before its last event is seen."""
        async with aclosing(turn.events()) as events:
            async for event in events:
                if event["type"] in TERMINAL:
                    self._keep(turn)
                yield event

    def _begin_job(self, turn: Turn, fault: Fault | None) -> Delivery:
        job = Job()
        stored = _stored(turn, job)
        self._store.add_response(stored)
        self._tasks.start_soon(self._run_job, turn, job, stored)
        events = job.follow() if turn.request.stream else _single(turn.response)
        return Delivery(
            events=events,
            as_stream=turn.request.stream,
            obfuscated=turn.request.obfuscated,
            fault=fault,
        )

    async def _run_job(self, turn: Turn, job: Job, stored: StoredResponse) -> None:
        with job.scope:
            try:
                await self._fill_job(turn, job, stored)
            except Exception:
                log.exception("the background response %s broke", turn.response["id"])
                stored.body = {**stored.body, "status": "failed"}
        job.end()

    async def _fill_job(self, turn: Turn, job: Job, stored: StoredResponse) -> None:
        async with aclosing(turn.events()) as events:
            async for event in events:
                stored.body = _shown(turn)
                if event["type"] in TERMINAL:
                    self._keep_items(turn)
                job.append(event)

    def _keep(self, turn: Turn) -> None:
        if turn.request.store:
            self._store.add_response(_stored(turn, None))
        self._keep_items(turn)

    def _keep_items(self, turn: Turn) -> None:
        context = turn.context
        output = without_ciphertext(turn.output)
        if turn.request.store:
            self._store.add_items([*context.new, *output])
        if context.conversation is not None:
            context.conversation.items += [*context.new, *output]

    def retrieve(self, response_id: str, *, include: Sequence[str] = ()) -> dict[str, Any]:
        """Return a stored response.

        Raises:
            ApiError: 404, or 400 for reasoning that the API does not give out again.
        """
        _check_include(include)
        return self._store.response(response_id).body

    def resume(
        self, response_id: str, *, after: int, include: Sequence[str], obfuscated: bool
    ) -> Delivery:
        """Stream a background response again, from the event after `after`.

        Raises:
            ApiError: 404, or 400 when it cannot be streamed (any more).
        """
        _check_include(include)
        job = self._store.response(response_id).job
        if job is None:
            raise errors.bad_request(
                "This response cannot be streamed because it was not created with background=true.",
                param="stream",
            )
        if time.monotonic() - job.started_at > self._settings.stream_retention:
            raise errors.bad_request(
                "This response can no longer be streamed because it is more than 5 minutes old.",
                param="stream",
            )
        return Delivery(events=job.follow(after), as_stream=True, obfuscated=obfuscated)

    def delete(self, response_id: str) -> dict[str, Any]:
        """Forget a response.

        Raises:
            ApiError: 404.
        """
        job = self._store.response(response_id).job
        if job is not None:
            job.scope.cancel()
        self._store.delete_response(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    def cancel(self, response_id: str) -> dict[str, Any]:
        """Stop a background response; one that has ended stays as it is.

        Raises:
            ApiError: 404, or 400 for a response that does not run in the background.
        """
        stored = self._store.response(response_id)
        if stored.job is None:
            raise errors.bad_request("Cannot cancel a synchronous response.")
        if stored.body["status"] not in _ENDED:
            stored.job.scope.cancel()
            stored.body = {**stored.body, "status": "cancelled"}
        return stored.body

    def input_items(self, response_id: str) -> Sequence[Item]:
        """Return the items a response was made from.

        Raises:
            ApiError: 404.
        """
        return without_ciphertext(self._store.response(response_id).context)

    def count_input(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of input tokens of a request.

        Raises:
            ApiError: what a create request with this body would be refused for.
        """
        context = self._context(body)
        read = [*context.items, body.get("instructions"), *(body.get("tools") or ())]
        return {"object": "response.input_tokens", "input_tokens": count_tokens(read)}

    def compact(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a compaction of a conversation: its user messages and a sealed rest.

        Its id begins as that of a response, and names none.

        Raises:
            ApiError: what a create request with this body would be refused for; the endpoint
                knows few of its parameters.
        """
        check_names(body, _COMPACTED)
        model = require_model(body, self._settings)
        context = self._context(body)
        kept = [with_id(item) for item in context.items if is_message(item, "user")]
        item_id = new_id("cmp")
        summary = "\n".join(text_of(item)[:_GIST] for item in context.items)[-_SUMMARY:]
        sealed = self._sealer.seal(model=model, item_id=item_id, text=summary, stage="done")
        read = count_tokens([*context.items, body.get("instructions")])
        usage = build_usage(read=read, written=count_tokens(summary), reasoned=0)
        return {
            "id": new_id("resp"),
            "object": "response.compaction",
            "created_at": now(),
            "output": [
                *kept,
                {"id": item_id, "type": "compaction", "encrypted_content": sealed},
            ],
            "usage": usage,
        }

    def _context(self, body: Mapping[str, Any]) -> Context:
        parse_input(body)
        known = {k: v for k, v in body.items() if k in _COUNTED}
        request = parse_turn_request(known, self._settings)
        return build_context(request, store=self._store, sealer=self._sealer)


_COMPACTED = frozenset(
    {
        *("image", "input", "instructions", "model", "previous_response_id", "prompt_cache_key"),
        *("prompt_cache_options", "prompt_cache_retention", "service_tier"),
    }
)
_GIST, _SUMMARY = 80, 4000
"""Characters of an item and of a whole conversation that a compaction remembers."""

_COUNTED = frozenset(
    {"model", "input", "instructions", "previous_response_id", "conversation", "tools", "store"}
)


def _shown(turn: Turn) -> dict[str, Any]:
    """Return the response as a retrieval shows it."""
    return {**turn.response, "output": without_ciphertext(turn.response["output"])}


def _stored(turn: Turn, job: Job | None) -> StoredResponse:
    lag = turn.settings.visibility_lag if turn.request.stream and job is None else 0.0
    return StoredResponse(
        body=_shown(turn),
        context=turn.context.items,
        chainable=turn.request.store,
        job=job,
        visible_at=time.monotonic() + lag,
    )


def _check_include(include: Sequence[str]) -> None:
    if ENCRYPTED in include:
        raise errors.bad_request(
            "Encrypted content cannot be requested for persisted responses.", param="include"
        )


async def _single(response: dict[str, Any]) -> AsyncGenerator[Event, None]:
    yield {"type": "response.queued", "response": response}
