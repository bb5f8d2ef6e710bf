"""Deliver webhooks from their jobs: one job fans out to one per endpoint, each with its own
retries (APPR-9).

Nothing here decides anything: an endpoint's answer is a status and no more.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.domain.errors import SecretUnavailable
from gateway.domain.ports import ApprovalStore, Job, JobQueue, SecretSource
from gateway.domain.webhooks import WebhookEndpoint, payload, signed_headers

_LOG = logging.getLogger(__name__)

RETRIES = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0)
"""Seconds between one try and the next; after the last one an event is given up."""

_GONE = 410


class WebhookSender(Protocol):
    """Sends one signed message."""

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int | None:
        """Return the endpoint's status; `None` when there was no answer in time."""
        ...


@dataclass(frozen=True, slots=True)
class _Spread:
    """Delays differ by up to a tenth, so that what failed together does not come together."""

    draw: Callable[[], float] = random.random

    def __call__(self, seconds: float) -> float:
        return seconds * (1 + 0.1 * self.draw())


class WebhookService:
    """Tells endpoints of approvals.

    Args:
        public_url: Where approvers reach the gateway.
        clock: Seconds since the epoch, for the signature.
    """

    def __init__(
        self,
        *,
        endpoints: Sequence[WebhookEndpoint],
        approvals: ApprovalStore,
        jobs: JobQueue,
        sender: WebhookSender,
        secrets: SecretSource,
        public_url: str,
        clock: Callable[[], float] = time.time,
        spread: Callable[[float], float] = _Spread(),
    ) -> None:
        self._endpoints = {endpoint.id: endpoint for endpoint in endpoints}
        self._approvals = approvals
        self._jobs = jobs
        self._sender = sender
        self._secrets = secrets
        self._public_url = public_url
        self._clock = clock
        self._spread = spread

    async def deliver(self, job: Job) -> None:
        """Do a webhook job; the worker removes it afterwards.

        A failure adds the job's next try. An error of the store is raised, and the job comes
        again when its lease lapses.
        """
        if not job.target:
            await self._fan_out(job)
            return
        endpoint = self._endpoints.get(job.target)
        if endpoint is None:
            return  # it is configured no more
        status = await self._send(endpoint, job)
        if status is None or not (200 <= status < 300 or status == _GONE):
            await self._again(job, status)

    async def _fan_out(self, job: Job) -> None:
        for endpoint in self._endpoints.values():
            if endpoint.wants(job.tenant, job.event):
                await self._jobs.add(replace(job, target=endpoint.id))

    async def _send(self, endpoint: WebhookEndpoint, job: Job) -> int | None:
        approval = await self._approvals.get(job.tenant, job.subject)
        if approval is None:
            return _GONE  # past its time: there is nothing left to tell
        body = payload(
            approval, event=job.event, occurred_at=job.occurred_at, public_url=self._public_url
        )
        try:
            secret = await self._secrets.resolve(endpoint.secret)
        except SecretUnavailable as error:
            _LOG.warning("webhook %s: %s", endpoint.id, error.message)
            return None
        headers = signed_headers(
            body, secret=secret, message_id=job.event_id, timestamp=int(self._clock())
        )
        return await self._sender.post(endpoint.url, body, headers)

    async def _again(self, job: Job, status: int | None) -> None:
        if job.attempt >= len(RETRIES):
            _LOG.error("webhook %s given up: %s, %s", job.target, job.event_id, status)
            return
        delay = self._spread(RETRIES[job.attempt])
        _LOG.warning("webhook %s: %s, again in %.0f s", job.target, status, delay)
        await self._jobs.add(replace(job, attempt=job.attempt + 1), delay=delay)
