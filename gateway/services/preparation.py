"""Admit and prepare a turn: whose chain, which upstream, which tools, which input (steps 1 and 2).

Nothing is sent upstream and nothing is stored before all of it has passed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from gateway.domain.attaching import attach
from gateway.domain.calls import NEW_CHAIN, ChainFacts
from gateway.domain.conversations import LOCK
from gateway.domain.documents import Document, Raw, raw
from gateway.domain.errors import BadRequest, Conflict, Forbidden, NotFound
from gateway.domain.history import (
    Kept,
    replay,
)
from gateway.domain.identity import Tenant
from gateway.domain.loops import check_budget
from gateway.domain.ports import ConversationStore, Meter, TurnHead, TurnStore
from gateway.domain.registry import McpServer, Model, Route
from gateway.domain.requests import (
    ENCRYPTED_REASONING,
    CreateRequest,
    Item,
    item_role,
    without,
)
from gateway.domain.smuggling import (
    refuse_acknowledgements,
    refuse_smuggled_fields,
    refuse_smuggled_items,
)
from gateway.domain.tools import Attachment, Tools
from gateway.domain.turns import FIRST_RUN, HeldServer, HeldTool, TurnState
from gateway.services.answers import (
    HISTORY,
    Answers,
    NativeAnswers,
    answered_request,
    not_repeated,
)
from gateway.services.callers import Caller, owned, previous_not_found
from gateway.services.chains import Chains, Past
from gateway.services.judgement import Judge
from gateway.services.pins import Pinning
from gateway.services.recall import Recall, kept_head
from gateway.services.refusals import Refusals

_OWN_FIELDS = ("input", "tools", "stream", "previous_response_id", "store", "include")
_PASSED_HEADERS = ("openai-beta", "x-client-request-id", "x-ms-client-request-id", "traceparent")


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the operator configured, as preparation needs it."""

    models: Mapping[str, Model]
    default_upstream: str
    servers: Mapping[str, McpServer]


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A turn that may be sent.

    Attributes:
        input: The upstream input; `None` when the request has none.
        previous: The upstream id to chain on, where the upstream holds the chain.
        answers: Approvals that this request answers, claimed already.
        join: Instead of a new turn: the held turn that this request has decided.
        past: What was before, where the gateway keeps it as a chain.
    """

    state: TurnState
    tools: Tools
    input: Raw | None = None
    previous: str | None = None
    answers: Answers | None = None
    join: str | None = None
    past: Past | None = None


class Preparation:
    """Turns requests into turns."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        chains: Chains,
        answers: NativeAnswers,
        catalog: Catalog,
        judge: Judge,
        pinning: Pinning,
        refusals: Refusals,
        meter: Meter,
    ) -> None:
        self._recall = Recall(
            turns=turns, conversations=conversations, answers=answers, meter=meter
        )
        self._turns = turns
        self._conversations = conversations
        self._chains = chains
        self._answers = answers
        self._catalog = catalog
        self._judge = judge
        self._pinning = pinning
        self._refusals = refusals

    async def prepare(
        self, caller: Caller, request: CreateRequest, *, runs: bool = True
    ) -> Prepared:
        """Admit and prepare a create request.

        Args:
            runs: The turn will run, and so has its conversation for itself from here on.

        Raises:
            GatewayError: As the contract says for each kind of bad input.
        """
        tenant = caller.tenant
        stateless = tenant.stateless or request.store is False
        end_user = caller.end_user or request.end_user
        _check_modes(request, tenant, stateless)
        refuse_smuggled_items(request.items)
        refuse_smuggled_fields(request.document)
        parent = await self._parent(caller, request, end_user)
        facts = _inherited(parent, request.items)
        check_budget(facts, tenant.limits)
        tools = attach(
            request.tools,
            tenant=tenant,
            servers=self._catalog.servers,
            rules=self._judge.rules,
            headers=caller.headers,
        )
        background = request.background and (stateless or bool(tools.attachments))
        if background:
            _check_background(request, tenant, stateless=stateless)
        tools = await self._pinning.offered(tenant.id, tools)
        route = self._route(request.model, parent)
        state = TurnState(
            tenant=tenant.id,
            subject=caller.principal.subject,
            roles=sorted(caller.principal.roles),
            groups=sorted(caller.principal.groups),
            facts=facts,
            key_id=caller.principal.key_id,
            end_user=end_user,
            upstream=route.upstream,
            model=request.model,
            body=self._body(request, route, stateless=stateless, background=background),
            background=background,
            tools=hold_tools(tools),
            parent=parent.id if parent and not _is_conversation(parent) else None,
            conversation=request.conversation is not None and not stateless,
            conversation_id=(request.conversation or "") if stateless else "",
            stateless=stateless,
            keep=not (stateless and tenant.cache == "off"),
            stored=not stateless,
            shows_ciphertext=ENCRYPTED_REASONING in request.include,
            streamed=request.stream,
            started_at=time.time(),
            request_id=caller.request_id,
            headers={k: caller.headers[k] for k in _PASSED_HEADERS if k in caller.headers},
        )
        if not state.conversation_id or not runs:
            return await self._with_input(caller, request, parent, state, tools)
        state.lock = secrets.token_hex(16)
        if not await self._conversations.lock(
            tenant.id, state.conversation_id, state.lock, seconds=LOCK, ttl=tenant.ttl
        ):
            raise _no_conversation(state.conversation_id)
        prepared = None
        try:
            prepared = await self._with_input(caller, request, parent, state, tools)
        finally:
            if prepared is None or prepared.join is not None:
                await self._conversations.unlock(tenant.id, state.conversation_id, state.lock)
        return prepared

    async def _with_input(
        self,
        caller: Caller,
        request: CreateRequest,
        parent: TurnHead | None,
        state: TurnState,
        tools: Tools,
    ) -> Prepared:
        async with self._refusals.noted(caller, "", tried="send"):
            refuse_acknowledgements(request.items)
            items, known = await self._recall.own_items(caller, request.items, state)
        if parent is None and state.stateless and state.keep:
            items = await self._recall.put_back(caller, items, state)
        items = await self._answers.history(
            caller, items, known, end_user=state.end_user, parent=parent
        )
        if parent is not None:
            items = [item for item in items if item.type != HISTORY]  # the chain holds them
        asked = {answered_request(item) for item in items}
        given = [one for one in request.approval_responses if one.approval_request_id in asked]
        answers = await self._answers.take(caller, given, parent, state.end_user)
        if answers is not None and answers.join is not None:
            return Prepared(state=state, tools=tools, join=answers.join)
        if answers is not None:
            batch = await self._judge.revalidated(answers.batch, state, tools)
            answers = replace(answers, batch=batch)
            items = answers.complete(items)
        state.items = [Kept("in", item.raw) for item in items]
        prepared = Prepared(state=state, tools=tools, answers=answers)
        if state.conversation_id:
            prepared.input = raw(await self._conversation(caller, state.conversation_id, items))
        elif parent is None or state.parent is None:
            prepared.input = _input(request, items)
        elif parent.stored and not state.stateless:
            state.parent_leg = prepared.previous = parent.last_leg or parent.id
            prepared.input = _input(request, not_repeated(items, answered=answers is not None))
            if state.background and prepared.input is not None:
                state.asked = prepared.input
        else:
            prepared.past = await self._chains.past(state, caller.tenant)
            if prepared.past is None:
                raise previous_not_found(parent.id)
            prepared.input = prepared.past.followed_by(state)
        return prepared

    async def _parent(
        self, caller: Caller, request: CreateRequest, end_user: str
    ) -> TurnHead | None:
        """Read the turn or conversation that the request continues, if it is the caller's."""
        tenant = caller.tenant.id
        if request.previous_response_id is not None:
            head = await self._turns.head(tenant, request.previous_response_id)
            if head is None or not owned(head, caller, end_user) or _is_conversation(head):
                raise previous_not_found(request.previous_response_id)
            if head.conversation:
                raise BadRequest(
                    f"The response '{head.id}' belongs to the conversation '{head.conversation}'; "
                    "go on with 'conversation'.",
                    param="previous_response_id",
                )
            _check_ended(head, request, stateless=caller.tenant.stateless or request.store is False)
            return head
        if request.conversation is not None:
            if caller.tenant.stateless:
                head = await kept_head(self._conversations, tenant, request.conversation)
            else:
                head = await self._turns.head(tenant, request.conversation)
            if head is None or not owned(head, caller, end_user) or not _is_conversation(head):
                raise _no_conversation(request.conversation)
            if head.code:
                raise _locked(head, "conversation")
            return head
        return None

    async def _conversation(
        self, caller: Caller, conversation_id: str, items: Sequence[Item]
    ) -> list[Raw]:
        entries = await self._conversations.items(
            caller.tenant.id, conversation_id, ttl=caller.tenant.ttl
        )
        if entries is None:
            raise _no_conversation(conversation_id)
        return replay([[entry.kept for entry in entries]], items)

    def _route(self, name: str, parent: TurnHead | None) -> Route:
        """Choose the upstream: that of the chain, else the model's first route (CHAIN-2)."""
        if not self._catalog.models:
            return Route(parent.upstream if parent else self._catalog.default_upstream, name)
        model = self._catalog.models.get(name)
        if model is None:
            raise NotFound(
                f"The model '{name}' does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )
        if parent is None:
            return model.routes[0]
        for route in model.routes:
            if route.upstream == parent.upstream:
                return route
        raise BadRequest(
            f"The model '{name}' is not served where this chain began; a chain stays with its "
            "upstream.",
            code="model_not_in_chain",
            param="model",
        )

    def _body(
        self, request: CreateRequest, route: Route, *, stateless: bool, background: bool
    ) -> Document:
        body = without(request.document, *_OWN_FIELDS)
        if background:
            body.pop("background", None)  # the gateway runs it; upstream it is an ordinary one
        if request.model and route.deployment != request.model:
            body["model"] = raw(route.deployment)
        if stateless:
            body.pop("conversation", None)
            body["store"] = raw(False)
            body["include"] = raw(list(dict.fromkeys([*request.include, ENCRYPTED_REASONING])))
        else:
            for key in ("store", "include"):
                if key in request.document:
                    body[key] = request.document[key]
        return body


def _check_ended(head: TurnHead, request: CreateRequest, *, stateless: bool) -> None:
    """Refuse to go on from a turn that has not ended, or whose requests nobody answered.

    A background turn ends upstream, and may have done so unseen: there the upstream decides. A
    turn that was taken back or broke off holds requests that nobody answered, or answers of which
    nobody knows what they did: replayed, they would run a tool again.
    """
    if head.code == "receipt_mismatch":
        raise _locked(head, "previous_response_id")
    if head.status == "failed" and head.batch:
        raise Conflict(
            f"The response '{head.id}' failed while it was held or ran in background; go on from "
            "the response before it.",
            code="response_failed",
            param="previous_response_id",
        )
    if head.status == "cancelled" and head.batch:
        raise Conflict(
            f"The response '{head.id}' was cancelled while it waited for approvals; go on from "
            "the response before it.",
            code="response_cancelled",
            param="previous_response_id",
        )
    if head.status not in ("in_progress", "queued") or request.approval_responses:
        return
    if head.batch or not head.stored or stateless:
        waits = head.batch and not head.batch.startswith(FIRST_RUN)
        raise Conflict(
            f"The response '{head.id}' waits for an approval or is still running.",
            code="approval_pending" if waits else "response_in_progress",
            param="previous_response_id",
        )


def _locked(head: TurnHead, param: str) -> Conflict:
    return Conflict(
        f"'{head.id}' is locked: a tool ran in it that was not approved like that. Go on from "
        "what was before it.",
        code="chain_locked",
        param=param,
    )


def _inherited(parent: TurnHead | None, items: Sequence[Item]) -> ChainFacts:
    """Carry a chain's facts into its next turn.

    A message of the user ends a row of automatic rounds. Outputs of functions and answers to
    approval requests do not: a program may be giving them, with nobody looking.
    """
    facts = parent.facts if parent else NEW_CHAIN
    spoke = any(item.type == "message" and item_role(item) == "user" for item in items)
    return msgspec.structs.replace(facts, rounds=0) if spoke else facts


def _no_conversation(conversation_id: str) -> NotFound:
    return NotFound(
        f"Conversation with id '{conversation_id}' not found.",
        code="conversation_not_found",
        param="conversation",
    )


def _is_conversation(head: TurnHead) -> bool:
    return head.status == "conversation"


def _input(request: CreateRequest, items: Sequence[Item]) -> Raw | None:
    """Write the input of a turn that is not expanded; what did not change leaves as it came."""
    if len(items) == len(request.items) and all(
        one is other for one, other in zip(items, request.items, strict=True)
    ):
        return request.document.get("input")
    return raw([item.raw for item in items])


def _check_modes(request: CreateRequest, tenant: Tenant, stateless: bool) -> None:
    if "prompt" in request.document and bytes(request.document["prompt"]) != b"null":
        raise Forbidden(
            "'prompt' is not allowed: a stored prompt can hold MCP tools that no rule has seen.",
            code="prompt_not_allowed",
            param="prompt",
        )
    if not stateless or request.conversation is None:
        return
    if not tenant.stateless or tenant.cache == "off":
        raise BadRequest(
            "'conversation' needs stored responses; this one is stateless.",
            code="conversation_not_supported",
            param="conversation",
        )


def _check_background(request: CreateRequest, tenant: Tenant, *, stateless: bool) -> None:
    """Refuse what the gateway cannot run in background itself."""
    if stateless and tenant.cache == "off":
        reason = "'background' needs something to be kept, and this tenant keeps nothing."
    elif request.approval_responses:
        reason = "Answers to approval requests cannot be sent in background."
    else:
        return
    raise BadRequest(reason, code="background_not_supported", param="background")


def hold_tools(tools: Tools) -> list[HeldTool]:
    """Write a turn's tools so that they can be attached again later, without any secret of ours."""
    return [
        HeldTool(server=_hold(part)) if isinstance(part, Attachment) else HeldTool(plain=part)
        for part in tools.parts
    ]


def _hold(part: Attachment) -> HeldServer:
    return HeldServer(
        label=part.label,
        tool=part.tool,
        registered=part.server is not None,
        identity=part.identity,
        forwarded=dict(part.forwarded),
        tightened=None if part.tightened is None else sorted(part.tightened),
    )


def restore_tools(held: Sequence[HeldTool], servers: Mapping[str, McpServer]) -> Tools:
    """Attach a held turn's tools again, with the servers as they are registered now.

    A server that is registered no more is left out, so its approvals are superseded.
    """
    restored = (_restore(tool, servers) for tool in held)
    return Tools(tuple(part for part in restored if part is not None))


def _restore(tool: HeldTool, servers: Mapping[str, McpServer]) -> Raw | Attachment | None:
    held = tool.server
    if held is None:
        return tool.plain
    server = servers.get(held.label) if held.registered else None
    if held.registered and server is None:
        return None
    return Attachment(
        label=held.label,
        server=server,
        tool=held.tool,
        forwarded=held.forwarded,
        tightened=None if held.tightened is None else frozenset(held.tightened),
    )
