"""Events, endpoints and deliveries of webhooks in Redis (APPR-9).

What an event says, and an endpoint with its secrets, is sealed; plain are ids, types, states,
times and counts. The transitions are in `webhooks.lua`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol, cast

import msgspec
from redis.exceptions import NoScriptError
from typing_extensions import override

from gateway.adapters.redis import keys, wire
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.errors import Conflict, Undecipherable
from gateway.domain.ports import Cipher, Due, Outbox, Outcome, Settled, WebhookStore
from gateway.domain.webhooks import EVENTS, Delivery, WebhookEndpoint, WebhookEvent, delivery_id

_JSON = msgspec.json.Encoder()
_DATA = msgspec.json.Decoder(dict[str, Any])
_ENCODER = msgspec.msgpack.Encoder()
_ENDPOINT = msgspec.msgpack.Decoder(WebhookEndpoint)


logger = logging.getLogger("gateway.webhooks")


class AgingCipher(Cipher, Protocol):
    """A cipher that tells what is sealed under an older key."""

    def is_current(self, sealed: bytes) -> bool:
        """Tell whether bytes are sealed under the first key."""
        ...


class RedisOutbox(Outbox):
    """Keeps events, each with the job that hands it to the endpoints, in one step."""

    def __init__(self, client: Client, cipher: Cipher) -> None:
        self._sealing = _Sealing(cipher)
        self._script = Script(client, "webhooks.lua")

    @override
    @store_errors
    async def emit(
        self,
        tenant: str,
        event: str,
        subject: str,
        data: Mapping[str, object],
        *,
        occurrence: str = "",
    ) -> bool:
        if event not in EVENTS:
            raise ValueError(f"there is no event {event!r}")
        event_id = _event_id(tenant, event, subject, occurrence)
        sealed = self._sealing.seal_event(tenant, event_id, {"id": subject, **data})
        key = keys.event(tenant, event_id)
        return bool(await self._script(key, *_common("emit", tenant), event_id, event, sealed))


class RedisWebhookStore(WebhookStore):
    """Endpoints and deliveries of all tenants.

    Endpoints have no end: one that is sealed under an older key is sealed anew when it is read,
    so that the key can be taken out some day.
    """

    def __init__(self, client: Client, cipher: AgingCipher) -> None:
        self._client = client
        self._cipher = cipher
        self._sealing = _Sealing(cipher)
        self._script = Script(client, "webhooks.lua")

    @override
    @store_errors
    async def event(self, tenant: str, event_id: str) -> WebhookEvent | None:
        found = await self._call("event", tenant, event_id)
        return None if found is None else self._sealing.event(tenant, event_id, found)

    @override
    @store_errors
    async def spread(self, tenant: str, event: WebhookEvent, endpoint_ids: Sequence[str]) -> int:
        pairs = [part for one in endpoint_ids for part in (one, delivery_id(tenant, event.id, one))]
        sealed = self._sealing.seal_event(tenant, event.id, event.data)
        at, ends = f"{event.occurred_at:.3f}", wire.millis(event.ends_at or 0)
        call = self._call("spread", tenant, event.id, event.type, at, sealed, ends, *pairs)
        return int(await call)

    @override
    @store_errors
    async def take(
        self,
        tenants: Sequence[str],
        *,
        lease: float,
        most: int,
        room: Mapping[tuple[str, str], int],
    ) -> Sequence[Due]:
        if not tenants:
            return ()
        calls = [(tenant, wire.millis(lease), most, *_pairs(tenant, room)) for tenant in tenants]
        try:
            answers = await self._take(calls)
        except NoScriptError:
            await self._script.load()
            answers = await self._take(calls)
        found = [
            self._due(tenant, int(now) / 1000, parts)
            for tenant, (now, taken) in zip(tenants, answers, strict=True)
            for parts in taken
        ]
        return [due for due in found if due is not None]

    def _due(self, tenant: str, now: float, parts: Sequence[Any]) -> Due | None:
        try:
            return self._sealing.due(tenant, now, parts)
        except Undecipherable as exc:  # the others can be sent all the same
            logger.error("a webhook cannot be read: %s", exc.message)  # noqa: TRY400
            return None

    async def _take(self, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for tenant, *args in calls:
                common = (keys.hooks(tenant), *_common("take", tenant))
                pipe.execute_command("EVALSHA", self._script.sha, 1, *common, *args)
            return await pipe.execute()

    @override
    @store_errors
    async def settle(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        status: int | None = None,
        error: str = "",
        delay: float = 0.0,
    ) -> Settled:
        shown = "" if status is None else status
        settled = await self._call(
            "settle",
            delivery.tenant,
            delivery.id,
            delivery.fence,
            outcome,
            shown,
            error,
            wire.millis(delay),
        )
        return cast("Settled", settled.decode())

    @override
    @store_errors
    async def deliveries(
        self, tenant: str, endpoint_id: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[Delivery], bool]:
        page, more = await self._call("deliveries", tenant, endpoint_id, after or "", limit)
        return [_delivery(tenant, shown) for shown in page], bool(more)

    @override
    @store_errors
    async def delivery(self, tenant: str, delivery_id: str) -> Delivery | None:
        shown = await self._call("delivery", tenant, delivery_id)
        return None if shown is None else _delivery(tenant, shown)

    @override
    @store_errors
    async def redeliver(self, tenant: str, delivery_id: str) -> Delivery | Literal["off"] | None:
        shown = await self._call("redeliver", tenant, delivery_id)
        if shown is None:
            return None
        return "off" if shown == b"off" else _delivery(tenant, shown)

    @override
    @store_errors
    async def endpoints(
        self, tenant: str
    ) -> tuple[float, Mapping[str, WebhookEndpoint], Mapping[str, str]]:
        now, stored, off = await self._call("endpoints", tenant)
        reasons = {name.decode(): why.decode() for name, why in _by_two(off)}
        found = {}
        for name, value in _by_two(stored):
            one = await self._current(tenant, name.decode(), value)
            if one is not None:
                found[one.id] = replace(one, off=reasons.get(one.id))
        return int(now) / 1000, found, reasons

    async def _current(self, tenant: str, name: str, value: bytes) -> WebhookEndpoint | None:
        """Open an endpoint, and seal it anew where its key is an older one."""
        try:
            one = self._sealing.endpoint(tenant, name, value)
        except Undecipherable as exc:  # the others can be told all the same
            logger.error("a webhook endpoint cannot be read: %s", exc.message)  # noqa: TRY400
            return None
        if self._cipher.is_current(value.partition(b":")[2]):
            return one
        written = await self.put(tenant, one, most=0)
        return replace(one, version=one.version + 1) if written else one

    @override
    @store_errors
    async def put(self, tenant: str, endpoint: WebhookEndpoint, *, most: int) -> bool:
        written = replace(endpoint, off=None, version=endpoint.version + 1)
        sealed = self._sealing.seal_endpoint(tenant, written)
        done = await self._call(
            "put", tenant, endpoint.id, endpoint.version, written.version, sealed, most
        )
        if done < 0:
            raise Conflict(
                f"A tenant has at most {most} webhook endpoints.", code="too_many_endpoints"
            )
        return bool(done)

    @override
    @store_errors
    async def switch(self, tenant: str, endpoint_id: str, off: str | None) -> None:
        await self._call("switch", tenant, endpoint_id, off or "")

    @override
    @store_errors
    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        return bool(await self._call("remove", tenant, endpoint_id))

    async def _call(self, operation: str, tenant: str, *args: bytes | str | int) -> Any:
        given = [wire.raw(arg) if isinstance(arg, str) else arg for arg in args]
        return await self._script(keys.hooks(tenant), *_common(operation, tenant), *given)


class _Sealing:
    """The form in which things are kept: what says something is sealed, and bound to its place."""

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def seal_event(self, tenant: str, event_id: str, data: Mapping[str, object]) -> bytes:
        plain = _JSON.encode(data)
        return self._cipher.encrypt(plain, tenant=tenant, kind="webhook.event", id=event_id)

    def event(self, tenant: str, event_id: str, found: Sequence[bytes]) -> WebhookEvent:
        kind, at, sealed, ends = found
        plain = self._cipher.decrypt(sealed, tenant=tenant, kind="webhook.event", id=event_id)
        return WebhookEvent(
            id=event_id,
            type=kind.decode(),
            occurred_at=float(at),
            data=_DATA.decode(plain),
            ends_at=int(ends) / 1000 or None,
        )

    def seal_endpoint(self, tenant: str, endpoint: WebhookEndpoint) -> bytes:
        plain = _ENCODER.encode(endpoint)
        return self._cipher.encrypt(plain, tenant=tenant, kind="webhook.endpoint", id=endpoint.id)

    def endpoint(self, tenant: str, endpoint_id: str, value: bytes) -> WebhookEndpoint:
        sealed = value.partition(b":")[2]
        kind = "webhook.endpoint"
        plain = self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=endpoint_id)
        return _ENDPOINT.decode(plain)

    def due(self, tenant: str, now: float, parts: Sequence[Any]) -> Due:
        shown, event, sealed, off = parts
        delivery = _delivery(tenant, shown)
        endpoint = None
        if sealed is not None:
            endpoint = self.endpoint(tenant, delivery.endpoint_id, sealed)
        return Due(
            delivery=delivery,
            event=self.event(tenant, delivery.event_id, event),
            endpoint=endpoint,
            off=None if off is None else off.decode(),
            now=now,
        )


def _delivery(tenant: str, shown: Sequence[Any]) -> Delivery:
    name, flat, due = shown
    fields = {key.decode(): value.decode() for key, value in _by_two(flat)}
    status, last = fields.get("st"), fields.get("l")
    attempts = int(fields["n"])
    return Delivery(
        id=name.decode(),
        tenant=tenant,
        endpoint_id=fields["p"],
        event_id=fields["i"],
        type=fields["e"],
        status=cast("Literal['pending', 'delivered', 'failed', 'canceled']", fields["s"]),
        attempts=attempts,
        tries=max(attempts - int(fields["r"]), 0),
        created_at=int(fields["c"]) / 1000,
        last_attempt_at=int(last) / 1000 if last else None,
        last_status=int(status) if status else None,
        last_error=fields.get("er") or None,
        next_attempt_at=float(due) / 1000 if due else None,
        fence=int(fields["f"]),
    )


def _event_id(tenant: str, event: str, subject: str, occurrence: str) -> str:
    """Name an event by what it is, so that a repeat has the same name."""
    text = json.dumps([tenant, event, subject, occurrence])
    return "evt_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def _common(operation: str, tenant: str) -> tuple[str, bytes, str]:
    return operation, keys.prefix(tenant), tenant


def _pairs(tenant: str, room: Mapping[tuple[str, str], int]) -> Iterator[str | int]:
    for (owner, endpoint), free in room.items():
        if owner == tenant:
            yield from (endpoint, free)


def _by_two(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)
