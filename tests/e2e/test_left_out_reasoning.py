"""A caller replays its own items and left the reasoning out: it comes back in its place (STATE-3)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from tests.support.approvals import create, marker, sent, tenancy
from tests.support.stack import Gateway, Stack

FUNCTION = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[Gateway]:
    """A gateway with a stateless tenant of its own."""
    with stack.gateway(**tenancy(stack, stateless=True)) as running:
        yield running


async def said(gateway: Gateway, input: Any, **options: Any) -> list[dict[str, Any]]:
    """Create a response and return its output."""
    answer = await create(gateway, input, tools=options.pop("tools", ()), **options)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["output"])


async def replayed(
    stack: Stack, gateway: Gateway, items: list[Any], **options: Any
) -> list[dict[str, Any]]:
    """Send a history and a new question; return the input that the upstream got."""
    word = marker()
    question = {"role": "user", "content": f"/echo {word}"}
    await said(gateway, [*items, question], **options)
    return list((await sent(stack, word))[-1]["input"])


def types(items: list[dict[str, Any]]) -> list[str]:
    """The types of items."""
    return [item.get("type", "message") for item in items]


async def restored(gateway: Gateway) -> float:
    """How many items the metric has counted."""
    async with gateway.http(None) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    counts = (line for line in lines if line.startswith("gateway_reasoning_restored_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in counts)


@pytest.mark.covers("STATE-3", "STATE-2")
@pytest.mark.parametrize("way", ["ids", "texts", "parts", "hidden"])
async def test_it_comes_back_however_the_items_are_written(
    stack: Stack, gateway: Gateway, way: str
) -> None:
    word = marker()
    question = {"role": "user", "content": f"/think about {word}\n/echo {word}"}
    output = await said(gateway, [question])
    assert types(output) == ["reasoning", "message"]
    assert "encrypted_content" not in output[0]
    message = output[1]
    history: dict[str, list[Any]] = {
        "ids": [message],
        "texts": [{"role": "assistant", "content": word}],
        "parts": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": word}],
            }
        ],
        "hidden": output,
    }
    before = await restored(gateway)
    got = await replayed(stack, gateway, [question, *history[way]])
    assert types(got) == ["message", "reasoning", "message", "message"]
    assert got[1]["id"] == output[0]["id"]
    assert got[1]["encrypted_content"]
    assert await restored(gateway) == before + 1


@pytest.mark.covers("STATE-3")
async def test_it_comes_back_before_the_call_that_it_led_to(stack: Stack, gateway: Gateway) -> None:
    word = marker()
    question = {"role": "user", "content": f'/think\n/function weather {{"city": "{word}"}}'}
    reasoning, call = await said(gateway, [question], tools=[FUNCTION])
    bare = {key: call[key] for key in ("type", "call_id", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    got = await replayed(stack, gateway, [question, bare, result], tools=[FUNCTION])
    assert types(got)[1:4] == ["reasoning", "function_call", "function_call_output"]
    assert got[1]["id"] == reasoning["id"]


@pytest.mark.covers("STATE-3")
async def test_what_two_turns_said_and_what_the_caller_looks_after_is_left_alone(
    stack: Stack, gateway: Gateway
) -> None:
    word = marker()
    question = {"role": "user", "content": f"/think\n/echo {word}"}
    include = ["reasoning.encrypted_content"]
    whole = await said(gateway, [question], include=include)
    got = await replayed(stack, gateway, [question, *whole])
    assert [item["id"] for item in got if item.get("type") == "reasoning"] == [whole[0]["id"]]
    await said(gateway, [question])
    got = await replayed(stack, gateway, [question, {"role": "assistant", "content": word}])
    assert "reasoning" not in types(got)
    assert "reasoning" in types(await replayed(stack, gateway, [question, whole[1]]))


@pytest.mark.covers("STATE-3", "CHAIN-1", "AUTH-2")
async def test_nobody_gets_the_reasoning_of_somebody_else(stack: Stack, gateway: Gateway) -> None:
    word = marker()
    question = {"role": "user", "content": f"/think\n/echo {word}"}
    output = await said(gateway, [question], headers={"gateway-end-user": "ada"})
    bare = {"role": "assistant", "content": word}
    for item in (output[1], bare):
        for other in (
            {"headers": {"gateway-end-user": "bob"}},
            {},
            {"key": "other", "store": False},
        ):
            got = await replayed(stack, gateway, [question, item], **other)
            assert "reasoning" not in types(got), (item, other)
        mine = await replayed(stack, gateway, [question, item], headers={"gateway-end-user": "ada"})
        assert "reasoning" in types(mine)
    assert word not in json.dumps(await stored_names(stack))


async def stored_names(stack: Stack) -> list[str]:
    """The names of all keys in the store."""
    store = Redis.from_url(stack.redis_url)
    try:
        return [name.decode(errors="replace") for name in store.scan_iter()]
    finally:
        store.close()


@pytest.mark.covers("STATE-3", "STATE-4")
async def test_a_deleted_response_gives_nothing_back(stack: Stack, gateway: Gateway) -> None:
    word = marker()
    question = {"role": "user", "content": f"/think\n/echo {word}"}
    answer = (await create(gateway, [question], tools=())).json()
    async with gateway.http() as client:
        await client.delete(f"/v1/responses/{answer['id']}")
    for item in (answer["output"][1], {"role": "assistant", "content": word}):
        assert "reasoning" not in types(await replayed(stack, gateway, [question, item]))
