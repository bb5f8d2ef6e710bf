"""openai-python's `responses.connect()` beyond what every client does (API-6)."""

from __future__ import annotations

from typing import Any

import pytest
from openai.resources.responses.responses import AsyncResponsesConnection

from tests.support.approvals import marker, sent
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"

pytestmark = pytest.mark.covers("API-6")


async def ended(connection: AsyncResponsesConnection) -> Any:
    async for event in connection:
        assert event.type not in ("error", "response.failed"), event
        if event.type == "response.completed":
            return event.response
    raise AssertionError("the socket ended before the turn")


async def test_a_stateless_chain_goes_on_over_a_new_socket(gateway: Gateway, stack: Stack) -> None:
    word = marker()
    client = gateway.client()
    async with client.responses.connect() as connection:
        await connection.response.create(model=MODEL, input="x", store=False, generate=False)
        warmed = await ended(connection)
        assert warmed.output == []
        await connection.response.create(
            model=MODEL,
            input=f"/think of plums\n/echo plum {word}",
            store=False,
            previous_response_id=warmed.id,
        )
        first = await ended(connection)
        assert [item.type for item in first.output] == ["reasoning", "message"]
        await connection.response.create(
            model=MODEL,
            input="/think more\n/echo more",  # a reasoning item alone could not be replayed
            store=False,
            previous_response_id=first.id,
        )
        second = await ended(connection)
    async with client.responses.connect() as connection:
        await connection.response.create(
            model=MODEL, input="/recall", store=False, previous_response_id=second.id
        )
        third = await ended(connection)
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
