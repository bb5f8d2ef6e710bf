"""Responses after their creation, and the calls beside them (API-1, STATE-7).

What the upstream stores is asked there; what only the gateway keeps is served from its record.
Every door checks the owner first, and a foreign id reads like an unknown one (CHAIN-1).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256

from gateway.domain.compaction import COMPACT
from gateway.domain.documents import NULL, Document, encode, parse_document, raw
from gateway.domain.errors import BadRequest, Conflict, NotFound, UpstreamRefused
from gateway.domain.history import Kept, hide_ciphertext, ids_of, pack, unpack
from gateway.domain.lists import page_of
from gateway.domain.ports import (
    ApprovalStore,
    ByteStream,
    ConversationStore,
    Turn,
    TurnHead,
    TurnStore,
    UpstreamAnswer,
    UpstreamClient,
)
from gateway.domain.requests import Bounds, parse_create
from gateway.domain.scrubbing import Scrubber
from gateway.domain.tools import public_tools
from gateway.domain.turns import TurnState, View, output_of, read_state, text_field
from gateway.services.callers import Caller, owned, response_not_found
from gateway.services.continuations import Continuations
from gateway.services.following import RUNNING, Following
from gateway.services.grants import Grants
from gateway.services.interception import Interceptor
from gateway.services.legs import Leg, Legs
from gateway.services.notices import Notices, wants_notices
from gateway.services.preparation import Catalog, Preparation
from gateway.services.records import Answer, EventStream, Records

_TRIES = 5
"""Most times that a running turn is cancelled, which may have gone on to its next leg."""

_MODEL = re.compile(r"[\w:-][\w.:-]{0,200}")


class ResponseService:
    """Retrieves, cancels, deletes and lists."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        approvals: ApprovalStore,
        grants: Grants,
        conversations: ConversationStore,
        upstream: UpstreamClient,
        records: Records,
        following: Following,
        preparation: Preparation,
        legs: Legs,
        continuations: Continuations,
        catalog: Catalog,
        bounds: Bounds,
    ) -> None:
        self._turns = turns
        self._approvals = approvals
        self._grants = grants
        self._conversations = conversations
        self._upstream = upstream
        self._records = records
        self._following = following
        self._preparation = preparation
        self._legs = legs
        self._continuations = continuations
        self._catalog = catalog
        self._bounds = bounds

    async def _own(self, caller: Caller, response_id: str) -> TurnHead:
        head = await self._turns.head(caller.tenant.id, response_id)
        if head is None or not owned(head, caller) or head.status == "conversation":
            raise response_not_found(response_id)
        return head

    async def retrieve(
        self, caller: Caller, response_id: str, query: Mapping[str, str], *, wait: float
    ) -> Answer:
        """Read a response."""
        head = await self._own(caller, response_id)
        if head.served:
            return await self._records.wait(
                head.tenant, head.id, seconds=wait if head.status in RUNNING else 0
            )
        answer = await self._upstream.send(
            head.upstream, "GET", f"/responses/{head.id}", query=query
        )
        await self._note_status(head, answer, caller.tenant.ttl)
        return _public(answer)

    async def _note_status(self, head: TurnHead, answer: UpstreamAnswer, ttl: int) -> None:
        """Keep what a background response has become, so that it can be chained on."""
        if head.status not in RUNNING:
            return
        response = parse_document(answer.body)
        status = text_field(response, "status")
        turn = await self._turns.read(head.tenant, head.id)
        if status and status not in RUNNING and turn is not None:
            own = [kept for kept in unpack(turn.items) if kept.o != "out"]
            items = own + [Kept("out", item) for item in output_of(response)]
            ended = replace(turn, items=pack(items), item_ids=ids_of(items))
            await self._records.end(ended, status=status, ttl=ttl)

    async def stream(
        self, caller: Caller, response_id: str, query: Mapping[str, str], *, after: int
    ) -> EventStream:
        """Read a response's events again, from after a `sequence_number`; -1 for all."""
        head = await self._own(caller, response_id)
        if await self._following.exists(head.tenant, head.id):
            look = None
            if wants_notices(caller):
                look = Notices(self._approvals, head.tenant, head.id).look
            followed = self._following.events(head.tenant, head.id, after=after, notices=look)
            return EventStream({}, followed)
        if head.served:
            raise BadRequest(
                "This response was not streamed, or its events are kept no longer. "
                "Retrieve it without 'stream'.",
                code="stream_not_available",
                param="stream",
            )
        stream = await self._upstream.open(
            head.upstream, "GET", f"/responses/{head.id}", query=query
        )
        return EventStream(stream.headers, _public_events(stream), stream.aclose)

    async def cancel(self, caller: Caller, response_id: str) -> Answer:
        """Cancel a background response, or a held one with its open approvals."""
        head = await self._own(caller, response_id)
        if not head.served:
            path = f"/responses/{head.id}/cancel"
            return _public(await self._upstream.send(head.upstream, "POST", path))
        for _ in range(_TRIES):
            turn = await self._turns.read(head.tenant, head.id)
            if turn is None:
                raise response_not_found(response_id)
            ended = turn.head.status not in RUNNING and _is_background(turn)
            if turn.head.status == "cancelled" or ended:
                return Answer(body=turn.response)
            if not await self._cancel_held(turn.head):
                break
        raise Conflict(
            "Only a response in background, or one that waits for an approval, can be cancelled.",
            code="not_cancellable",
        )

    async def _cancel_held(self, head: TurnHead) -> bool:
        """Cancel a turn if it can be; false when it cannot, or goes on elsewhere by now."""
        batch = await self._approvals.batch(head.tenant, head.batch) if head.batch else None
        if batch is None or not batch.held:
            return batch is not None and head.status in RUNNING
        return await self._continuations.cancel(batch) or read_state(batch.held).background

    async def delete(self, caller: Caller, response_id: str) -> Answer:
        """Delete a response, here and where the upstream stores it (STATE-4)."""
        head = await self._own(caller, response_id)
        if head.batch and head.status in RUNNING:
            await self._abandon(head)
        if head.stored:
            for leg in dict.fromkeys((head.last_leg, head.id, *(one.id for one in head.trace))):
                if leg:
                    await self._delete_upstream(head.upstream, leg)
        if head.conversation and head.status in RUNNING:
            await self._conversations.unlock(head.tenant, head.conversation, head.id)
        chain_id = head.facts.id or head.id
        await self._grants.end_chain(head.tenant, chain_id)
        await self._turns.delete(head.tenant, head.id, chain_id=chain_id)
        if head.batch:
            await self._approvals.forget(head.tenant, head.batch)
        body = {"id": response_id, "object": "response.deleted", "deleted": True}
        return Answer(body=encode(body))

    async def _abandon(self, head: TurnHead) -> None:
        batch = await self._approvals.batch(head.tenant, head.batch)
        if batch is not None:
            await self._approvals.abandon(
                head.tenant,
                head.batch,
                reason="The response was deleted by its caller.",
                running=bool(batch.held) and read_state(batch.held).background,
            )

    async def _delete_upstream(self, upstream: str, response_id: str) -> None:
        try:
            await self._upstream.send(upstream, "DELETE", f"/responses/{response_id}")
        except UpstreamRefused as exc:
            if exc.status_code != 404:  # gone already is as good as deleted
                raise

    async def input_items(
        self, caller: Caller, response_id: str, query: Mapping[str, str]
    ) -> Answer:
        """List the items that a response was made from."""
        head = await self._own(caller, response_id)
        if not head.served:
            path = f"/responses/{head.id}/input_items"
            answer = await self._upstream.send(head.upstream, "GET", path, query=query)
            return Answer(headers=answer.headers, body=answer.body)
        turn = await self._turns.read(head.tenant, head.id)
        if turn is None:
            raise response_not_found(response_id)
        return Answer(body=encode(page_of(_inputs(turn), query)))

    async def count(self, caller: Caller, document: Document, path: str) -> Answer:
        """Pass on `input_tokens` and `compact`, with the chain and the tools of a turn."""
        request = parse_create(document, self._bounds)
        if request.approval_responses:
            raise BadRequest(
                "Approval responses can only be sent to create a response.", param="input"
            )
        prepared = await self._preparation.prepare(caller, request, runs=False)
        tools, scrubber = await self._legs.join(prepared.tools, prepared.state.upstream)
        if path == COMPACT and "tools" not in document:
            tools = None  # servers that are always attached mean nothing to it
        for key in ("store", "include"):
            if key not in document:
                prepared.state.body.pop(key, None)
        leg = Leg(
            state=prepared.state,
            tools=prepared.tools,
            input=prepared.input,
            previous=prepared.previous,
        )
        answer = await self._legs.send(leg, tools, path)
        return Answer(headers=answer.headers, body=scrubber.scrub(answer.body))

    async def models(self, model: str | None = None) -> Answer:
        """List the models that callers may name, or pass the question on."""
        if not self._catalog.models:
            if model is not None and not _MODEL.fullmatch(model):
                raise NotFound("There is no such model.", code="model_not_found", param="model")
            path = "/models" if model is None else f"/models/{model}"
            answer = await self._upstream.send(self._catalog.default_upstream, "GET", path)
            return Answer(headers=answer.headers, body=answer.body)
        listed = {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "gateway"}
            for name in self._catalog.models
        }
        if model is None:
            return Answer(body=encode({"object": "list", "data": list(listed.values())}))
        if model not in listed:
            raise NotFound(
                f"The model '{model}' does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )
        return Answer(body=encode(listed[model]))


def _is_background(turn: Turn) -> bool:
    return bytes(parse_document(turn.response).get("background", NULL)) == b"true"


def _public(answer: UpstreamAnswer) -> Answer:
    """Redact the `tools` echo of a retrieved response (MCP-3)."""
    if b'"mcp"' not in answer.body:
        return Answer(headers=answer.headers, body=answer.body)
    document = parse_document(answer.body)
    if "tools" in document:
        document["tools"] = public_tools(document["tools"])
    return Answer(headers=answer.headers, body=encode(document))


async def _public_events(stream: ByteStream) -> AsyncGenerator[bytes, None]:
    """Pass the events of a retrieved response, with the `tools` echo redacted."""
    state = TurnState(tenant="", subject="", key_id="", end_user="", upstream="", model="", body={})
    reader = Interceptor(state, View(state, has_mcp=True), Scrubber(()))
    async with aclosing(stream):
        async for chunk in stream:
            block = reader.feed(chunk)
            if block:
                yield block
            if reader.result is not None:
                break
        else:
            yield reader.finish()
    yield reader.terminal_frame()


def _inputs(turn: Turn) -> list[Document]:
    """The turn's own input items, each with an id, as the API lists them."""
    listed: list[Document] = []
    for index, kept in enumerate(unpack(turn.items)):
        if kept.o in ("out", "lost"):
            continue
        item = parse_document(hide_ciphertext(kept.i))
        if "id" not in item:
            digest = sha256(f"{turn.head.id}:{index}".encode()).hexdigest()[:48]
            item = {"id": raw(f"msg_{digest}"), **item}
        item.setdefault("type", raw("message"))
        listed.append(item)
    return listed
