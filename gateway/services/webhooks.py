"""Tell endpoints of events: hand each event to those that want it, then deliver (APPR-9).

A job hands an event out, which needs no network: one delivery for each endpoint, kept in the
store. Deliveries are then sent beside the jobs, so that no receiver, however slow, holds up a turn
or another receiver. Nothing here decides anything: a receiver's answer is a status and no more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.domain.addresses import Network, Reach
from gateway.domain.errors import GatewayError, SecretUnavailable
from gateway.domain.hints import HOOKS
from gateway.domain.messages import render
from gateway.domain.ports import (
    ApprovalStore,
    AuditLog,
    Due,
    Job,
    Meter,
    Outcome,
    SecretSource,
    Wake,
    WebhookStore,
)
from gateway.domain.webhooks import (
    RETRIES,
    WebhookEndpoint,
    WebhookEvent,
    approval_event,
    signed_headers,
)
from gateway.services.waiting import first

logger = logging.getLogger("gateway.webhooks")

AT_ONCE = 8
"""Messages that one replica sends to one endpoint at the same time; one, while it fails."""

LOOK_EVERY = 1.0
"""Seconds after which the next look is taken without a hint."""

_GONE = 410


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A receiver's answer: its status, or the class of what went wrong before there was one."""

    status: int | None = None
    error: str = ""

    @property
    def taken(self) -> bool:
        """Whether the receiver has the message."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def problem(self) -> str:
        """The class of the failure, "" where there is none."""
        return "" if self.taken else self.error or f"http_{self.status}"


class WebhookSender(Protocol):
    """Sends one signed message."""

    async def refusal(self, url: str, reach: Reach) -> str | None:
        """Say why messages may not go to the URL, as "leads to a private address", or `None`."""
        ...

    async def post(self, url: str, body: bytes, headers: dict[str, str], reach: Reach) -> Answer:
        """Send a message no further than `reach`; every failure is an answer."""
        ...


class Directory:
    """Who can be told: the endpoints of the configuration and those made over the API.

    Args:
        networks: Where endpoints may be although it is not the public internet.
    """

    def __init__(
        self,
        *,
        store: WebhookStore,
        configured: Sequence[WebhookEndpoint] = (),
        networks: Collection[Network] = (),
    ) -> None:
        self._store = store
        self._configured = {endpoint.id: endpoint for endpoint in configured}
        self._networks = frozenset(networks)

    async def endpoints(self, tenant: str) -> tuple[float, Mapping[str, WebhookEndpoint]]:
        """Read the time, and a tenant's endpoints by id, those of the configuration first."""
        now, made, off = await self._store.endpoints(tenant)
        own = {
            id_: replace(endpoint, off=off.get(id_))
            for id_, endpoint in self._configured.items()
            if _serves(endpoint, tenant)
        }
        return now, {**own, **made}

    def configured(self, tenant: str, endpoint_id: str) -> WebhookEndpoint | None:
        """Find an endpoint of the configuration."""
        endpoint = self._configured.get(endpoint_id)
        return endpoint if endpoint is not None and _serves(endpoint, tenant) else None

    def reach(self, endpoint: WebhookEndpoint) -> Reach:
        """Tell how far messages to an endpoint may go."""
        return Reach(private=endpoint.allow_private, networks=self._networks)


def _serves(endpoint: WebhookEndpoint, tenant: str) -> bool:
    return endpoint.tenants is None or tenant in endpoint.tenants


class FanOut:
    """Hands events to the endpoints that want them."""

    def __init__(
        self, *, store: WebhookStore, directory: Directory, approvals: ApprovalStore
    ) -> None:
        self._store = store
        self._directory = directory
        self._approvals = approvals

    async def run(self, job: Job) -> None:
        """Do a webhook job; a repeat of it makes nothing twice."""
        event = await self._store.event(job.tenant, job.event_id) or await self._read(job)
        if event is None:
            logger.warning("an event is too old to be told", extra={"event": job.event_id})
            return
        _, endpoints = await self._directory.endpoints(job.tenant)
        wanted = [
            endpoint.id
            for endpoint in endpoints.values()
            if endpoint.off is None and endpoint.wants(job.tenant, event.type)
        ]
        await self._store.spread(job.tenant, event, wanted)

    async def _read(self, job: Job) -> WebhookEvent | None:
        """Make the event of a job that names only an approval."""
        approval = await self._approvals.get(job.tenant, job.subject)
        if approval is None:
            return None
        return approval_event(
            approval, id=job.event_id, type=job.event, occurred_at=job.occurred_at
        )


class Messenger:
    """Writes, signs and sends one message.

    Args:
        public_url: Where people reach the gateway.
    """

    def __init__(
        self,
        *,
        directory: Directory,
        sender: WebhookSender,
        secrets: SecretSource,
        public_url: str,
    ) -> None:
        self._directory = directory
        self._sender = sender
        self._secrets = secrets
        self._public_url = public_url

    async def send(self, event: WebhookEvent, endpoint: WebhookEndpoint, *, now: float) -> Answer:
        """Send an event to an endpoint.

        Args:
            now: The store's time, which dates the signature and ends old secrets.
        """
        body = render(event, endpoint.format, public_url=self._public_url)
        try:
            signing = await self._signing(endpoint, now)
            headers = signed_headers(body, secrets=signing, message_id=event.id, timestamp=int(now))
        except (SecretUnavailable, ValueError) as error:
            # Neither text holds the secret.
            logger.warning("a webhook has no secret: %s", error, extra={"endpoint": endpoint.id})
            return Answer(error="secret_unavailable")
        return await self._sender.post(endpoint.url, body, headers, self._directory.reach(endpoint))

    async def _signing(self, endpoint: WebhookEndpoint, now: float) -> list[str]:
        if endpoint.secret is not None:
            return [await self._secrets.resolve(endpoint.secret)]
        return [key.secret for key in endpoint.keys if key.until is None or now < key.until]


