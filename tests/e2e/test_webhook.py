"""Webhooks tell, thinly and signed; they never decide (APPR-9)."""

from __future__ import annotations

import base64
import json
from typing import Any

import anyio
import pytest
import redis
import standardwebhooks

from tests.support.approvals import create, executed, issue, marker, pending, settled, tenancy, vote
from tests.support.provider import Call, Provider, provider
from tests.support.stack import CANARY, UPSTREAM_KEY, Stack

SECRET = "whsec_" + base64.b64encode(b"w" * 32).decode()


async def told(receiver: Provider, count: int) -> list[Call]:
    """Wait until the receiver was told so often."""
    with anyio.fail_after(10):
        while len(receiver.calls) < count:
            await anyio.sleep(0.01)
    return receiver.calls


def sections(stack: Stack, receiver: Provider, **changes: Any) -> dict[str, Any]:
    hook = {"url": receiver.url + "/hook", "secret": "env:TEST_HOOK", "events": ["approval.*"]}
    return {"webhooks": [{**hook, **changes}], **tenancy(stack)}


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HOOK", SECRET)


@pytest.mark.covers("APPR-9", "MCP-3")
async def test_asked_and_resolved_are_told_signed_and_thin(stack: Stack) -> None:
    word = marker()

    async def approving(call: Call) -> None:
        await call.document(b'{"decision": "approve", "approve": true}')

    async with provider(approving) as receiver:
        with stack.gateway(**sections(stack, receiver)) as gateway:
            held = (await create(gateway, issue(word))).json()
            await told(receiver, 1)
            (approval,) = await pending(gateway, word)
            assert approval["status"] == "pending"  # the receiver's answer decides nothing
            assert await executed(stack, word) == []
            await vote(gateway, approval)
            await told(receiver, 2)
            await settled(gateway, held["id"])
    events = []
    for call in receiver.calls:
        verified = standardwebhooks.Webhook(SECRET).verify(call.body.decode(), call.headers)
        events.append(verified)
        for leak in (word, CANARY, UPSTREAM_KEY, SECRET, "arguments"):
            assert leak not in call.body.decode()
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(SECRET).verify(call.body.decode() + " ", call.headers)
    assert [event["type"] for event in events] == ["approval.requested", "approval.resolved"]
    data = events[1]["data"]
    assert (data["id"], data["status"], data["server"]) == (approval["id"], "approved", "github")
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 2


@pytest.mark.covers("APPR-9")
async def test_what_the_receiver_did_not_take_is_told_again_later(stack: Stack) -> None:
    async def failing(call: Call) -> None:
        await call.document(b"no", status=500)

    async with provider(failing) as receiver:
        values = sections(stack, receiver)
        with stack.gateway(**values) as gateway:
            word = marker()
            await create(gateway, issue(word))
            await told(receiver, 1)
            (approval,) = await pending(gateway, word)
            await vote(gateway, approval, "deny")
            await told(receiver, 2)
        client = redis.Redis.from_url(stack.redis_url)
        tenant = values["tenants"][0]["id"].encode()
        kept = b" ".join(
            repr([client.zrange(key, 0, -1)]).encode()
            for key in client.scan_iter(b"*" + tenant + b"*")
            if client.type(key) == b"zset"
        )
        client.close()
    assert approval["id"].encode() in kept
    assert json.dumps(word).encode() not in kept
