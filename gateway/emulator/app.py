"""The HTTP surface of the emulator.

    POST   /responses                      create
    GET    /responses/{id}                 retrieve, or stream again
    DELETE /responses/{id}                 delete
    POST   /responses/{id}/cancel          cancel a background response
    GET    /responses/{id}/input_items     list
    POST   /responses/input_tokens         count
    POST   /responses/compact              compact
    *      /conversations…                 conversations and their items
    GET    /models, /models/{id}           models

below both `/v1` and `/openai/v1`. Only the emulator has, for tests:

    GET    /_emulator/requests             the last requests received, secrets as SHA-256
    DELETE /_emulator/requests             forget them
    GET    /_emulator/active               how many requests are being served right now
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from litestar import Litestar, Request, Response, Router, delete, get, post
from litestar.connection import ASGIConnection
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.types import LifeSpanReceive, LifeSpanScope, LifeSpanSend, Receive, Scope, Send
from typing_extensions import override

from gateway.emulator import errors
from gateway.emulator.conversations import Conversations
from gateway.emulator.delivery import TurnResponse
from gateway.emulator.errors import ApiError
from gateway.emulator.exchange import INTROSPECTION, Exchange
from gateway.emulator.items import now
from gateway.emulator.paging import page, read_int
from gateway.emulator.responses import Responses
from gateway.emulator.settings import EmulatorSettings
from gateway.emulator.store import Store
from gateway.emulator.turn_request import parse_body

log = logging.getLogger(__name__)

HttpRequest = Request[Any, Any, Any]

_MODELS = ("gpt-5.6-sol", "gpt-5.5", "gpt-5-mini", "gpt-4.1", "o4-mini")


class Emulator(Litestar):
    """The application, inside the layer that records, counts and breaks exchanges."""

    exchange: Exchange

    @override
    async def __call__(
        self,
        scope: Scope | LifeSpanScope,
        receive: Receive | LifeSpanReceive,
        send: Send | LifeSpanSend,
    ) -> None:
        asgi: Any = scope  # its three kinds are told apart by a string at run time
        if asgi["type"] == "http":
            asgi.setdefault("state", {})
            await self.exchange.run(super().__call__, asgi, receive, send)  # type: ignore[arg-type]
        else:
            await super().__call__(scope, receive, send)


def create_emulator(settings: EmulatorSettings | None = None) -> Emulator:
    """Return the emulator as an ASGI application with lifespan."""
    settings = settings or EmulatorSettings()
    exchange = Exchange(settings)
    store = Store(settings.capacity)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            app.state["responses"] = Responses(
                settings=settings, store=store, fault_desk=exchange.faults, tasks=tasks
            )
            yield
            tasks.cancel_scope.cancel()

    emulator = Emulator(
        route_handlers=[
            Router(path, route_handlers=_API, guards=[_check_key]) for path in ("/v1", "/openai/v1")
        ]
        + [Router(INTROSPECTION, route_handlers=_INTROSPECTION)],
        lifespan=[lifespan],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_error,
            Exception: _answer_unexpected,
        },
        request_max_body_size=None,
        openapi_config=None,
        logging_config=None,
    )
    emulator.state["settings"] = settings
    emulator.state["conversations"] = Conversations(store)
    emulator.exchange = exchange
    return emulator


def _check_key(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
    """Refuse a request without an accepted key."""
    settings: EmulatorSettings = connection.app.state["settings"]
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = ""
    if settings.azure:
        key = key or connection.headers.get("api-key", "")
    if not key or (settings.api_keys and key not in settings.api_keys):
        raise errors.unauthorized(azure=settings.azure, missing=not key)


def _answer_api_error(_: HttpRequest, exc: ApiError) -> Response[bytes]:
    return _json(exc.to_body(), status=exc.status, headers=dict(exc.headers))


def _answer_http_error(request: HttpRequest, exc: HTTPException) -> Response[bytes]:
    message = f"Invalid URL ({request.method} {request.url.path})"
    if exc.status_code == 405:
        message = f"Not allowed to {request.method} on {request.url.path}."
    return _json(ApiError(exc.status_code, message).to_body(), status=exc.status_code)


def _answer_unexpected(request: HttpRequest, exc: Exception) -> Response[bytes]:
    log.error("the emulator failed on %s", request.url.path, exc_info=exc)
    error = ApiError(500, f"The emulator failed: {type(exc).__name__}.", type="server_error")
    return _json(error.to_body(), status=500)


def _json(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def _responses(request: HttpRequest) -> Responses:
    responses: Responses = request.app.state["responses"]
    return responses


def _conversations(request: HttpRequest) -> Conversations:
    conversations: Conversations = request.app.state["conversations"]
    return conversations


def _id(request: HttpRequest, name: str = "id") -> str:
    return str(request.path_params[name])


def _include(request: HttpRequest) -> list[str]:
    query = request.query_params
    return [*query.getall("include", []), *query.getall("include[]", [])]


@post("/responses", status_code=200)
async def create_response(request: HttpRequest) -> Response[bytes]:
    """Create a response."""
    body = parse_body(await request.body())
    return TurnResponse(_responses(request).create(body, request.scope["state"].get("fault")))


@get("/responses/{id:str}")
async def retrieve_response(request: HttpRequest) -> Response[bytes]:
    """Return a response, or stream it again."""
    query, include = request.query_params, _include(request)
    if query.get("stream") != "true":
        return _json(_responses(request).retrieve(_id(request), include=include))
    return TurnResponse(
        _responses(request).resume(
            _id(request),
            after=read_int(query, "starting_after", -1),
            include=include,
            obfuscated=query.get("include_obfuscation") != "false",
        )
    )


@delete("/responses/{id:str}", status_code=200)
async def delete_response(request: HttpRequest) -> Response[bytes]:
    """Forget a response."""
    return _json(_responses(request).delete(_id(request)))


@post("/responses/{id:str}/cancel", status_code=200)
async def cancel_response(request: HttpRequest) -> Response[bytes]:
    """Stop a background response."""
    return _json(_responses(request).cancel(_id(request)))


@get("/responses/{id:str}/input_items")
async def list_input_items(request: HttpRequest) -> Response[bytes]:
    """List what a response was made from."""
    return _json(page(_responses(request).input_items(_id(request)), request.query_params))


@post("/responses/input_tokens", status_code=200)
async def count_input_tokens(request: HttpRequest) -> Response[bytes]:
    """Count the tokens of a request."""
    return _json(_responses(request).count_input(parse_body(await request.body())))


@post("/responses/compact", status_code=200)
async def compact_response(request: HttpRequest) -> Response[bytes]:
    """Compact a conversation."""
    return _json(_responses(request).compact(parse_body(await request.body())))


@post("/conversations", status_code=200)
async def create_conversation(request: HttpRequest) -> Response[bytes]:
    """Create a conversation."""
    return _json(_conversations(request).create(parse_body(await request.body())))


@get("/conversations/{id:str}")
async def retrieve_conversation(request: HttpRequest) -> Response[bytes]:
    """Return a conversation."""
    return _json(_conversations(request).retrieve(_id(request)))


@post("/conversations/{id:str}", status_code=200)
async def update_conversation(request: HttpRequest) -> Response[bytes]:
    """Replace a conversation's metadata."""
    body = parse_body(await request.body())
    return _json(_conversations(request).update(_id(request), body))


