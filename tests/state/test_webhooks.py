"""Webhooks: thin, signed, repeated until somebody takes them, and never deciding (APPR-9)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.adapters.webhook import HttpWebhookSender
from gateway.domain.approvals import Approval
from gateway.domain.errors import SecretUnavailable
from gateway.domain.ports import Job
from gateway.domain.secrets import SecretRef
from gateway.domain.webhooks import WebhookEndpoint, payload, signed_headers
from gateway.services.webhooks import RETRIES, WebhookService

from .conftest import Stores
from .make import APPROVE, OTHER, TENANT, approval, opened, vote

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()


class Secrets:
    def __init__(self, **values: str) -> None:
        self.values = {"HOOK": SECRET} | values

    async def resolve(self, ref: SecretRef) -> str:
        if ref.name not in self.values:
            raise SecretUnavailable(f"{ref} is not set")
        return self.values[ref.name]


class Receiver:
    """An endpoint that notes what it gets and answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, dict[str, str]]] = []
        self.statuses: list[int] = []
        self.pause = 0.0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((await request.read(), headers))
        await asyncio.sleep(self.pause)
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"location": self.url} if 300 <= status < 400 else {}
        return web.Response(status=status, text='{"decision":"approve"}', headers=headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://{host}:{port}/hook"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def sender() -> AsyncIterator[HttpWebhookSender]:
    async with HttpWebhookSender(timeout=1.0) as sender:
        yield sender


class Later:
    """A queue that notes what is added, with its delay."""

    def __init__(self) -> None:
        self.added: list[tuple[Job, float]] = []

    async def take(self, tenants: object, *, limit: int) -> list[Job]:
        raise NotImplementedError

    async def done(self, job: Job) -> None:
        raise NotImplementedError

    async def add(self, job: Job, *, delay: float = 0.0) -> None:
        self.added.append((job, delay))


def endpoint(url: str, *events: str, **changes: Any) -> WebhookEndpoint:
    secret = SecretRef("env", "HOOK")
    return WebhookEndpoint(url, secret, events or ("approval.*",), **changes)


def service(
    stores: Stores, sender: HttpWebhookSender, *endpoints: WebhookEndpoint, **changes: Any
) -> WebhookService:
    values: dict[str, Any] = {
        "endpoints": endpoints,
        "approvals": stores.approvals,
        "jobs": stores.jobs,
        "sender": sender,
        "secrets": Secrets(),
        "public_url": "https://gw.example.com/",
        "spread": lambda seconds: seconds,
    }
    return WebhookService(**(values | changes))


async def work(stores: Stores, webhooks: WebhookService) -> None:
    """Do all jobs that are due, as the worker does."""
    while jobs := await stores.jobs.take([TENANT], limit=10):
        for job in jobs:
            if job.kind == "webhook":
                await webhooks.deliver(job)
            await stores.jobs.done(job)


async def asked(stores: Stores) -> Approval:
    one = approval()
    await opened(stores.approvals, one)
    return one


@pytest.mark.covers("APPR-9")
async def test_an_approval_is_told_with_a_signature_that_verifies(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    one = await asked(stores)
    await work(stores, service(stores, sender, endpoint(receiver.url)))
    ((body, headers),) = receiver.got
    shown = Webhook(SECRET).verify(body, headers)
    got = await stores.approvals.get(TENANT, one.id)
    assert got is not None
    assert shown["type"] == "approval.requested"
    assert shown["data"] == {
        "object": "approval",
        "id": one.id,
        "status": "pending",
        "turn_id": "resp_turn",
        "response_id": "resp_leg",
        "server": "github",
        "tool": "create_issue",
        "expires_at": shown["data"]["expires_at"],
        "url": f"https://gw.example.com/console/approvals/{one.id}",
        "fingerprint": "sha256:print",
        "version": 1,
    }
    assert b"Broken" not in body
    assert headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"pending", b"PENDING"), headers)


