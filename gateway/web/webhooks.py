"""`/v1/webhook_endpoints`: who is told of what, and what became of it (APPR-9)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.domain.documents import encode
from gateway.domain.errors import BadRequest
from gateway.domain.identity import Role
from gateway.domain.lists import listing, page_limit
from gateway.domain.webhooks import Delivery, Format, WebhookEndpoint
from gateway.services.callers import Caller
from gateway.services.webhook_endpoints import Changes, WebhookEndpoints
from gateway.web.answers import json_answer
from gateway.web.doors import AnyRequest, Doors

_Events = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...],
    msgspec.Meta(min_length=1, max_length=32),
]
_Text = Annotated[str, msgspec.Meta(max_length=500)]
_FIELD = re.compile(r"field `([^`]*)`|`\$\.([a-z_0-9]*)")
T = TypeVar("T")


class _Update(msgspec.Struct, forbid_unknown_fields=True):
    url: str | None = None
    events: _Events | None = None
    format: Format | None = None
    description: _Text | None = None
    enabled: bool | None = None
    payload: Literal["thin"] | None = None

    def changes(self) -> Changes:
        return Changes(
            url=self.url,
            events=self.events,
            format=self.format,
            description=self.description,
            enabled=self.enabled,
        )


class _Create(_Update, forbid_unknown_fields=True, kw_only=True):
    url: str


class _Rotate(msgspec.Struct, forbid_unknown_fields=True):
    keep_old_secret_active_for_24_hours: bool = False


def webhooks_router(doors: Doors, webhooks: WebhookEndpoints) -> Router:
    """The doors to webhook endpoints; all of them are for a tenant's admins."""
    return Router(path="/", route_handlers=[*_keeping(doors, webhooks), *_sending(doors, webhooks)])


