"""Rows of the table in docs/security.md of what fails open and closed that no other test proves (OPS-4)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from gateway.adapters.redis import keys
from tests.support.approvals import decide, issue, marker
from tests.support.stack import Gateway, Stack

GITHUB = {"type": "mcp", "server_label": "github"}
CREATE = '/call github.create_issue {"title": "Hello"}'


def turn(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4.1", "input": text, **more}


@pytest.mark.covers("OPS-4", "STATE-4")
async def test_without_redis_only_a_turn_that_keeps_nothing_goes_on(stack: Stack) -> None:
    nowhere = {"url": SecretStr("redis://127.0.0.1:1"), "allow_volatile": True}
    tenants = [{"id": "acme", "stateless": True, "cache": "off"}, {"id": "rival"}]
    with stack.gateway(redis=nowhere, tenants=tenants) as gateway:
        async with gateway.http() as keepless, gateway.http("other") as keeping:
            for streamed in (False, True):
                body = turn("/echo hello", stream=streamed)
                answer = await keepless.post("/v1/responses", json=body)
                assert answer.status_code == 200
                assert "hello" in answer.text
            await stack.forget()
            refused = [
                await keepless.post("/v1/responses", json=turn("x", previous_response_id="resp_1")),
                await keeping.post("/v1/responses", json=turn("x")),
                await keeping.post("/v1/responses", json=turn("x", store=False)),
            ]
            assert {answer.status_code for answer in refused} == {503}
            assert await stack.requests() == []
            held = await keepless.post("/v1/responses", json=turn(CREATE, tools=[GITHUB]))
            assert held.json()["error"]["code"] == "store_unavailable"
    assert await stack.calls() == []


@pytest.mark.covers("OPS-4", "STATE-4")
async def test_a_chain_whose_bytes_were_altered_is_not_continued(
    gateway: Gateway, stack: Stack
) -> None:
    async with gateway.http() as client, Redis.from_url(stack.redis_url) as redis:
        first = (await client.post("/v1/responses", json=turn("/echo one", store=False))).json()
        await redis.hset(keys.turn("acme", first["id"]), "c", b"altered")  # type: ignore[misc,unused-ignore]
        await stack.forget()
        body = turn("/echo two", store=False, previous_response_id=first["id"])
        answer = await client.post("/v1/responses", json=body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "state_undecipherable"
    assert await stack.requests() == []


@pytest.mark.covers("OPS-4", "APPR-7")
async def test_a_held_turn_whose_chain_was_deleted_ends_and_runs_nothing(
    gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    async with gateway.http() as client:
        first = (await client.post("/v1/responses", json=turn("/echo one", store=False))).json()
        word = marker()
        body = turn(issue(word), store=False, previous_response_id=first["id"], tools=[GITHUB])
        held = (await client.post("/v1/responses", json=body)).json()
        assert held["status"] == "in_progress"
        await client.delete(f"/v1/responses/{first['id']}")
        await decide(gateway, word)
        with anyio.fail_after(30):
            while (now := (await client.get(f"/v1/responses/{held['id']}")).json())[
                "status"
            ] == "in_progress":
                await anyio.sleep(0.02)
    assert now["status"] == "failed"
    assert now["error"]["code"] == "chain_deleted"
    assert await stack.calls() == []
