"""The API of webhook endpoints: a tenant's admins say who is told of what (APPR-9)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from gateway.domain.errors import BadRequest, Conflict, NotFound
from gateway.domain.ports import AuditLog, WebhookStore
from gateway.domain.webhooks import (
    TEST,
    Delivery,
    Format,
    SigningKey,
    WebhookEndpoint,
    WebhookEvent,
    known,
    new_endpoint_id,
    new_secret,
    url_fault,
)
from gateway.services.callers import Caller
from gateway.services.webhooks import Answer, Directory, Messenger, WebhookSender

MOST_ENDPOINTS = 32
"""Endpoints that a tenant may make."""

OLD_SECRET_ACTIVE = 24 * 3600.0
"""Seconds that an old secret goes on signing beside the new one."""

_MOST_KEYS = 3
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be set; `None` leaves it as it is."""

    url: str | None = None
    events: tuple[str, ...] | None = None
    format: Format | None = None
    description: str | None = None
    enabled: bool | None = None

    @property
    def only_switches(self) -> bool:
        """Whether nothing but `enabled` is set."""
        return (self.url, self.events, self.format, self.description) == (None,) * 4


class WebhookEndpoints:
    """Endpoints as their tenant's admins see them; any other tenant's is an unknown one."""

    def __init__(
        self,
        *,
        store: WebhookStore,
        directory: Directory,
        messenger: Messenger,
        sender: WebhookSender,
        audit: AuditLog,
    ) -> None:
        self._store = store
        self._directory = directory
        self._messenger = messenger
        self._sender = sender
        self._audit = audit

    async def create(self, caller: Caller, changes: Changes) -> WebhookEndpoint:
        """Make an endpoint; its secret is in `keys`, and shown this once.

        Raises:
            BadRequest: The URL or an event is not allowed; names the field and the reason.
            Conflict: The tenant has too many.
        """
        endpoint = WebhookEndpoint(
            id=new_endpoint_id(), url=changes.url or "", keys=(SigningKey(new_secret()),)
        )
        await self._check(caller, endpoint, changes)
        now, _ = await self._directory.endpoints(caller.tenant.id)
        endpoint = replace(_set(endpoint, changes), created_at=now, updated_at=now)
        await self._store.put(caller.tenant.id, endpoint, most=MOST_ENDPOINTS)
        if changes.enabled is False:
            await self._store.switch(caller.tenant.id, endpoint.id, "user")
            endpoint = replace(endpoint, off="user")
        await self._note(caller, "webhook.made", endpoint)
        return endpoint

    async def list(self, caller: Caller) -> Sequence[WebhookEndpoint]:
        """List the tenant's endpoints: the configuration's, then its own by age."""
        _, found = await self._directory.endpoints(caller.tenant.id)
        return sorted(found.values(), key=lambda one: (not one.configured, one.created_at, one.id))

    async def retrieve(self, caller: Caller, endpoint_id: str) -> WebhookEndpoint:
        """Read an endpoint.

        Raises:
            NotFound: The tenant has no such endpoint.
        """
        return (await self._found(caller, endpoint_id))[1]

    async def update(self, caller: Caller, endpoint_id: str, changes: Changes) -> WebhookEndpoint:
        """Change an endpoint; of the configuration's, only whether they are enabled.

        Raises:
            NotFound: The tenant has no such endpoint.
            BadRequest: As for `create`.
            Conflict: It is the configuration's.
        """
        endpoint = await self.retrieve(caller, endpoint_id)
        if not changes.only_switches:
            _require_made(endpoint)
            await self._check(caller, endpoint, changes)
            endpoint = await self._write(caller, endpoint_id, lambda one, _: _set(one, changes))
            await self._note(caller, "webhook.changed", endpoint)
        if changes.enabled is not None:
            off = None if changes.enabled else "user"
            await self._store.switch(caller.tenant.id, endpoint_id, off)
            endpoint = replace(endpoint, off=off)
            event = "webhook.enabled" if changes.enabled else "webhook.disabled"
            await self._note(caller, event, endpoint)
        return endpoint

    async def rotate(self, caller: Caller, endpoint_id: str, *, keep_old: bool) -> WebhookEndpoint:
        """Give an endpoint a new secret, which is in `keys` first, and shown this once.

        Args:
            keep_old: Both sign for 24 hours, so that the receiver can be changed meanwhile.
        """
        fresh = SigningKey(new_secret())

        def rotated(one: WebhookEndpoint, now: float) -> WebhookEndpoint:
            until = now + OLD_SECRET_ACTIVE
            old = [
                replace(key, until=until if key.until is None else key.until)
                for key in one.keys
                if keep_old and (key.until is None or now < key.until)
            ]
            return replace(one, keys=(fresh, *old)[:_MOST_KEYS])

        endpoint = await self._write(caller, endpoint_id, rotated)
        await self._note(caller, "webhook.rotated", endpoint, keep_old=keep_old)
        return endpoint

    async def delete(self, caller: Caller, endpoint_id: str) -> None:
        """Remove an endpoint; what was to be sent there is not."""
        endpoint = await self.retrieve(caller, endpoint_id)
        _require_made(endpoint)
        await self._store.remove(caller.tenant.id, endpoint_id)
        await self._note(caller, "webhook.removed", endpoint)

    async def test(self, caller: Caller, endpoint_id: str) -> tuple[WebhookEvent, Answer]:
        """Send `webhook.test` now, whatever the endpoint asked for, and tell the answer."""
        now, endpoint = await self._found(caller, endpoint_id)
        data = {"object": "webhook_endpoint", "id": endpoint.id}
        event = WebhookEvent(
            id="evt_" + secrets.token_hex(16), type=TEST, occurred_at=now, data=data
        )
        return event, await self._messenger.send(event, endpoint, now=now)

    async def deliveries(
        self, caller: Caller, endpoint_id: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[Delivery], bool]:
        """List what was and will be sent to an endpoint in the last seven days, newest first."""
        await self.retrieve(caller, endpoint_id)
        return await self._store.deliveries(caller.tenant.id, endpoint_id, after=after, limit=limit)

    async def redeliver(self, caller: Caller, endpoint_id: str, delivery_id: str) -> Delivery:
        """Send an event once more, under the same `webhook-id`.

        Raises:
            NotFound: There is no such delivery, or no longer.
            Conflict: The endpoint is switched off.
        """
        await self.retrieve(caller, endpoint_id)
        found = await self._store.delivery(caller.tenant.id, delivery_id)
        if found is None or found.endpoint_id != endpoint_id:
            raise _delivery_not_found(delivery_id)
        again = await self._store.redeliver(caller.tenant.id, delivery_id)
        if again is None:
            raise _delivery_not_found(delivery_id)
        if again == "off":
            raise Conflict(
                "The webhook endpoint is disabled: enable it first.", code="endpoint_disabled"
            )
        return again

    async def _found(self, caller: Caller, endpoint_id: str) -> tuple[float, WebhookEndpoint]:
        now, found = await self._directory.endpoints(caller.tenant.id)
        endpoint = found.get(endpoint_id)
        if endpoint is None:
            raise NotFound(
                f"Webhook endpoint with id '{endpoint_id}' not found.",
                code="webhook_endpoint_not_found",
                param="id",
            )
        return now, endpoint

    async def _write(
        self,
        caller: Caller,
        endpoint_id: str,
        change: Callable[[WebhookEndpoint, float], WebhookEndpoint],
    ) -> WebhookEndpoint:
        """Read, change and write an endpoint, again when somebody else was quicker."""
        for _ in range(_ATTEMPTS):
            now, endpoint = await self._found(caller, endpoint_id)
            _require_made(endpoint)
            changed = replace(change(endpoint, now), updated_at=now)
            if await self._store.put(caller.tenant.id, changed, most=MOST_ENDPOINTS):
                return changed
        raise Conflict("The webhook endpoint is being changed by others. Try again.")

    async def _check(self, caller: Caller, endpoint: WebhookEndpoint, changes: Changes) -> None:
        for place, pattern in enumerate(changes.events or ()):
            if not known(pattern):
                raise BadRequest(
                    f"'events[{place}]' matches no event.", code="invalid_value", param="events"
                )
        if changes.url is not None:
            await self._check_url(caller, _set(endpoint, changes))

    async def _check_url(self, caller: Caller, endpoint: WebhookEndpoint) -> None:
        fault = url_fault(endpoint.url)
        if fault is not None:
            raise BadRequest(f"'url' {fault}.", code="invalid_value", param="url")
        refusal = await self._sender.refusal(endpoint.url, self._directory.reach(endpoint))
        if refusal is not None:
            await self._note(caller, "webhook.refused", endpoint, reason=refusal)
            raise BadRequest(f"'url' {refusal}.", code="url_not_allowed", param="url")

    async def _note(
        self, caller: Caller, event: str, endpoint: WebhookEndpoint, **detail: object
    ) -> None:
        """Note for the audit who did what; of the URL only its host: the rest may be a secret."""
        host = urlsplit(endpoint.url).hostname or ""
        await self._audit.note(
            caller.tenant.id,
            event,
            actor=f"subject:{caller.principal.subject}",
            subject=endpoint.id,
            detail={"host": host, "events": list(endpoint.events), **detail},
        )


def _set(endpoint: WebhookEndpoint, changes: Changes) -> WebhookEndpoint:
    return replace(
        endpoint,
        url=endpoint.url if changes.url is None else changes.url,
        events=endpoint.events if changes.events is None else changes.events,
        format=changes.format or endpoint.format,
        description=(endpoint.description if changes.description is None else changes.description),
    )


def _require_made(endpoint: WebhookEndpoint) -> None:
    if endpoint.configured:
        raise Conflict(
            "The webhook endpoint is part of the configuration: over the API it can be "
            "enabled and disabled.",
            code="configured_endpoint",
        )


def _delivery_not_found(delivery_id: str) -> NotFound:
    return NotFound(
        f"Webhook delivery with id '{delivery_id}' not found.",
        code="delivery_not_found",
        param="id",
    )