@pytest.mark.covers("APPR-9")
async def test_every_event_is_told_once_and_an_answer_decides_nothing(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    one = await asked(stores)
    webhooks = service(stores, sender, endpoint(receiver.url))
    await work(stores, webhooks)
    got = await stores.approvals.get(TENANT, one.id)
    assert got is not None
    assert got.status == "pending"
    await vote(stores.approvals, one, "ann", APPROVE)
    await work(stores, webhooks)
    told = [json.loads(body) for body, _ in receiver.got]
    assert [(t["type"], t["data"]["status"]) for t in told] == [
        ("approval.requested", "pending"),
        ("approval.resolved", "approved"),
    ]


async def test_endpoints_get_what_they_asked_for(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    one = await asked(stores)
    ends = [
        endpoint(receiver.url + "?all"),
        endpoint(receiver.url + "?resolved", "approval.resolved"),
        endpoint(receiver.url + "?other", "tool.*"),
        endpoint(receiver.url + "?foreign", tenants=frozenset({OTHER})),
    ]
    await vote(stores.approvals, one, "ann", APPROVE)
    await work(stores, service(stores, sender, *ends))
    assert len(receiver.got) == 3


def test_patterns_match_whole_names_or_prefixes() -> None:
    for patterns, wanted in {
        ("approval.*",): True,
        ("*",): True,
        ("approval.requested",): True,
        ("approval",): False,
        ("approval.request",): False,
        ("tool.*", "approval.resolved"): False,
        (): False,
    }.items():
        one = dataclasses.replace(endpoint("http://x"), events=patterns)
        assert one.wants(TENANT, "approval.requested") is wanted, patterns


async def test_each_endpoint_has_its_own_retries(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    ends = [endpoint(receiver.url), endpoint("http://127.0.0.1:1/closed")]
    later = Later()
    webhooks = service(stores, sender, *ends, jobs=later)
    (job,) = await stores.jobs.take([TENANT], limit=10)
    await webhooks.deliver(job)
    fanned, later.added = later.added, []
    assert [(one.target, delay) for one, delay in fanned] == [(end.id, 0.0) for end in ends]
    for one, _ in fanned:
        await webhooks.deliver(one)
    assert len(receiver.got) == 1
    ((again, delay),) = later.added
    assert (again.target, again.attempt, delay) == (ends[1].id, 1, 5.0)
    assert again.event_id == job.event_id


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize("status", [500, 503, 404, 429, 302])
async def test_what_is_not_taken_comes_again_on_schedule_and_then_no_more(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, status: int
) -> None:
    await asked(stores)
    end, later = endpoint(receiver.url), Later()
    webhooks = service(stores, sender, end, jobs=later)
    (first,) = await stores.jobs.take([TENANT], limit=10)
    job, delays = dataclasses.replace(first, target=end.id), []
    receiver.statuses = [status] * 20
    while True:
        await webhooks.deliver(job)
        if not later.added:
            break
        job, delay = later.added.pop()
        delays.append(delay)
    assert tuple(delays) == RETRIES == (5, 300, 1800, 7200, 18000, 36000)
    assert len(receiver.got) == 7  # a redirect was not followed
    assert {headers["webhook-id"] for _, headers in receiver.got} == {first.event_id}


@pytest.mark.parametrize("status", [200, 204, 299, 410])
async def test_what_is_taken_or_unwanted_does_not_come_again(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, status: int
) -> None:
    await asked(stores)
    receiver.statuses = [status]
    end, later = endpoint(receiver.url), Later()
    (job,) = await stores.jobs.take([TENANT], limit=10)
    job = dataclasses.replace(job, target=end.id)
    await service(stores, sender, end, jobs=later).deliver(job)
    assert len(receiver.got) == 1
    assert later.added == []


async def test_a_retry_waits_in_the_store(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    receiver.statuses = [500]
    await work(stores, service(stores, sender, endpoint(receiver.url)))
    await work(stores, service(stores, sender, endpoint(receiver.url), spread=lambda _: 0))
    assert len(receiver.got) == 1
    assert await stores.client.zcard(f"gw:{{{TENANT}}}:jobs:later") == 1


async def test_the_delay_is_spread_by_up_to_a_tenth(stores: Stores) -> None:
    later = Later()
    end = endpoint("http://127.0.0.1:1/closed")
    await asked(stores)
    (job,) = await stores.jobs.take([TENANT], limit=10)
    async with HttpWebhookSender() as sender:
        webhooks = WebhookService(
            endpoints=[end],
            approvals=stores.approvals,
            jobs=later,
            sender=sender,
            secrets=Secrets(),
            public_url="https://gw",
        )
        for _ in range(20):
            await webhooks.deliver(dataclasses.replace(job, target=end.id))
    delays = {delay for _, delay in later.added}
    assert len(delays) > 1
    assert all(5.0 <= delay <= 5.5 for delay in delays)


async def test_a_silent_endpoint_is_left_in_time(stores: Stores, receiver: Receiver) -> None:
    await asked(stores)
    receiver.pause = 5
    end, later = endpoint(receiver.url), Later()
    (job,) = await stores.jobs.take([TENANT], limit=10)
    async with HttpWebhookSender(timeout=0.1) as quick, asyncio.timeout(3):
        webhooks = service(stores, quick, end, jobs=later)
        await webhooks.deliver(dataclasses.replace(job, target=end.id))
    assert [one.attempt for one, _ in later.added] == [1]


async def test_without_its_secret_nothing_is_sent_and_the_event_is_kept(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    end, later = WebhookEndpoint(receiver.url, SecretRef("env", "MISSING")), Later()
    (job,) = await stores.jobs.take([TENANT], limit=10)
    job = dataclasses.replace(job, target=end.id)
    await service(stores, sender, end, jobs=later).deliver(job)
    assert receiver.got == []
    assert [one.attempt for one, _ in later.added] == [1]


async def test_an_endpoint_that_is_configured_no_more_is_forgotten(
    stores: Stores, sender: HttpWebhookSender
) -> None:
    await asked(stores)
    later = Later()
    (job,) = await stores.jobs.take([TENANT], limit=10)
    await service(stores, sender, jobs=later).deliver(dataclasses.replace(job, target="gone"))
    assert later.added == []


async def test_the_senders_proxy_settings_are_not_the_environments(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    await asked(stores)
    await work(stores, service(stores, sender, endpoint(receiver.url)))
    assert len(receiver.got) == 1


@pytest.mark.covers("APPR-9")
def test_the_reference_vector_of_standard_webhooks() -> None:
    headers = signed_headers(
        b'{"test": 2432232314}',
        secret="whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_raw_secret_signs_as_its_base64_form_does() -> None:
    raw = signed_headers(b"{}", secret="a secret", message_id="m", timestamp=1)
    coded = "whsec_" + base64.b64encode(b"a secret").decode()
    assert raw == signed_headers(b"{}", secret=coded, message_id="m", timestamp=1)


@pytest.mark.parametrize(("secret", "message_id"), [("whsec_%%", "m"), ("", "m"), ("s", "a.b")])
def test_an_unfit_secret_or_id_is_refused(secret: str, message_id: str) -> None:
    with pytest.raises(ValueError, match="webhook"):
        signed_headers(b"{}", secret=secret, message_id=message_id, timestamp=1)


def test_a_payload_is_small_and_dated() -> None:
    one = approval(arguments="x" * 100_000, expires_at=1763640060.0)
    body = payload(
        one, event="approval.requested", occurred_at=1763640000.5, public_url="https://g"
    )
    assert len(body) < 1000
    shown = json.loads(body)
    assert shown["timestamp"] == "2025-11-20T12:00:00.500Z"
    assert shown["data"]["expires_at"] == "2025-11-20T12:01:00.000Z"
