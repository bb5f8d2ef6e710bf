"""The Responses API, under OpenAI's and Azure's paths (API-1, API-2)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from litestar import Router, delete, get, post
from litestar.params import FromPath
from litestar.types import ASGIApp
from multidict import MultiDict

from gateway.domain.documents import Document, encode
from gateway.domain.errors import BadRequest
from gateway.domain.identity import Role
from gateway.domain.lists import natural
from gateway.services.callers import Caller
from gateway.services.conversations import ConversationService
from gateway.services.records import Answer, EventStream
from gateway.services.responses import ResponseService
from gateway.services.resumption import Action, Resumption
from gateway.services.turns import TurnService
from gateway.web.answers import JSONAnswer, Pace, SSEAnswer, unless_left
from gateway.web.doors import AnyRequest, Doors, wait_of

ROOTS = ("/v1", "/openai/v1", "/openai")
"""OpenAI's, Azure's v1, and Azure's last generation; any `api-version` is accepted."""

_QUERY = frozenset({"api-version"})


def api_paths(*paths: str) -> list[str]:
    """List paths under all roots."""
    return [root + path for root in ROOTS for path in paths]


def query_of(request: AnyRequest) -> MultiDict[str]:
    """Read the query, without what belongs to Azure's paths; a key may have several values.

    `include[]` of the SDKs stays as it is.
    """
    return MultiDict(
        (name, value) for name, value in request.query_params.multi_items() if name not in _QUERY
    )


def create_router(doors: Doors, turns: TurnService, pace: Pace) -> Router:
    """The door that creates responses."""

    @post(api_paths("/responses"), status_code=200)
    async def create_response(request: AnyRequest) -> ASGIApp:
        """Create a response, as JSON or as a stream by the body's `stream`."""
        caller = doors.caller(request, Role.CALLER)
        document = await doors.document(request)
        call = turns.create(caller, document, wait=wait_of(request))
        return _answered(await unless_left(request, call), pace, caller)

    return Router(path="/", route_handlers=[create_response])


def _answered(answer: Answer | EventStream, pace: Pace, caller: Caller) -> ASGIApp:
    extra = {"gateway-request-id": caller.request_id}
    if isinstance(answer, EventStream):
        return SSEAnswer(answer, pace, extra)
    return JSONAnswer(answer, extra)


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    action: Action


def _choice(document: Document) -> Action:
    try:
        return msgspec.json.decode(encode(document), type=_Choice).action
    except msgspec.ValidationError as exc:
        raise BadRequest(
            f"'action' must be 'retry' or 'rewind', and nothing else is taken: {exc}.",
            code="invalid_value",
            param="action",
        ) from exc


