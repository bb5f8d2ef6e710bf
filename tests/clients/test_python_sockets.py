"""openai-python's `responses.connect()`, synchronous and not: the URL and key are all it gets."""

from __future__ import annotations

import threading
from typing import Any

import openai
import pytest
from openai.resources.responses.responses import AsyncResponsesConnection, ResponsesConnection

from tests.clients.test_python import approve
from tests.support.approvals import GITHUB, issue, marker, sent
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": {}, "strict": False}

pytestmark = pytest.mark.covers("API-6")


def ended(connection: ResponsesConnection) -> Any:
    """Read events up to the end of a turn, and return the response."""
    for number, event in enumerate(connection):
        assert getattr(event, "sequence_number", None) == number, event
        if event.type == "response.completed":
            return event.response
    raise AssertionError("the socket ended before the turn")


async def async_ended(connection: AsyncResponsesConnection) -> Any:
    async for event in connection:
        assert event.type not in ("error", "response.failed"), event
        if event.type == "response.completed":
            return event.response
    raise AssertionError("the socket ended before the turn")


def test_a_function_loop_runs_on_one_socket(gateway: Gateway) -> None:
    url, key = gateway.url + "/v1", gateway.keys["caller"]
    with (
        openai.OpenAI(base_url=url, api_key=key) as client,
        client.responses.connect() as connection,
    ):
        connection.response.create(
            model=MODEL, input="/function get_weather {}", store=False, tools=[FUNCTION]
        )
        asked = ended(connection)
        (call,) = (item for item in asked.output if item.type == "function_call")
        connection.response.create(
            model=MODEL,
            store=False,
            tools=[FUNCTION],
            previous_response_id=asked.id,
            input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        )
        assert "sunny" in ended(connection).output_text


def test_a_held_turn_is_one_response(gateway: Gateway) -> None:
    url = gateway.url + "/v1"
    with (
        openai.OpenAI(base_url=url, api_key=gateway.keys["caller"]) as client,
        openai.OpenAI(base_url=url, api_key=gateway.keys["approver"]) as approver,
        client.responses.connect() as connection,
    ):
        deciding = threading.Thread(target=approve, args=(approver,))
        deciding.start()
        connection.response.create(model=MODEL, input=issue(marker()), tools=[GITHUB])  # type: ignore[list-item]
        done = ended(connection)
        deciding.join(10)
    assert [item.type for item in done.output][-2:] == ["mcp_call", "message"]


async def test_a_stateless_chain_goes_on_over_a_new_socket(gateway: Gateway, stack: Stack) -> None:
    word = marker()
    client = gateway.client()
    async with client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="x", store=False, generate=False)
        warmed = await async_ended(connection)
        assert warmed.output == []
        await connection.response.create(
            model=MODEL,
            input=f"/think of plums\n/echo plum {word}",
            store=False,
            previous_response_id=warmed.id,
        )
        first = await async_ended(connection)
        assert [item.type for item in first.output] == ["reasoning", "message"]
        await connection.response.create(
            model=MODEL,
            input="/think more\n/echo more",  # a reasoning item alone could not be replayed
            store=False,
            previous_response_id=first.id,
        )
        second = await async_ended(connection)
    async with client.responses.connect() as connection:
        await connection.response.create(
            model=MODEL, input="/recall", store=False, previous_response_id=second.id
        )
        third = await async_ended(connection)
    assert "plum" in third.output_text
    asked = (await sent(stack, word))[-1]["input"]
    assert [item["type"] for item in asked].count("reasoning") == 2
    await client.close()


async def test_an_error_is_an_event(gateway: Gateway) -> None:
    client = gateway.client()
    async with client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="x", previous_response_id="resp_none")
        event = await connection.recv()
        assert event.type == "error"
        assert event.status == 404
        assert event.error.code == "previous_response_not_found"
    await client.close()
