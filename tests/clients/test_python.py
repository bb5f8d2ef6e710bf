"""openai-python's synchronous client: base URL and key are all that is changed (API-1)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import Response

from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    url, key = gateway.url + "/v1", gateway.keys["caller"]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
def approver(gateway: Gateway) -> Iterator[openai.OpenAI]:
    url, key = gateway.url + "/v1", gateway.keys["approver"]
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


def approve(approver: openai.OpenAI) -> None:
    """Approve what waits, with the SDK as a plain HTTP client."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for one in approver.get("/approvals", cast_to=object)["data"]:  # type: ignore[index]
            decision = {"decision": "approve", "fingerprint": one["fingerprint"]}
            approver.post(f"/approvals/{one['id']}/decision", cast_to=object, body=decision)
            return
        time.sleep(0.02)


@pytest.mark.covers("API-1")
def test_a_response_is_created_retrieved_listed_and_deleted(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="/echo hello")
    assert response.output_text == "hello"
    assert client.responses.retrieve(response.id).output_text == "hello"
    assert [item.type for item in client.responses.input_items.list(response.id)] == ["message"]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.covers("API-1")
def test_a_stream_is_read_to_its_end(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="/echo a b c") as stream:
        numbers = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == "a b c"
    assert numbers == list(range(len(numbers)))


@pytest.mark.covers("APPR-2", "APPR-3")
def test_a_held_turn_is_one_response_on_one_stream(
    client: openai.OpenAI, approver: openai.OpenAI
) -> None:
    deciding = threading.Thread(target=approve, args=(approver,))
    deciding.start()
    types = []
    with client.responses.stream(
        model=MODEL,
        input='/call github.create_issue {"title": "From Python"}',
        tools=[{"type": "mcp", "server_label": "github"}],  # type: ignore[list-item,unused-ignore]
    ) as stream:
        for event in stream:
            types.append(event.type)
        final = stream.get_final_response()
    deciding.join(10)
    assert types.count("response.created") == types.count("response.completed") == 1
    assert [item.type for item in final.output][-2:] == ["mcp_call", "message"]
    assert "Created issue" in final.output_text


@pytest.mark.covers("STATE-1", "CHAIN-1")
async def test_three_turns_without_storing_chain_by_previous_response_id(
    client: openai.OpenAI, stack: Stack
) -> None:
    await stack.forget()
    turns: list[Response] = []
    for text in ("/think of a name\n/echo first", "/echo second", "/recall"):
        previous = turns[-1].id if turns else None
        turns.append(
            client.responses.create(
                model=MODEL, input=text, store=False, previous_response_id=previous
            )
        )
    assert "2 user messages" in turns[-1].output_text
    bodies = [request["body"] for request in await stack.requests()]
    assert [body["store"] for body in bodies] == [False] * 3
    assert not any("previous_response_id" in body for body in bodies)