@delete("/conversations/{id:str}", status_code=200)
async def delete_conversation(request: HttpRequest) -> Response[bytes]:
    """Forget a conversation."""
    return _json(_conversations(request).delete(_id(request)))


@get("/conversations/{id:str}/items")
async def list_items(request: HttpRequest) -> Response[bytes]:
    """List a conversation's items."""
    return _json(page(_conversations(request).items(_id(request)), request.query_params))


@post("/conversations/{id:str}/items", status_code=200)
async def add_items(request: HttpRequest) -> Response[bytes]:
    """Append items to a conversation."""
    body = parse_body(await request.body())
    return _json(_conversations(request).add_items(_id(request), body))


@get("/conversations/{id:str}/items/{item_id:str}")
async def retrieve_item(request: HttpRequest) -> Response[bytes]:
    """Return an item of a conversation."""
    return _json(_conversations(request).item(_id(request), _id(request, "item_id")))


@delete("/conversations/{id:str}/items/{item_id:str}", status_code=200)
async def delete_item(request: HttpRequest) -> Response[bytes]:
    """Take an item out of a conversation."""
    return _json(_conversations(request).delete_item(_id(request), _id(request, "item_id")))


@get("/models")
async def list_models() -> Response[bytes]:
    """List the models."""
    return _json({"object": "list", "data": [_model(name) for name in _MODELS]})


@get("/models/{id:str}")
async def retrieve_model(request: HttpRequest) -> Response[bytes]:
    """Return a model; every name is one, except those that start with `unknown`."""
    name = _id(request)
    if name.startswith("unknown"):
        raise ApiError(
            404, f"The model '{name}' does not exist", param="model", code="model_not_found"
        )
    return _json(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": now(), "owned_by": "emulator"}


@get("/requests")
async def list_requests(request: HttpRequest) -> Response[bytes]:
    """Return the requests received."""
    emulator: Any = request.app
    return _json(list(emulator.exchange.requests))


@delete("/requests", status_code=204)
async def forget_requests(request: HttpRequest) -> None:
    """Forget the requests received."""
    emulator: Any = request.app
    emulator.exchange.requests.clear()


@get("/active")
async def count_active(request: HttpRequest) -> Response[bytes]:
    """Return how many requests are being served."""
    emulator: Any = request.app
    return _json({"active": emulator.exchange.active})


_API: list[Any] = [
    create_response,
    retrieve_response,
    delete_response,
    cancel_response,
    list_input_items,
    count_input_tokens,
    compact_response,
    create_conversation,
    retrieve_conversation,
    update_conversation,
    delete_conversation,
    list_items,
    add_items,
    retrieve_item,
    delete_item,
    list_models,
    retrieve_model,
]
_INTROSPECTION: list[Any] = [list_requests, forget_requests, count_active]
