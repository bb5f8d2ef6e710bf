"""A receiver is down and the gateway is killed meanwhile: every event arrives, under the id that it
had, and hardly any twice (APPR-9)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
import standardwebhooks

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.client import open_clients
from gateway.adapters.redis.webhooks import RedisOutbox
from gateway.services.failpoints import Point
from tests.reliability.support import GITHUB, Replica, Site, amount, eventually, report, vote
from tests.support.provider import Call, provider

pytestmark = [pytest.mark.timeout(300)]

DELIVERY = {"allow_networks": ["127.0.0.0/8"], "retries": ["500ms"] * 200, "timeout": "1s"}
ENDPOINTS = "/v1/webhook_endpoints"


@asynccontextmanager
async def outbox(site: Site) -> AsyncIterator[RedisOutbox]:
    """The door by which the gateway's own parts tell of something."""
    async with open_clients(site.valkey.url) as clients:
        yield RedisOutbox(clients.commands, KeyRing([("k1", b"k" * 32)]))


async def ask(replica: Replica, site: Site, method: str, path: str, **options: Any) -> Any:
    headers = {"authorization": f"Bearer {site.keys['admin']}"}
    async with httpx2.AsyncClient(trust_env=False, timeout=10, headers=headers) as client:
        answer = await client.request(method, replica.url + path, **options)
    assert answer.status_code < 300, answer.text
    return answer.json()


async def statuses(replica: Replica, site: Site, endpoint: str) -> Counter[str]:
    """How many deliveries of an endpoint have each status."""
    found: Counter[str] = Counter()
    after: dict[str, str] = {}
    while True:
        path = f"{ENDPOINTS}/{endpoint}/deliveries"
        page = await ask(replica, site, "GET", path, params={"limit": 100, **after})
        found.update(one["status"] for one in page["data"])
        if not page["has_more"]:
            return found
        after = {"after": page["last_id"]}


@pytest.mark.covers("APPR-9", "APPR-4")
async def test_nothing_is_lost_between_a_receiver_that_is_down_and_a_gateway_that_dies(
    site: Site,
) -> None:
    count = amount(200, long=1000)
    up = False

    async def sometimes(call: Call) -> None:
        await call.document(b"{}", status=200 if up else 503)

    async with provider(sometimes) as receiver, outbox(site) as told:
        replica = site.prepare("hooks", webhook_delivery=DELIVERY)
        site.begin(replica).ready()
        made = await ask(replica, site, "POST", ENDPOINTS, json={"url": receiver.url})
        for number in range(count):
            data = {"object": "tool_pin", "number": number}
            await told.emit("acme", "tool.drifted", f"tool-{number}", data, occurrence=made["id"])
        with anyio.fail_after(60):
            while len(receiver.calls) < count // 2:  # in the middle of handing out and trying
                await anyio.sleep(0.01)
        replica.kill()
        before = {call.headers["webhook-id"] for call in receiver.calls}
        receiver.calls.clear()
        up, begun = True, time.monotonic()
        site.begin(replica).ready()

        async def all_delivered() -> bool:
            return await statuses(replica, site, made["id"]) == {"delivered": count}

        await eventually(all_delivered, "every event is delivered", seconds=120)
        seconds = time.monotonic() - begun
        taken = Counter(call.headers["webhook-id"] for call in receiver.calls)
        numbers = set()
        for call in receiver.calls:
            event = standardwebhooks.Webhook(made["secret"]).verify(
                call.body.decode(), call.headers
            )
            numbers.add(event["data"]["number"])
        replica.stop()
    assert numbers == set(range(count))
    assert len(taken) == count
    assert before <= set(taken)
    twice = sum(taken.values()) - count
    report("webhooks after a kill", events=count, twice=twice, seconds=round(seconds, 1))
    assert twice <= 8  # what was on its way when the gateway died


@pytest.mark.covers("APPR-9", "APPR-4")
@pytest.mark.parametrize("point", [Point.BEFORE_TERMINAL, Point.BEFORE_DONE], ids=lambda p: p.value)
async def test_the_end_of_a_turn_whose_replica_died_is_told_once_by_another(
    site: Site, point: Point
) -> None:
    async def taking(call: Call) -> None:
        await call.document(b"{}")

    async with provider(taking) as receiver:
        frail = site.prepare("frail", webhook_delivery=DELIVERY)
        site.begin(frail, failpoint=point.value).ready()
        made = await ask(frail, site, "POST", ENDPOINTS, json={"url": receiver.url})
        call = f'/call github.create_issue {{"title": "told-{point.value}"}}'
        body = {"model": "gpt-4.1", "input": call, "tools": [GITHUB]}
        held = await ask(frail, site, "POST", "/v1/responses", json=body)
        path = held["gateway"]["approvals"][0]["url"]
        approval = await ask(frail, site, "GET", path)
        assert await vote(frail, approval, "approve") in (200, 0)

        async def died() -> bool:
            return not frail.running

        await eventually(died, "the replica dies when all is done")
        steady = site.begin(site.prepare("steady", webhook_delivery=DELIVERY)).ready()

        def completed() -> list[Call]:
            return [one for one in receiver.calls if one.json["type"] == "continuation.completed"]

        async def told() -> bool:
            return bool(completed())

        await eventually(told, "the end is told")
        shown = await ask(steady, site, "GET", f"/v1/responses/{held['id']}")
        assert shown["status"] == "completed"
        page = await ask(steady, site, "GET", f"{ENDPOINTS}/{made['id']}/deliveries")
        await ask(steady, site, "DELETE", f"{ENDPOINTS}/{made['id']}")
        steady.stop()
    kinds = Counter(one["type"] for one in page["data"])
    assert kinds["continuation.completed"] == 1
    assert kinds["continuation.failed"] == kinds["continuation.indeterminate"] == 0
    assert {one.json["data"]["id"] for one in completed()} == {held["id"]}
    assert (await site.executed())[f"told-{point.value}"] == 1