def resumption_router(doors: Doors, resumption: Resumption, pace: Pace) -> Router:
    """The door for a person's choice about a turn that cannot go on by itself (APPR-5)."""

    @post(api_paths("/responses/{response_id:str}/continue"), status_code=200)
    async def continue_response(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """Choose for a held response that is in doubt: send its answers again, or take it back."""
        caller = doors.caller(request)
        action = _choice(await doors.document(request))
        once = request.headers.get("idempotency-key", "")
        answer = await resumption.choose(caller, response_id, action, once=once)
        return _answered(answer, pace, caller)

    return Router(path="/", route_handlers=[continue_response])


def responses_router(doors: Doors, responses: ResponseService, pace: Pace) -> Router:
    """The doors to responses that exist, and to the calls beside them."""

    @get(api_paths("/responses/{response_id:str}"))
    async def retrieve_response(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """Retrieve a response, or with `stream=true` its events from `starting_after` on."""
        caller = doors.caller(request, Role.CALLER)
        query = query_of(request)
        answer: Answer | EventStream
        if query.get("stream", "false").lower() == "true":
            answer = await responses.stream(
                caller, response_id, query, after=_starting_after(query)
            )
        else:
            call = responses.retrieve(caller, response_id, query, wait=wait_of(request))
            answer = await unless_left(request, call)
        return _answered(answer, pace, caller)

    @delete(api_paths("/responses/{response_id:str}"), status_code=200)
    async def delete_response(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """Delete a response at once, here and upstream."""
        caller = doors.caller(request, Role.CALLER)
        return _answered(await responses.delete(caller, response_id), pace, caller)

    @post(api_paths("/responses/{response_id:str}/cancel"), status_code=200)
    async def cancel_response(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """Cancel a background or held response."""
        caller = doors.caller(request, Role.CALLER)
        return _answered(await responses.cancel(caller, response_id), pace, caller)

    @get(api_paths("/responses/{response_id:str}/input_items"))
    async def list_input_items(request: AnyRequest, response_id: FromPath[str]) -> ASGIApp:
        """List the items that a response was made from."""
        caller = doors.caller(request, Role.CALLER)
        answer = await responses.input_items(caller, response_id, query_of(request))
        return _answered(answer, pace, caller)

    @post(api_paths("/responses/input_tokens"), status_code=200)
    async def count_input_tokens(request: AnyRequest) -> ASGIApp:
        """Count the input tokens of a request."""
        caller = doors.caller(request, Role.CALLER)
        document = await doors.document(request)
        call = responses.count(caller, document, "/responses/input_tokens")
        return _answered(await unless_left(request, call), pace, caller)

    @post(api_paths("/responses/compact"), status_code=200)
    async def compact(request: AnyRequest) -> ASGIApp:
        """Compact a conversation."""
        caller = doors.caller(request, Role.CALLER)
        document = await doors.document(request)
        call = responses.count(caller, document, "/responses/compact")
        return _answered(await unless_left(request, call), pace, caller)

    @get(api_paths("/models"))
    async def list_models(request: AnyRequest) -> ASGIApp:
        """List the models."""
        caller = doors.caller(request, Role.CALLER)
        return _answered(await responses.models(), pace, caller)

    @get(api_paths("/models/{model:path}"))
    async def retrieve_model(request: AnyRequest, model: FromPath[str]) -> ASGIApp:
        """Retrieve one model."""
        caller = doors.caller(request, Role.CALLER)
        return _answered(await responses.models(str(model).lstrip("/")), pace, caller)

    return Router(
        path="/",
        route_handlers=[
            retrieve_response,
            delete_response,
            cancel_response,
            list_input_items,
            count_input_tokens,
            compact,
            list_models,
            retrieve_model,
        ],
    )


def _starting_after(query: Mapping[str, str]) -> int:
    text = query.get("starting_after", "-1")
    number = -1 if text == "-1" else natural(text)
    if number is None:
        raise BadRequest(
            "'starting_after' must be the number of an event.",
            code="invalid_type",
            param="starting_after",
        )
    return number


class _Conversations:
    """The Conversations API, passed through where the upstream has it."""

    def __init__(self, doors: Doors, conversations: ConversationService, pace: Pace) -> None:
        self._doors = doors
        self._conversations = conversations
        self._pace = pace

    async def create(self, request: AnyRequest) -> ASGIApp:
        caller = self._doors.caller(request, Role.CALLER)
        document = await self._document(request) or {}
        call = self._conversations.create(caller, document)
        return _answered(await unless_left(request, call), self._pace, caller)

    async def pass_on(self, request: AnyRequest, conversation_id: str, rest: str = "") -> ASGIApp:
        caller = self._doors.caller(request, Role.CALLER)
        document = await self._document(request) if request.method == "POST" else None
        call = self._conversations.pass_on(
            caller, request.method, conversation_id, rest, document, query_of(request)
        )
        return _answered(await unless_left(request, call), self._pace, caller)

    async def _document(self, request: AnyRequest) -> Document | None:
        return await self._doors.document(request) if await self._doors.body(request) else None


_CONVERSATION = "/conversations/{conversation_id:str}"


def conversations_router(doors: Doors, conversations: ConversationService, pace: Pace) -> Router:
    """The doors to conversations."""
    door = _Conversations(doors, conversations, pace)

    @post(api_paths("/conversations"), status_code=200)
    async def create_conversation(request: AnyRequest) -> ASGIApp:
        """Create a conversation."""
        return await door.create(request)

    @get(api_paths(_CONVERSATION))
    async def retrieve_conversation(request: AnyRequest, conversation_id: FromPath[str]) -> ASGIApp:
        """Retrieve a conversation."""
        return await door.pass_on(request, conversation_id)

    @post(api_paths(_CONVERSATION), status_code=200)
    async def update_conversation(request: AnyRequest, conversation_id: FromPath[str]) -> ASGIApp:
        """Update a conversation's metadata."""
        return await door.pass_on(request, conversation_id)

    @delete(api_paths(_CONVERSATION), status_code=200)
    async def delete_conversation(request: AnyRequest, conversation_id: FromPath[str]) -> ASGIApp:
        """Delete a conversation."""
        return await door.pass_on(request, conversation_id)

    handlers = [
        create_conversation,
        retrieve_conversation,
        update_conversation,
        delete_conversation,
    ]
    return Router(path="/", route_handlers=[*handlers, _items_router(door)])


def _items_router(door: _Conversations) -> Router:
    @get(api_paths(_CONVERSATION + "/items"))
    async def list_items(request: AnyRequest, conversation_id: FromPath[str]) -> ASGIApp:
        """List a conversation's items."""
        return await door.pass_on(request, conversation_id, "/items")

    @post(api_paths(_CONVERSATION + "/items"), status_code=200)
    async def add_items(request: AnyRequest, conversation_id: FromPath[str]) -> ASGIApp:
        """Add items to a conversation."""
        return await door.pass_on(request, conversation_id, "/items")

    @get(api_paths(_CONVERSATION + "/items/{item_id:str}"))
    async def retrieve_item(
        request: AnyRequest, conversation_id: FromPath[str], item_id: FromPath[str]
    ) -> ASGIApp:
        """Retrieve one item."""
        return await door.pass_on(request, conversation_id, f"/items/{item_id}")

    @delete(api_paths(_CONVERSATION + "/items/{item_id:str}"), status_code=200)
    async def delete_item(
        request: AnyRequest, conversation_id: FromPath[str], item_id: FromPath[str]
    ) -> ASGIApp:
        """Delete one item."""
        return await door.pass_on(request, conversation_id, f"/items/{item_id}")

    return Router(path="/", route_handlers=[list_items, add_items, retrieve_item, delete_item])