def spread_out(seconds: float) -> float:
    """Lengthen a delay by up to a tenth: what failed together should not come together."""
    return seconds * (1 + 0.1 * random.random())  # noqa: S311  # no secret


class Deliverer:
    """Sends what is due, as long as the process runs.

    Args:
        retries: Seconds between one try and the next.
        lease: Seconds after which a delivery goes to another replica; more than a try takes.
    """

    def __init__(
        self,
        *,
        store: WebhookStore,
        directory: Directory,
        messenger: Messenger,
        meter: Meter,
        audit: AuditLog,
        wake: Wake,
        tenants: Collection[str],
        retries: Sequence[float] = RETRIES,
        lease: float = 30.0,
        later: Callable[[float], float] = spread_out,
    ) -> None:
        self._store = store
        self._directory = directory
        self._messenger = messenger
        self._meter = meter
        self._audit = audit
        self._wake = wake
        self._tenants = list(tenants)
        self._retries = tuple(retries)
        self._lease = lease
        self._later = later
        self._busy: Counter[tuple[str, str]] = Counter()
        self._failing: set[tuple[str, str]] = set()
        self._freed = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set, then finish what was begun."""
        with self._wake.listen(HOOKS) as hint:
            async with asyncio.TaskGroup() as group:
                while not stop.is_set():
                    taken = await self._take()
                    for due in taken:
                        group.create_task(self.deliver(due))
                    if not taken:
                        await first(hint.wait(LOOK_EVERY), stop.wait(), self._freed.wait())

    async def _take(self) -> Sequence[Due]:
        self._freed.clear()
        room = {
            place: max((1 if place in self._failing else AT_ONCE) - self._busy[place], 0)
            for place in self._failing | set(self._busy)
        }
        try:
            taken = await self._store.take(
                self._tenants, lease=self._lease, most=AT_ONCE, room=room
            )
        except GatewayError as exc:
            logger.warning("no webhooks can be sent", extra={"code": exc.code})
        except Exception:  # the loop outlives every fault: without it nobody is told any more
            logger.exception("no webhooks can be sent")
        else:
            self._busy.update(_place(due) for due in taken)
            return taken
        await asyncio.sleep(LOOK_EVERY)
        return ()

    async def deliver(self, due: Due) -> None:
        """Send one delivery and note what became of it; one that fails here comes again."""
        place = _place(due)
        try:
            await self._try(due)
        except GatewayError as exc:
            logger.warning("a webhook was not noted", extra={"code": exc.code})
        except Exception:  # one bad delivery must not end the loop
            logger.exception("a webhook failed", extra={"delivery": due.delivery.id})
        finally:
            self._busy[place] -= 1
            if not self._busy[place]:
                del self._busy[place]
            self._freed.set()

    async def _try(self, due: Due) -> None:
        endpoint = due.endpoint or self._directory.configured(*_place(due))
        ends_at = due.event.ends_at
        if endpoint is None:
            await self._settle(due, "canceled", Answer(error="endpoint_removed"))
        elif due.off is not None:
            await self._settle(due, "canceled", Answer(error="endpoint_disabled"))
        elif ends_at is not None and due.now >= ends_at:
            await self._settle(due, "expired", Answer(error="expired"))
        else:
            await self._send(due, endpoint)

    async def _send(self, due: Due, endpoint: WebhookEndpoint) -> None:
        delivery, place = due.delivery, _place(due)
        answer = await self._messenger.send(due.event, endpoint, now=due.now)
        if answer.taken:
            self._failing.discard(place)
            await self._settle(due, "delivered", answer)
            return
        self._failing.add(place)
        if answer.status == _GONE:
            await self._settle(due, "gone", answer)
        elif delivery.tries >= len(self._retries):
            await self._settle(due, "failed", answer)
        else:
            delay = self._later(self._retries[delivery.tries])
            await self._settle(due, "retry", answer, delay)

    async def _settle(self, due: Due, outcome: Outcome, answer: Answer, delay: float = 0) -> None:
        delivery = due.delivery
        settled = await self._store.settle(
            delivery, outcome, status=answer.status, error=answer.problem, delay=delay
        )
        ids = {
            "endpoint": delivery.endpoint_id,
            "event": delivery.event_id,
            "problem": answer.problem,
        }
        if settled == "disabled":
            logger.error("a webhook endpoint is gone and was switched off", extra=ids)
            self._meter.webhook_endpoint_disabled("gone")
            await self._audit.note(
                delivery.tenant,
                "webhook.disabled",
                actor="gateway",
                subject=delivery.endpoint_id,
                detail={"reason": "gone"},
            )
            settled = "gone"
        elif settled in ("failed", "expired"):
            logger.error("a webhook was given up: %s", settled, extra=ids)
        elif settled == "retry":
            logger.warning("a webhook comes again in %.0f s", delay, extra=ids)
        if settled:
            self._meter.webhook(event=delivery.type, outcome=settled)


def _place(due: Due) -> tuple[str, str]:
    return due.delivery.tenant, due.delivery.endpoint_id
