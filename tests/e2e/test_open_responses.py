"""The Open Responses specification through the gateway: JSON, streams, sockets, compaction.

Each response and event is held against the specification's own models, which are not ours. The
scenarios are those of its compliance suite, which `nox -s compliance` runs itself: this is for
machines that have no checkout of it. The models know no MCP; what the gateway adds for approvals
is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydantic
import pytest

from tests.support.events import numbers, read_events
from tests.support.open_responses import (
    EVENTS,
    check_compaction,
    check_event,
    check_response,
)
from tests.support.provider import Call, provider
from tests.support.sockets import MODEL, Talk, talk
from tests.support.stack import Gateway, Stack

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
    },
}
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk"
    "YAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)


def said(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **fields}


TALK = [
    said("user", "My dog is called Juno."),
    said("assistant", "That is a good name."),
    said("user", "What is my dog called?"),
]

TURNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "text": ({"input": [said("user", "Say hello.")]}, {"message"}),
    "history": ({"input": TALK}, {"message"}),
    "phases": (
        {
            "input": [
                said("assistant", "Let me look.", phase="commentary"),
                said("assistant", "It is nine.", phase="final_answer"),
                said("user", "Once more?"),
            ]
        },
        {"message"},
    ),
    "system": ({"input": [said("system", "Be brief."), said("user", "Hello.")]}, {"message"}),
    "image": (
        {
            "input": [
                said(
                    "user",
                    [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PIXEL},
                    ],
                )
            ]
        },
        {"message"},
    ),
    "function": (
        {"input": [said("user", "How is the weather in Oslo?")], "tools": [WEATHER]},
        {"function_call"},
    ),
    "reasoning": (
        {
            "input": "/think Step by step.\n/echo Nine.",
            "reasoning": {"effort": "high", "summary": "detailed"},
            "include": ["reasoning.encrypted_content"],
        },
        {"reasoning", "message"},
    ),
    "refusal": ({"input": "/refuse I will not."}, {"message"}),
}
"""What is asked, and the types of the items that come back."""


@pytest.fixture(scope="module", params=["stored", "stateless"])
def tenant(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Gateway]:
    """A gateway for a tenant whose responses are stored, and one for a tenant that never stores."""
    tenants = [{"id": "acme", "stateless": request.param == "stateless"}]
    with stack.gateway(tenants=tenants, api_keys=[stack.key("caller")]) as gateway:
        yield gateway


@pytest.mark.covers("API-1", "STATE-1")
@pytest.mark.parametrize("turn", TURNS)
async def test_a_response_has_every_field_that_the_specification_requires(
    tenant: Gateway, turn: str
) -> None:
    body, expected = TURNS[turn]
    async with tenant.http() as client:
        made = await client.post("/v1/responses", json={"model": MODEL, **body})
        assert made.status_code == 200, made.text
        kept = await client.get(f"/v1/responses/{made.json()['id']}")
    check_response(made.json())
    check_response(kept.json())
    assert made.json()["status"] == kept.json()["status"] == "completed"
    assert {item["type"] for item in made.json()["output"]} == expected
    assert [item["id"] for item in kept.json()["output"]] == [
        item["id"] for item in made.json()["output"]
    ]


@pytest.mark.covers("API-1", "STREAM-1")
@pytest.mark.parametrize("turn", TURNS)
async def test_a_stream_consists_of_the_specifications_events(tenant: Gateway, turn: str) -> None:
    body, expected = TURNS[turn]
    async with tenant.http() as client:
        answer = await client.post("/v1/responses", json={"model": MODEL, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    events = read_events(answer.content)
    for event in events:
        check_event(event)
    assert numbers(events) == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    check_response(events[-1]["response"])
    assert {item["type"] for item in events[-1]["response"]["output"]} == expected


@pytest.mark.covers("API-5")
@pytest.mark.parametrize(
    ("input", "status"),
    [("/incomplete Half of", "incomplete"), ("/fault failed", "failed")],
)
async def test_a_stream_that_ends_badly_ends_as_specified(
    tenant: Gateway, input: str, status: str
) -> None:
    async with tenant.http() as client:
        body = {"model": MODEL, "input": input, "stream": True}
        events = read_events((await client.post("/v1/responses", json=body)).content)
    for event in events:
        check_event(event)
    assert events[-1]["type"] == f"response.{status}"
    assert events[-1]["response"]["status"] == status


@pytest.mark.covers("STREAM-3", "STATE-7")
async def test_a_background_turn_is_a_response_from_its_first_moment(tenant: Gateway) -> None:
    async with tenant.http() as client:
        body = {"model": MODEL, "input": "hello", "background": True, "stream": True}
        events = read_events((await client.post("/v1/responses", json=body)).content)
    for event in events:
        check_event(event)
    assert [event["response"]["background"] for event in events if "response" in event] == [
        True
    ] * 4
    assert events[-1]["type"] == "response.completed"


@pytest.mark.covers("API-1")
async def test_a_compacted_window_is_what_the_specification_says(tenant: Gateway) -> None:
    async with tenant.http() as client:
        body = {"model": MODEL, "input": TALK, "prompt_cache_key": "dog"}
        answer = await client.post("/v1/responses/compact", json=body)
        refused = await client.post("/v1/responses/compact", json={"input": TALK})
    check_compaction(answer.json())
    assert "compaction" in {item["type"] for item in answer.json()["output"]}
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "model"


async def checked_turn(socket: Talk, input: Any, **body: Any) -> list[dict[str, Any]]:
    """Run a turn on a socket, and hold each message against the specification."""
    await socket.create(input, **body)
    events = await socket.rest()
    for event in events:
        check_event(event, socket=True)
    return events


@pytest.mark.covers("API-6")
async def test_turns_on_a_socket_consist_of_the_specifications_events(tenant: Gateway) -> None:
    async with talk(tenant) as socket:
        stored = await checked_turn(socket, [said("user", "Count to three.")])
        first = await checked_turn(socket, "/echo first", store=False)
        second = await checked_turn(socket, "/echo second", store=False)
    for events in (stored, first, second):
        assert numbers(events) == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        check_response(events[-1]["response"])


@pytest.mark.covers("API-6", "CHAIN-4")
async def test_a_socket_goes_on_by_id_without_storing(tenant: Gateway) -> None:
    async with talk(tenant) as socket:
        first = await checked_turn(socket, "The word is cobalt.", store=False)
        parent = first[-1]["response"]["id"]
        second = await checked_turn(socket, "/recall", store=False, previous_response_id=parent)
    assert "cobalt" in str(second[-1]["response"]["output"])
    assert second[-1]["response"]["previous_response_id"] == parent


@pytest.mark.covers("API-6", "CHAIN-1")
async def test_a_parent_that_is_unknown_is_the_specifications_error_event(tenant: Gateway) -> None:
    async with talk(tenant) as socket:
        refused = await checked_turn(
            socket, "x", store=False, previous_response_id="resp_" + "0" * 48
        )
        after = await checked_turn(socket, "/echo still here", store=False)
    assert [(event["status"], event["error"]["code"]) for event in refused] == [
        (404, "previous_response_not_found")
    ]
    assert after[-1]["type"] == "response.completed"


@pytest.mark.covers("API-6", "CHAIN-4")
async def test_what_is_stored_nowhere_is_continued_on_another_socket_and_after_an_error(
    tenant: Gateway,
) -> None:
    """Here we promise more than the specification, which keeps such a chain in its socket only."""
    answer = {"type": "function_call_output", "call_id": "call_nobody", "output": "?"}
    async with talk(tenant) as socket:
        first = await checked_turn(socket, "The word is ember.", store=False)
        parent = first[-1]["response"]["id"]
        # No `checked_turn`: the specification wants a code, and upstreams have none for this.
        await socket.create([answer], store=False, previous_response_id=parent)
        (failed,) = await socket.rest()
    async with talk(tenant) as socket:
        second = await checked_turn(socket, "/recall", store=False, previous_response_id=parent)
    assert (failed["type"], failed["status"]) == ("error", 400)
    assert "ember" in str(second[-1]["response"]["output"])


@pytest.mark.covers("API-6")
async def test_a_prewarmed_turn_is_a_response_by_the_specification(tenant: Gateway) -> None:
    async with talk(tenant) as socket:
        events = await checked_turn(
            socket, "The word is amber.", store=False, generate=False, tools=[WEATHER]
        )
    check_response(events[-1]["response"])
    assert events[-1]["response"]["output"] == []


@pytest.mark.covers("API-5")
async def test_a_turn_that_the_upstream_never_opened_fails_with_a_whole_response(
    stack: Stack,
) -> None:
    async def answer(call: Call) -> None:
        await call.stream([b": nothing follows\n\n"])

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                body = {
                    "model": MODEL,
                    "input": "x",
                    "stream": True,
                    "tools": [WEATHER],
                    "reasoning": {"effort": "low"},
                    "metadata": {"a": "b"},
                }
                events = read_events((await client.post("/v1/responses", json=body)).content)
    assert [event["type"] for event in events] == ["error", "response.failed"]
    for event in events:
        check_event(event)
    shown = events[-1]["response"]
    assert shown["reasoning"] == {"effort": "low", "summary": None}
    assert shown["metadata"] == {"a": "b"}
    assert shown["tools"] == [{**WEATHER, "strict": True}]


@pytest.mark.covers("API-6")
async def test_a_compacted_window_begins_a_new_chain_on_a_socket(tenant: Gateway) -> None:
    async with tenant.http() as client:
        compacted = await client.post("/v1/responses/compact", json={"model": MODEL, "input": TALK})
    window = [*compacted.json()["output"], said("user", "/recall")]
    async with talk(tenant) as socket:
        events = await checked_turn(socket, window, store=False, tools=[])
    check_response(events[-1]["response"])
    assert events[-1]["response"]["previous_response_id"] is None


async def test_the_judge_finds_what_is_missing_or_wrong(tenant: Gateway) -> None:
    async with tenant.http() as client:
        body = {"model": MODEL, "input": "hello", "stream": True}
        events = read_events((await client.post("/v1/responses", json=body)).content)
    last = events[-1]
    for field in ("completed_at", "presence_penalty", "truncation", "store", "usage"):
        lacking = {name: value for name, value in last["response"].items() if name != field}
        with pytest.raises(pydantic.ValidationError):
            check_response(lacking)
        with pytest.raises(pydantic.ValidationError):
            check_event(last | {"response": lacking})
    with pytest.raises(pydantic.ValidationError):
        check_event(last | {"sequence_number": "9"})
    with pytest.raises(AssertionError):
        check_event(last | {"type": "response.hologram"})
    assert {"response.completed", "error", "response.refusal.delta"} <= set(EVENTS)
