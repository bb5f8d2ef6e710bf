"""Plain turns through the official SDK."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.approvals import decide, issue, marker
from tests.support.stack import Gateway


@pytest.mark.covers("API-1")
async def test_the_official_client_gets_an_answer(gateway: Gateway) -> None:
    response = await gateway.client().responses.create(model="gpt-4.1", input="/echo hello")
    assert response.output_text == "hello"


@pytest.mark.covers("APPR-2")
async def test_a_held_stream_goes_on_when_a_person_approves(gateway: Gateway) -> None:
    word = marker()
    decision = asyncio.ensure_future(decide(gateway, word))
    numbers = []
    async with gateway.client().responses.stream(
        model="gpt-4.1",
        input=issue(word),
        tools=[{"type": "mcp", "server_label": "github"}],
    ) as stream:
        async for event in stream:
            numbers.append(event.sequence_number)
        final = await stream.get_final_response()
    assert (await decision)["status"] == "approved"
    assert numbers == list(range(len(numbers)))
    assert [item.type for item in final.output][-2:] == ["mcp_call", "message"]