def _keeping(doors: Doors, webhooks: WebhookEndpoints) -> Sequence[HTTPRouteHandler]:
    @get("/v1/webhook_endpoints")
    async def list_webhook_endpoints(request: AnyRequest) -> ASGIApp:
        """List the endpoints, those of the configuration first."""
        caller = doors.caller(request, Role.ADMIN)
        return _json(caller, listing([_show(one) for one in await webhooks.list(caller)], False))

    @post("/v1/webhook_endpoints", status_code=201)
    async def create_webhook_endpoint(request: AnyRequest) -> ASGIApp:
        """Make an endpoint; the answer alone shows its secret."""
        caller = doors.caller(request, Role.ADMIN)
        wanted = await _read(doors, request, _Create)
        return _json(caller, _show_secret(await webhooks.create(caller, wanted.changes())), 201)

    @get("/v1/webhook_endpoints/{endpoint_id:str}")
    async def retrieve_webhook_endpoint(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """Read an endpoint."""
        caller = doors.caller(request, Role.ADMIN)
        return _json(caller, _show(await webhooks.retrieve(caller, endpoint_id)))

    @patch("/v1/webhook_endpoints/{endpoint_id:str}")
    async def update_webhook_endpoint(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """Change what is given of an endpoint."""
        caller = doors.caller(request, Role.ADMIN)
        wanted = await _read(doors, request, _Update)
        return _json(caller, _show(await webhooks.update(caller, endpoint_id, wanted.changes())))

    @delete("/v1/webhook_endpoints/{endpoint_id:str}", status_code=200)
    async def delete_webhook_endpoint(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """Remove an endpoint."""
        caller = doors.caller(request, Role.ADMIN)
        await webhooks.delete(caller, endpoint_id)
        gone = {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}
        return _json(caller, gone)

    return (
        list_webhook_endpoints,
        create_webhook_endpoint,
        retrieve_webhook_endpoint,
        update_webhook_endpoint,
        delete_webhook_endpoint,
    )


def _sending(doors: Doors, webhooks: WebhookEndpoints) -> Sequence[HTTPRouteHandler]:
    @post("/v1/webhook_endpoints/{endpoint_id:str}/rotate_secret", status_code=200)
    async def rotate_webhook_secret(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """Give an endpoint a new secret; the answer alone shows it."""
        caller = doors.caller(request, Role.ADMIN)
        wanted = await _read(doors, request, _Rotate)
        rotated = await webhooks.rotate(
            caller, endpoint_id, keep_old=wanted.keep_old_secret_active_for_24_hours
        )
        return _json(caller, _show_secret(rotated))

    @post("/v1/webhook_endpoints/{endpoint_id:str}/test", status_code=200)
    async def test_webhook_endpoint(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """Send `webhook.test` now, and tell what the receiver answered."""
        caller = doors.caller(request, Role.ADMIN)
        event, answer = await webhooks.test(caller, endpoint_id)
        shown = {
            "object": "webhook_endpoint.test",
            "event_id": event.id,
            "delivered": answer.taken,
            "status_code": answer.status,
            "error": answer.problem or None,
        }
        return _json(caller, shown)

    @get("/v1/webhook_endpoints/{endpoint_id:str}/deliveries")
    async def list_webhook_deliveries(request: AnyRequest, endpoint_id: FromPath[str]) -> ASGIApp:
        """List deliveries of the last seven days, newest first: `after`, `limit`."""
        caller = doors.caller(request, Role.ADMIN)
        query = request.query_params
        found, more = await webhooks.deliveries(
            caller,
            endpoint_id,
            after=query.get("after"),
            limit=page_limit(query.get("limit", "20")),
        )
        return _json(caller, listing([_show_delivery(one) for one in found], more))

    @post(
        "/v1/webhook_endpoints/{endpoint_id:str}/deliveries/{delivery_id:str}/redeliver",
        status_code=200,
    )
    async def redeliver_webhook(
        request: AnyRequest, endpoint_id: FromPath[str], delivery_id: FromPath[str]
    ) -> ASGIApp:
        """Send an event once more, under the same id."""
        caller = doors.caller(request, Role.ADMIN)
        again = await webhooks.redeliver(caller, endpoint_id, delivery_id)
        return _json(caller, _show_delivery(again))

    return (
        rotate_webhook_secret,
        test_webhook_endpoint,
        list_webhook_deliveries,
        redeliver_webhook,
    )


async def _read(doors: Doors, request: AnyRequest, kind: type[T]) -> T:
    # An empty body is an empty object: some doors need nothing.
    body = await doors.document(request) if await doors.body(request) else {}
    try:
        return msgspec.json.decode(encode(body), type=kind)
    except msgspec.ValidationError as exc:
        named = _FIELD.search(str(exc))
        param = (named.group(1) or named.group(2)) if named else None
        raise BadRequest(
            f"Invalid webhook endpoint: {exc}.", code="invalid_value", param=param
        ) from exc


def _show(endpoint: WebhookEndpoint) -> dict[str, object]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        # The operator's URLs may hold what authenticates there, as those of chats do.
        "url": origin(endpoint.url) if endpoint.configured else endpoint.url,
        "events": list(endpoint.events),
        "format": endpoint.format,
        "payload": "thin",
        "description": endpoint.description,
        "enabled": endpoint.off is None,
        "disabled_reason": endpoint.off,
        "configured": endpoint.configured,
        "created_at": endpoint.created_at or None,
        "updated_at": endpoint.updated_at or None,
    }


def _show_secret(endpoint: WebhookEndpoint) -> dict[str, object]:
    old = [key.until for key in endpoint.keys[1:]]
    return {
        **_show(endpoint),
        "secret": endpoint.keys[0].secret,
        "old_secret_active_until": max((until for until in old if until), default=None),
    }


def _show_delivery(delivery: Delivery) -> dict[str, object]:
    return {
        "id": delivery.id,
        "object": "webhook_delivery",
        "endpoint_id": delivery.endpoint_id,
        "event_id": delivery.event_id,
        "type": delivery.type,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "last_status_code": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": delivery.created_at,
        "last_attempt_at": delivery.last_attempt_at,
        "next_attempt_at": delivery.next_attempt_at,
    }


def origin(url: str) -> str:
    """Cut a URL after its host: the rest, and a user, may be secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}/…"


def _json(caller: Caller, body: object, status: int = 200) -> ASGIApp:
    return json_answer(caller, body, status=status, extra={"cache-control": "no-store"})
