"""Webhooks: thin, signed, repeated until somebody takes them, and never deciding (APPR-9)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import anyio
import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.adapters.crypto import KeyRing
from gateway.adapters.metrics import PrometheusMeter
from gateway.adapters.redis.audit import RedisAuditStore
from gateway.adapters.redis.client import execute
from gateway.adapters.redis.wake import RedisWake
from gateway.adapters.redis.webhooks import RedisOutbox, RedisWebhookStore
from gateway.adapters.webhook import HttpWebhookSender
from gateway.domain.addresses import PUBLIC, Reach
from gateway.domain.approvals import Approval
from gateway.domain.errors import Conflict, SecretUnavailable
from gateway.domain.ports import Due
from gateway.domain.secrets import SecretRef
from gateway.domain.webhooks import (
    RETRIES,
    Delivery,
    SigningKey,
    WebhookEndpoint,
    WebhookEvent,
    approval_event,
    delivery_id,
    payload,
    signed_headers,
)
from gateway.services.webhooks import AT_ONCE, Deliverer, Directory, FanOut, Messenger, spread_out

from .conftest import Stores
from .make import APPROVE, OTHER, TENANT, approval, everything, names, opened, vote

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
        self.at_once: list[int] = []
        self._open = 0

    async def handle(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((await request.read(), headers))
        self._open += 1
        self.at_once.append(self._open)
        try:
            await asyncio.sleep(self.pause)
        finally:
            self._open -= 1
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"location": self.url} if 300 <= status < 400 else {}
        return web.Response(status=status, text='{"decision":"approve"}', headers=headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    # A client that leaves ends its handler, so that what is open can be counted.
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
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


def endpoint(url: str, *events: str, **changes: Any) -> WebhookEndpoint:
    values: dict[str, Any] = {
        "id": "we_" + hashlib.sha256(url.encode()).hexdigest()[:8],
        "url": url,
        "events": events or ("approval.*",),
        "secret": SecretRef("env", "HOOK"),
        "allow_private": True,
    }
    return WebhookEndpoint(**(values | changes))


class Office:
    """Everything between an event and its receivers, done step by step."""

    def __init__(
        self, stores: Stores, sender: HttpWebhookSender, *ends: WebhookEndpoint, **changes: Any
    ) -> None:
        self.stores = stores
        self.meter = PrometheusMeter(models=(), servers=())
        self.audit = RedisAuditStore(stores.client, KeyRing([("k1", b"\1" * 32)]))
        directory = Directory(store=stores.webhooks, configured=ends)
        messenger = Messenger(
            directory=directory,
            sender=sender,
            secrets=Secrets(),
            public_url="https://gw.example.com/",
        )
        self.fan_out = FanOut(
            store=stores.webhooks, directory=directory, approvals=stores.approvals
        )
        values: dict[str, Any] = {
            "store": stores.webhooks,
            "directory": directory,
            "messenger": messenger,
            "meter": self.meter,
            "audit": self.audit,
            "wake": RedisWake(stores.client),
            "tenants": [TENANT],
            "later": lambda seconds: seconds,
        }
        self.deliverer = Deliverer(**(values | changes))

    async def hand_out(self) -> None:
        """Do all jobs that are due, as the worker does."""
        while jobs := await self.stores.jobs.take([TENANT], limit=10):
            for job in jobs:
                if job.kind == "webhook":
                    await self.fan_out.run(job)
                await self.stores.jobs.done(job)

    async def send(self) -> None:
        """Send what is due, once."""
        for due in await take(self.stores):
            await self.deliverer.deliver(due)

    async def work(self) -> None:
        await self.hand_out()
        await self.send()

    def counted(self) -> dict[tuple[str, str], float]:
        """How often each outcome of each event was counted."""
        return {
            (sample.labels["event"], sample.labels["outcome"]): sample.value
            for metric in self.meter._registry.collect()
            for sample in metric.samples
            if sample.name == "gateway_webhook_deliveries_total"
        }


async def take(stores: Stores, *, lease: float = 30, **changes: Any) -> list[Due]:
    values: dict[str, Any] = {"most": 8, "room": {}}
    return list(await stores.webhooks.take([TENANT], lease=lease, **(values | changes)))


async def asked(stores: Stores, **changes: Any) -> Approval:
    one = approval(**changes)
    await opened(stores.approvals, one)
    return one


async def listed(stores: Stores, end: WebhookEndpoint) -> list[Delivery]:
    found, _ = await stores.webhooks.deliveries(TENANT, end.id, after=None, limit=100)
    return list(found)


async def soon(stores: Stores, end: WebhookEndpoint, delay: float = 0) -> None:
    """Bring forward what waits for an endpoint, so that no test has to wait for it."""
    now, _, _ = await stores.webhooks.endpoints(TENANT)
    name = f"gw:{{{TENANT}}}:hook:{end.id}:due"
    for one in await listed(stores, end):
        if one.status == "pending":
            await execute(stores.client, "ZADD", name, round((now + delay) * 1000), one.id)
    await execute(
        stores.client, "ZADD", f"gw:{{{TENANT}}}:hooks:due", round((now + delay) * 1000), end.id
    )


@pytest.mark.covers("APPR-9")
async def test_an_approval_is_told_with_a_signature_that_verifies(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    one = await asked(stores)
    await Office(stores, sender, endpoint(receiver.url)).work()
    ((body, headers),) = receiver.got
    shown = Webhook(SECRET).verify(body, headers)
    assert shown["type"] == "approval.requested"
    assert shown["data"] == {
        "object": "approval",
        "id": one.id,
        "status": "pending",
        "turn_id": "resp_turn",
        "response_id": "resp_leg",
        "server": "github",
        "tool": "create_issue",
        "rule": "default",
        "requester": "svc:web",
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
    office = Office(stores, sender, endpoint(receiver.url))
    await office.work()
    got = await stores.approvals.get(TENANT, one.id)
    assert got is not None
    assert got.status == "pending"
    await vote(stores.approvals, one, "ann", APPROVE)
    await office.work()
    await office.work()
    told = [json.loads(body) for body, _ in receiver.got]
    assert [(t["type"], t["data"]["status"]) for t in told] == [
        ("approval.requested", "pending"),
        ("approval.resolved", "approved"),
    ]
    assert office.counted() == {
        ("approval.requested", "delivered"): 1,
        ("approval.resolved", "delivered"): 1,
    }


@pytest.mark.covers("APPR-9")
async def test_what_was_emitted_is_told_as_it_was_given(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, ring: KeyRing
) -> None:
    outbox = RedisOutbox(stores.client, ring)
    data = {"object": "tool_pin", "server": "github", "tool": "créate", "url": "/console/tools"}
    await outbox.emit(TENANT, "tool.drifted", "github.create", data, occurrence="2")
    await Office(stores, sender, endpoint(receiver.url, "tool.*")).work()
    ((body, headers),) = receiver.got
    shown = Webhook(SECRET).verify(body, headers)
    assert shown["type"] == "tool.drifted"
    link = {"url": "https://gw.example.com/console/tools"}
    assert shown["data"] == {"id": "github.create", **data, **link}


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
    await Office(stores, sender, *ends).work()
    assert [len(await listed(stores, end)) for end in ends] == [2, 1, 0, 0]
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


@pytest.mark.covers("APPR-9")
async def test_an_event_that_is_handed_out_again_is_not_sent_again(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    end = endpoint(receiver.url)
    office = Office(stores, sender, end)
    (job,) = await stores.jobs.take([TENANT], limit=10)
    await office.fan_out.run(job)
    await office.send()
    await office.fan_out.run(job)  # its worker died before it could say that it was done
    await office.send()
    assert len(receiver.got) == 1
    assert [one.status for one in await listed(stores, end)] == ["delivered"]


@pytest.mark.covers("APPR-9")
async def test_what_a_dead_worker_had_taken_is_sent_by_another_under_the_same_id(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    office = Office(stores, sender, endpoint(receiver.url))
    await office.hand_out()
    (lost,) = await take(stores, lease=0.05)
    assert await take(stores) == []
    with anyio.fail_after(30):
        while not (again := await take(stores)):
            await anyio.sleep(0.01)
    await office.deliverer.deliver(again[0])
    assert [headers["webhook-id"] for _, headers in receiver.got] == [lost.event.id]
    # The dead one was only slow: what it found out does not count any more.
    assert await stores.webhooks.settle(lost.delivery, "retry", error="timeout", delay=5) == ""
    assert await take(stores) == []


async def test_each_endpoint_has_its_own_retries(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    good, closed = endpoint(receiver.url), endpoint("http://127.0.0.1:1/closed")
    await Office(stores, sender, good, closed).work()
    (taken,), (waits,) = await listed(stores, good), await listed(stores, closed)
    assert (taken.status, taken.attempts, taken.next_attempt_at) == ("delivered", 1, None)
    assert (waits.status, waits.attempts, waits.last_error) == ("pending", 1, "connection")
    assert waits.next_attempt_at is not None
    assert waits.last_attempt_at is not None
    assert waits.next_attempt_at - waits.last_attempt_at == 5
    assert waits.event_id == taken.event_id


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize("status", [500, 503, 404, 429, 302])
async def test_what_is_not_taken_comes_again_on_schedule_and_then_no_more(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, status: int
) -> None:
    one = await asked(stores)
    await vote(stores.approvals, one, "ann", APPROVE)
    end = endpoint(receiver.url, "approval.resolved")
    office, delays = Office(stores, sender, end), []
    receiver.statuses = [status] * 20
    await office.hand_out()
    while True:
        await office.send()
        (shown,) = await listed(stores, end)
        if shown.status != "pending":
            break
        assert shown.next_attempt_at is not None
        assert shown.last_attempt_at is not None
        delays.append(round(shown.next_attempt_at - shown.last_attempt_at, 3))
        await soon(stores, end)
    assert tuple(delays) == RETRIES == (5, 300, 1800, 7200, 18000, 36000)
    assert len(receiver.got) == 7  # a redirect was not followed
    assert (shown.status, shown.attempts, shown.last_status) == ("failed", 7, status)
    assert shown.last_error == f"http_{status}"
    assert {headers["webhook-id"] for _, headers in receiver.got} == {shown.event_id}
    assert office.counted() == {
        ("approval.resolved", "retry"): 6,
        ("approval.resolved", "failed"): 1,
    }


@pytest.mark.covers("APPR-9")
async def test_a_request_is_not_told_after_its_time_and_its_end_is(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores, timeout=60.0)
    end = endpoint(receiver.url)
    office = Office(stores, sender, end)
    receiver.statuses = [500, 500]
    await office.work()
    await soon(stores, end)
    await office.send()  # the next try would be in five minutes, after the deadline
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error, shown.attempts) == ("failed", "expired", 2)
    assert office.counted()["approval.requested", "expired"] == 1


async def test_what_is_asked_for_anew_is_sent_although_its_time_is_over(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores, timeout=0.0)
    end = endpoint(receiver.url, "approval.requested")
    office = Office(stores, sender, end)
    await office.work()
    (late,) = await listed(stores, end)
    await stores.webhooks.redeliver(TENANT, late.id)
    await office.send()
    assert [one.status for one in await listed(stores, end)] == ["delivered"]


async def test_what_expired_before_it_could_be_sent_is_not(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores, timeout=0.0)
    end = endpoint(receiver.url, "approval.requested")
    office = Office(stores, sender, end)
    await office.work()
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error, shown.attempts) == ("failed", "expired", 0)
    assert office.counted() == {("approval.requested", "expired"): 1}
    assert receiver.got == []


async def test_a_held_request_has_no_time_to_be_late(stores: Stores) -> None:
    one = approval(expires_at=5.0, on_timeout="hold")
    event = approval_event(one, id="e", type="approval.requested", occurred_at=1.0)
    assert event.ends_at is None
    for kind in ("resolved", "receipt_mismatch"):
        late = approval_event(approval(), id="e", type=f"approval.{kind}", occurred_at=1.0)
        assert late.ends_at is None


@pytest.mark.covers("APPR-9")
async def test_410_switches_the_endpoint_off(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, caplog: Any
) -> None:
    receiver.statuses = [410]
    end = endpoint(receiver.url)
    office = Office(stores, sender, end)
    await asked(stores)
    await office.work()
    one = await asked(stores, batch_id="resp_2")
    await office.work()
    await vote(stores.approvals, one, "ann", APPROVE)
    await office.work()
    assert len(receiver.got) == 1
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error) == ("failed", "http_410")
    assert (await stores.webhooks.endpoints(TENANT))[2] == {end.id: "gone"}
    assert office.counted() == {("approval.requested", "gone"): 1}
    assert "switched off" in caplog.text
    exposed = office.meter.expose()[0].decode()
    assert 'gateway_webhook_endpoints_disabled_total{reason="gone"} 1.0' in exposed


async def test_what_waits_for_an_endpoint_that_is_switched_off_is_canceled(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    end = endpoint(receiver.url)
    office = Office(stores, sender, end)
    await office.hand_out()
    await stores.webhooks.switch(TENANT, end.id, "user")
    await office.send()
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error) == ("canceled", "endpoint_disabled")
    assert office.counted() == {("approval.requested", "canceled"): 1}
    assert receiver.got == []
    assert await stores.webhooks.redeliver(TENANT, shown.id) == "off"
    await stores.webhooks.switch(TENANT, end.id, None)
    again = await stores.webhooks.redeliver(TENANT, shown.id)
    assert isinstance(again, Delivery)
    await office.send()
    assert len(receiver.got) == 1


@pytest.mark.covers("APPR-9")
async def test_redelivery_starts_the_schedule_again_under_the_same_id(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores, timeout=3600.0)
    end = endpoint(receiver.url)
    office = Office(stores, sender, end, retries=(5.0,))
    receiver.statuses = [500, 500, 500]
    await office.work()
    await soon(stores, end)
    await office.send()
    (failed,) = await listed(stores, end)
    assert (failed.status, failed.attempts) == ("failed", 2)
    await stores.webhooks.redeliver(TENANT, failed.id)
    await office.send()
    (again,) = await listed(stores, end)
    assert (again.status, again.attempts, again.tries) == ("pending", 3, 1)
    await soon(stores, end)
    await office.send()
    (done,) = await listed(stores, end)
    assert (done.status, done.attempts, done.last_error) == ("delivered", 4, None)
    assert {headers["webhook-id"] for _, headers in receiver.got} == {failed.event_id}


async def test_what_failed_comes_one_at_a_time_and_what_works_at_once(stores: Stores) -> None:
    event = WebhookEvent(id="evt_1", type="tool.drifted", occurred_at=1.0, data={"id": "x"})
    for number in range(20):
        one = dataclasses.replace(event, id=f"evt_{number}")
        await stores.webhooks.spread(TENANT, one, ["we_busy", "we_free"])
    room = {(TENANT, "we_busy"): 1, (OTHER, "we_free"): 0}
    found = await take(stores, room=room)
    assert Counter(due.delivery.endpoint_id for due in found) == {"we_busy": 1, "we_free": 8}
    assert await take(stores, room={(TENANT, "we_busy"): 0, (TENANT, "we_free"): 0}) == []


@pytest.mark.covers("APPR-9")
async def test_a_receiver_that_fails_gets_one_message_at_a_time(
    stores: Stores, receiver: Receiver
) -> None:
    receiver.pause = 60
    event = WebhookEvent(id="", type="tool.drifted", occurred_at=1.0, data={"id": "x"})
    end = endpoint(receiver.url, "tool.*")
    for number in range(40):
        one = dataclasses.replace(event, id=f"evt_{number}")
        await stores.webhooks.spread(TENANT, one, [end.id])
    stop = asyncio.Event()
    async with HttpWebhookSender(timeout=0.2) as quick:
        office = Office(stores, quick, end)
        async with asyncio.TaskGroup() as group:
            group.create_task(office.deliverer.run(stop))
            with anyio.fail_after(30):
                while len(receiver.got) < AT_ONCE + 5:
                    await anyio.sleep(0.01)
            stop.set()
    assert max(receiver.at_once) == AT_ONCE
    assert len(receiver.got) < 3 * AT_ONCE
    assert set(receiver.at_once[AT_ONCE + 1 :]) <= {1, 2}  # one may not have noticed its end yet


async def test_deliveries_are_paged_newest_first(stores: Stores) -> None:
    event = WebhookEvent(id="", type="tool.drifted", occurred_at=1.0, data={"id": "x"})
    for number in range(5):
        one = dataclasses.replace(event, id=f"evt_{number}")
        await stores.webhooks.spread(TENANT, one, ["we_1"])
    seen, after, pages = [], None, 0
    while True:
        page, more = await stores.webhooks.deliveries(TENANT, "we_1", after=after, limit=2)
        seen += [one.event_id for one in page]
        pages += 1
        if not more:
            break
        after = page[-1].id
    assert (seen, pages) == (["evt_4", "evt_3", "evt_2", "evt_1", "evt_0"], 3)
    assert await stores.webhooks.deliveries(TENANT, "we_1", after="?", limit=2) == ([], False)
    assert await stores.webhooks.deliveries(OTHER, "we_1", after=None, limit=2) == ([], False)
    name = delivery_id(TENANT, "evt_4", "we_1")
    assert await stores.webhooks.delivery(OTHER, name) is None
    assert await stores.webhooks.redeliver(OTHER, name) is None


@pytest.mark.covers("APPR-9", "STATE-4")
async def test_nothing_of_an_endpoint_or_event_is_readable_in_a_dump(
    stores: Stores, sender: HttpWebhookSender
) -> None:
    made = WebhookEndpoint(
        id="we_1",
        url="https://canary.example.com/canary",
        description="canary",
        keys=(SigningKey("whsec_canary"),),
    )
    assert await stores.webhooks.put(TENANT, made, most=5)
    await asked(stores, server="canary", tool="canary", requester="canary", rule="canary")
    await Office(stores, sender).hand_out()
    assert len(await listed(stores, made)) == 1
    found = await everything(stores.client)
    assert b"we_1" in found
    assert b"canary" not in found
    ours = (b"hooks", b"hook", b"evt", b"dlv")
    kept = [name async for name in names(stores.client) if name.split(b":")[2] in ours]
    lasting = {name for name in kept if await stores.client.pttl(name) < 0}
    assert len(kept) > 4
    assert lasting == {f"gw:{{{TENANT}}}:hooks".encode()}  # endpoints stay until they are deleted


@pytest.mark.covers("STATE-4", "APPR-9")
async def test_endpoints_outlive_the_key_that_sealed_them(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, caplog: Any
) -> None:
    old, new = ("k1", b"\1" * 32), ("k2", b"\2" * 32)
    made = WebhookEndpoint(id="we_1", url="https://a.example.com", keys=(SigningKey("s"),))
    await stores.webhooks.put(TENANT, made, most=5)
    both = RedisWebhookStore(stores.client, KeyRing([new, old]))
    _, found, _ = await both.endpoints(TENANT)  # any event or look will do
    only = RedisWebhookStore(stores.client, KeyRing([new]))
    _, kept, _ = await only.endpoints(TENANT)
    assert kept == found
    assert kept["we_1"].keys == made.keys
    lost = dataclasses.replace(made, id="we_2")
    await stores.webhooks.put(TENANT, lost, most=5)
    _, kept, _ = await only.endpoints(TENANT)
    assert list(kept) == ["we_1"]  # one that cannot be read is in nobody's way
    assert "needs the key 'k1'" in caplog.text


async def test_a_delivery_that_cannot_be_read_is_in_nobodys_way(stores: Stores) -> None:
    event = WebhookEvent(id="evt_1", type="tool.drifted", occurred_at=1.0, data={"id": "x"})
    await stores.webhooks.spread(TENANT, event, ["we_1"])
    only = RedisWebhookStore(stores.client, KeyRing([("k2", b"\2" * 32)]))
    await only.spread(TENANT, dataclasses.replace(event, id="evt_2"), ["we_1"])
    found = await only.take([TENANT], lease=30, most=8, room={})
    assert [due.event.id for due in found] == ["evt_2"]


async def test_an_endpoint_is_written_only_over_the_version_that_was_read(stores: Stores) -> None:
    one = WebhookEndpoint(id="we_1", url="https://a.example.com")
    assert await stores.webhooks.put(TENANT, one, most=1)
    assert not await stores.webhooks.put(TENANT, one, most=1)
    _, found, _ = await stores.webhooks.endpoints(TENANT)
    assert found["we_1"].version == 1
    assert await stores.webhooks.put(TENANT, found["we_1"], most=1)
    with pytest.raises(Conflict) as refused:
        await stores.webhooks.put(TENANT, dataclasses.replace(one, id="we_2"), most=1)
    assert refused.value.code == "too_many_endpoints"
    assert await stores.webhooks.remove(TENANT, "we_1")
    assert not await stores.webhooks.remove(TENANT, "we_1")
    assert not await stores.webhooks.put(TENANT, found["we_1"], most=1)  # it is not made again


async def test_the_delay_is_spread_by_up_to_a_tenth() -> None:
    delays = {spread_out(5.0) for _ in range(50)}
    assert len(delays) > 1
    assert all(5.0 <= delay <= 5.5 for delay in delays)


async def test_a_silent_endpoint_is_left_in_time(stores: Stores, receiver: Receiver) -> None:
    await asked(stores)
    receiver.pause = 5
    end = endpoint(receiver.url)
    async with HttpWebhookSender(timeout=0.1) as quick, asyncio.timeout(30):
        await Office(stores, quick, end).work()
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error, shown.last_status) == ("pending", "timeout", None)


async def test_without_its_secret_nothing_is_sent_and_the_event_is_kept(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    end = endpoint(receiver.url, secret=SecretRef("env", "MISSING"))
    await Office(stores, sender, end).work()
    assert receiver.got == []
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error) == ("pending", "secret_unavailable")


async def test_an_endpoint_that_is_configured_no_more_gets_nothing(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver
) -> None:
    await asked(stores)
    end = endpoint(receiver.url)
    await Office(stores, sender, end).hand_out()
    await Office(stores, sender).send()
    (shown,) = await listed(stores, end)
    assert (shown.status, shown.last_error) == ("canceled", "endpoint_removed")
    assert receiver.got == []


# Where messages may go


async def refused(sender: HttpWebhookSender, url: str, reach: Reach) -> str:
    answer = await sender.post(url, b"{}", {}, reach)
    assert answer.status is None
    return answer.error


@pytest.mark.covers("APPR-9")
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254"]
)
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_private_addresses_are_not_sent_to(
    sender: HttpWebhookSender, receiver: Receiver, scheme: str, host: str
) -> None:
    port = receiver.url.split(":")[2]
    assert await refused(sender, f"{scheme}://{host}:{port}", PUBLIC) == "refused_address"
    assert "leads to" in (await sender.refusal(f"{scheme}://{host}:{port}", PUBLIC) or "")
    assert receiver.got == []


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "017700000001"])
async def test_odd_spellings_of_an_address_lead_nowhere(
    sender: HttpWebhookSender, receiver: Receiver, host: str
) -> None:
    port = receiver.url.rpartition(":")[2]
    answer = await sender.post(f"http://{host}:{port}", b"{}", {}, PUBLIC)
    assert answer.error in ("refused_address", "protocol", "dns")
    assert receiver.got == []


@pytest.mark.covers("APPR-9")
async def test_a_name_that_leads_elsewhere_at_the_second_look_is_refused(
    receiver: Receiver,
) -> None:
    port = int(receiver.url.split(":")[2].partition("/")[0])
    answers = [["93.184.215.14"], ["127.0.0.1"], ["93.184.215.14", "127.0.0.1"]]
    looked: list[str] = []

    async def lookup(host: str, port: int) -> list[str]:
        looked.append(host)
        return answers.pop(0)

    async with HttpWebhookSender(timeout=1.0, lookup=lookup) as sender:
        url = f"https://rebind.example.com:{port}/hook"
        assert await sender.refusal(url, PUBLIC) is None  # when the endpoint was made
        assert await refused(sender, url, PUBLIC) == "refused_address"  # when it was sent to
        assert await refused(sender, url, PUBLIC) == "refused_address"  # one of two is enough
    assert looked == ["rebind.example.com"] * 3
    assert receiver.got == []


@pytest.mark.covers("APPR-9")
async def test_the_connection_goes_to_the_very_address_that_was_checked(
    receiver: Receiver,
) -> None:
    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]  # no other name server knows this name

    port = receiver.url.split(":")[2]
    loopback = Reach(networks=frozenset({ip_network("127.0.0.0/8")}))
    async with HttpWebhookSender(timeout=5.0, lookup=lookup) as sender:
        url = f"http://pinned.invalid:{port}"
        assert (await sender.post(url, b"{}", {}, loopback)).status == 200
        # What one endpoint may reach, another may not, not even over the same name.
        assert await refused(sender, url, PUBLIC) == "refused_address"
    assert len(receiver.got) == 1
    assert receiver.got[0][1]["host"].startswith("pinned.invalid")


async def test_plain_http_stays_on_this_machine(sender: HttpWebhookSender) -> None:
    everywhere = Reach(private=True)
    for url in ("http://10.0.0.1/", "http://1.1.1.1/", "http://unknown.invalid/"):
        assert "plain http" in (await sender.refusal(url, everywhere) or "")
    assert await refused(sender, "http://1.1.1.1/", everywhere) == "refused_address"
    assert await sender.refusal("https://unknown.invalid/", PUBLIC) is None


async def test_the_senders_proxy_settings_are_not_the_environments(
    stores: Stores, sender: HttpWebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    await asked(stores)
    await Office(stores, sender, endpoint(receiver.url)).work()
    assert len(receiver.got) == 1


# Signatures and payloads


@pytest.mark.covers("APPR-9")
def test_the_reference_vector_of_standard_webhooks() -> None:
    headers = signed_headers(
        b'{"test": 2432232314}',
        secrets=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_raw_secret_signs_as_its_base64_form_does() -> None:
    raw = signed_headers(b"{}", secrets=["a secret"], message_id="m", timestamp=1)
    coded = "whsec_" + base64.b64encode(b"a secret").decode()
    assert raw == signed_headers(b"{}", secrets=[coded], message_id="m", timestamp=1)


@pytest.mark.parametrize(("secret", "message_id"), [("whsec_%%", "m"), ("", "m"), ("s", "a.b")])
def test_an_unfit_secret_or_id_is_refused(secret: str, message_id: str) -> None:
    with pytest.raises(ValueError, match="webhook"):
        signed_headers(b"{}", secrets=[secret], message_id=message_id, timestamp=1)


def test_a_payload_is_small_and_dated() -> None:
    one = approval(arguments="x" * 100_000, expires_at=1763640060.0)
    event = approval_event(one, id="e", type="approval.requested", occurred_at=1763640000.5)
    body = payload(event, public_url="https://g")
    assert len(body) < 1000
    shown = json.loads(body)
    assert shown["timestamp"] == "2025-11-20T12:00:00.500Z"
    assert shown["data"]["expires_at"] == "2025-11-20T12:01:00.000Z"
