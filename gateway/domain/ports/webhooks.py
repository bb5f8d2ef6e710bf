"""Webhooks: endpoints, what is due, how it ended (APPR-9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.domain.webhooks import Delivery, WebhookEndpoint, WebhookEvent


class Outbox(Protocol):
    """Events for webhooks that are about something else than an approval (APPR-9)."""

    async def emit(
        self,
        tenant: str,
        event: str,
        subject: str,
        data: Mapping[str, object],
        *,
        occurrence: str = "",
    ) -> bool:
        """Keep an event, to be told to every endpoint of the tenant that wants it.

        Returns as soon as the event is kept; from then on it survives every crash. To lose none,
        emit *before* the step that ends the work is recorded: a repeat of the work emits again,
        and the same event again is one event (false), with the same `webhook-id`.

            await outbox.emit(tenant, "continuation.failed", turn_id,
                              {"object": "response", "status": "failed"}, occurrence=batch_id)
            await outbox.emit(tenant, "tool.drifted", f"{server}.{tool}",
                              {"object": "tool_pin", "server": server, "tool": tool,
                               "url": "/console/tools"}, occurrence=new_hash)

        Args:
            event: One of `gateway.domain.webhooks.EVENTS`.
            subject: The id of what it is about; becomes `data.id`.
            data: The rest of the payload's `data`: ids, names and states, never arguments,
                results or secrets. A `url` that begins with `/` is led to `server.public_url`.
            occurrence: What tells this event from an earlier one of the same subject.

        Raises:
            ValueError: There is no such event.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery that was taken to be sent, and what is needed for it.

    Attributes:
        endpoint: The endpoint, if it was made over the API.
        off: Why the endpoint is off, of the API or not; or `None`.
        now: Seconds since the epoch, by the store's clock.
    """

    delivery: Delivery
    event: WebhookEvent
    endpoint: WebhookEndpoint | None
    off: str | None
    now: float


Outcome = Literal["delivered", "retry", "failed", "gone", "expired", "canceled"]
Settled = Literal["", "delivered", "retry", "failed", "expired", "gone", "disabled", "canceled"]


class WebhookStore(Protocol):
    """Endpoints of webhooks, and what is to be delivered to them (APPR-9)."""

    async def event(self, tenant: str, event_id: str) -> WebhookEvent | None:
        """Read an event that was emitted or handed to endpoints."""
        ...

    async def spread(self, tenant: str, event: WebhookEvent, endpoint_ids: Sequence[str]) -> int:
        """Keep the event with a delivery for each endpoint; returns how many are new.

        An endpoint that has one already gets no second, however often this is repeated.
        """
        ...

    async def take(
        self,
        tenants: Sequence[str],
        *,
        lease: float,
        most: int,
        room: Mapping[tuple[str, str], int],
    ) -> Sequence[Due]:
        """Take deliveries that are due, for `lease` seconds; no waiting.

        Args:
            most: For each endpoint.
            room: The same for some, by tenant and endpoint id.
        """
        ...

    async def settle(
        self,
        delivery: Delivery,
        outcome: Outcome,
        *,
        status: int | None = None,
        error: str = "",
        delay: float = 0.0,
    ) -> Settled:
        """Note what became of a try, and tell what follows from it.

        `expired` and `canceled` were not sent. A retry beyond the event's end is `expired`.
        `gone` switches the endpoint off, which is `disabled` for whoever was first. "" when
        somebody else has taken the delivery since.
        """
        ...

    async def deliveries(
        self, tenant: str, endpoint_id: str, *, after: str | None, limit: int
    ) -> tuple[Sequence[Delivery], bool]:
        """List deliveries of an endpoint, newest first, and tell whether there are more."""
        ...

    async def delivery(self, tenant: str, delivery_id: str) -> Delivery | None:
        """Read a delivery."""
        ...

    async def redeliver(self, tenant: str, delivery_id: str) -> Delivery | Literal["off"] | None:
        """Send a delivery for anew; "off" when its endpoint is, `None` when there is none."""
        ...

    async def endpoints(
        self, tenant: str
    ) -> tuple[float, Mapping[str, WebhookEndpoint], Mapping[str, str]]:
        """Read the time, the endpoints of the API by id, and why any endpoint is off."""
        ...

    async def put(self, tenant: str, endpoint: WebhookEndpoint, *, most: int) -> bool:
        """Write an endpoint whose `version` is the one that was read (0: a new one).

        Returns:
            False when it was changed or removed since.

        Raises:
            Conflict: The tenant has `most` endpoints already.
        """
        ...

    async def switch(self, tenant: str, endpoint_id: str, off: str | None) -> None:
        """Switch an endpoint off, with the reason, or on."""
        ...

    async def remove(self, tenant: str, endpoint_id: str) -> bool:
        """Remove an endpoint of the API and its deliveries."""
