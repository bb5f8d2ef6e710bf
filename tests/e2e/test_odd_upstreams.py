"""Upstreams that are lax, odd or hostile: nothing passes undecided, every stream ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.client import open_clients
from gateway.adapters.redis.event_log import RedisEventLog
from tests.support.approvals import (
    GITHUB,
    create,
    issue,
    marker,
    pending,
    refused,
    retrieved,
    tenancy,
    vote,
)
from tests.support.events import read_events
from tests.support.provider import Call, frame, provider, response
from tests.support.stack import Gateway, Stack

Speak = Callable[[Call], Awaitable[None]]


def asks(id_: str) -> dict[str, Any]:
    return {
        "type": "mcp_approval_request",
        "id": id_,
        "server_label": "github",
        "name": "create_issue",
        "arguments": '{"title":"x"}',
    }


def call(id_: str, **more: Any) -> dict[str, Any]:
    return {**asks(id_), "type": "mcp_call", "output": "ran", **more}


def stream(id_: str, items: list[dict[str, Any]], *, final: Any = None, **more: Any) -> bytes:
    """Write a whole stream; `final` is the output that the terminal event claims."""
    frames = [frame("response.created", sequence_number=0, response=response(id_, "in_progress"))]
    for index, item in enumerate(items):
        fields = {"sequence_number": len(frames), "output_index": index, "item": item}
        frames.append(frame("response.output_item.done", **fields))
    output = items if final is None else final
    done = response(id_, "completed", output=output, **more)
    frames.append(frame("response.completed", sequence_number=len(frames), response=done))
    return b"".join(frames)


@asynccontextmanager
async def speaking(stack: Stack, speak: Speak) -> AsyncIterator[Gateway]:
    async with provider(speak) as upstream:
        with stack.gateway(**tenancy(stack), upstreams=[upstream.settings()]) as gateway:
            yield gateway


async def streamed(gateway: Gateway, **headers: str) -> list[dict[str, Any]]:
    answer = await create(gateway, "x", stream=True, headers=headers)
    return read_events(answer.content)


@pytest.mark.covers("APPR-1")
async def test_a_request_that_the_final_output_leaves_out_is_decided(stack: Stack) -> None:
    word = marker()

    async def speak(one: Call) -> None:
        await one.stream([stream("resp_" + word, [asks("mcpr_" + word)], final=[])])

    async with speaking(stack, speak) as gateway:
        reading = asyncio.ensure_future(streamed(gateway))
        (approval,) = await pending(gateway, "title")
        assert approval["approval_request_id"] == "mcpr_" + word
        await vote(gateway, approval, "deny", reason="No.")
        await reading


@pytest.mark.covers("APPR-7")
async def test_a_call_that_the_final_output_leaves_out_needs_its_approval(stack: Stack) -> None:
    word = marker()

    async def speak(one: Call) -> None:
        await one.stream([stream("resp_" + word, [call("mcp_" + word)], final=[])])

    async with speaking(stack, speak) as gateway:
        events = await streamed(gateway)
        for _ in range(2):
            status, error = await refused(gateway, "x", previous_response_id="resp_" + word)
            assert (status, error["code"]) == (409, "chain_locked")
        shown = await retrieved(gateway, "resp_" + word)
        assert (shown["status"], shown["error"]["code"]) == ("failed", "receipt_mismatch")
    assert events[-1]["response"]["error"]["code"] == "receipt_mismatch"


@pytest.mark.covers("MCP-3", "APPR-1")
async def test_events_without_a_name_among_named_ones_are_looked_into(stack: Stack) -> None:
    word = marker()
    tools = [{**GITHUB, "server_url": "http://internal-host/", "headers": {"A": "short"}}]

    async def speak(one: Call) -> None:
        named = stream("resp_" + word, [asks("mcpr_" + word)], tools=tools)
        lines = [line for line in named.split(b"\n") if not line.startswith(b"event:")]
        await one.stream([b"event: ping\ndata: {}\n\n" + b"\n".join(lines)])

    async with speaking(stack, speak) as gateway:
        reading = asyncio.ensure_future(create(gateway, "x", stream=True))
        (approval,) = await pending(gateway, "title")
        await vote(gateway, approval, "deny", reason="No.")
        shown = (await reading).text
    assert "internal-host" not in shown
    assert '"short"' not in shown


@pytest.mark.covers("API-5")
async def test_lines_that_end_with_cr_alone_are_refused_and_not_passed_unseen(
    stack: Stack,
) -> None:
    word = marker()

    async def speak(one: Call) -> None:
        await one.stream([stream("resp_" + word, [call("mcp_" + word)]).replace(b"\n", b"\r")])

    async with speaking(stack, speak) as gateway:
        events = await streamed(gateway)
    assert [event["type"] for event in events] == ["error", "response.failed"]
    assert events[0]["error"]["code"] == "upstream_malformed"


@pytest.mark.covers("AUTH-2", "CHAIN-1")
async def test_a_response_id_that_is_used_twice_shows_nobody_anothers_turn(stack: Stack) -> None:
    word = marker()

    async def speak(one: Call) -> None:
        if "mcp_approval_response" in json.dumps(one.json):
            ran = call("mcp_" + word, approval_request_id="mcpr_" + word, output="FOR ALICE")
            await one.stream([stream(f"resp_{word}2", [ran])])
        else:
            await one.stream([stream(f"resp_{word}1", [asks("mcpr_" + word)])])

    async with speaking(stack, speak) as gateway:
        alice = {"Gateway-End-User": "alice"}
        reading = asyncio.ensure_future(streamed(gateway, **alice))
        (approval,) = await pending(gateway, "title")
        await vote(gateway, approval, reason="checked")
        assert "FOR ALICE" in json.dumps(await reading)
        with anyio.fail_after(30):
            events = await streamed(gateway, **{"Gateway-End-User": "bob"})
    assert "FOR ALICE" not in json.dumps(events)
    assert events[-1]["response"]["error"]["code"] == "upstream_malformed"


@pytest.mark.covers("API-5")
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_header_of_any_bytes_does_not_spoil_the_answer(
    stack: Stack, streaming: bool
) -> None:
    word = marker()
    body = (
        stream("resp_" + word, []) if streaming else json.dumps(response("resp_" + word)).encode()
    )
    kind = "text/event-stream" if streaming else "application/json"

    async def speak(one: Call) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nx-ms-note: café €\r\n"
        head += f"gateway-approval: pending\r\ncontent-length: {len(body)}\r\n\r\n"
        one.writer.write(head.encode() + body)
        await one.writer.drain()

    async with speaking(stack, speak) as gateway:
        answer = await create(gateway, "x", stream=streaming)
    assert answer.status_code == 200
    assert "gateway-approval" not in answer.headers


@pytest.mark.covers("STREAM-1", "STREAM-3")
async def test_a_long_stream_with_tools_can_be_read_again_to_its_end(
    gateway: Gateway,
) -> None:
    made = await create(gateway, "/long 6000", stream=True)
    events = read_events(made.content)
    id_ = events[0]["response"]["id"]
    with anyio.fail_after(30):
        async with gateway.http() as client:
            again = await client.get(f"/v1/responses/{id_}", params={"stream": "true"})
    assert read_events(again.content)[-1] == events[-1]


@pytest.mark.covers("APPR-4", "API-5")
async def test_deleting_a_held_turn_ends_every_stream_of_it(gateway: Gateway) -> None:
    word = marker()
    reading = asyncio.ensure_future(create(gateway, issue(word), stream=True))
    (approval,) = await pending(gateway, word)
    async with gateway.http() as client:
        assert (await client.delete(f"/v1/responses/{approval['response_id']}")).status_code == 200
    with anyio.fail_after(30):
        events = read_events((await reading).content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["error"]["code"] == "response_deleted"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.covers("APPR-4", "API-5")
async def test_what_a_dead_replica_had_written_is_counted_when_the_turn_is_ended(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    reading = asyncio.ensure_future(create(gateway, issue(word), stream=True))
    (approval,) = await pending(gateway, word)
    id_ = approval["response_id"]
    async with gateway.http() as client, open_clients(stack.redis_url) as clients:
        seen = read_events((await _so_far(client, id_)).encode())
        last = seen[-1]["sequence_number"]
        written = [frame("response.odd", sequence_number=last + n) for n in (1, 2, 3)]
        log = RedisEventLog(clients.commands, KeyRing([("k1", b"k" * 32)]))
        await log.append("acme", id_, [(last + 3, b"".join(written))], ttl=60)
        assert (await client.post(f"/v1/responses/{id_}/cancel")).status_code == 200
    with anyio.fail_after(30):
        events = read_events((await reading).content)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


@pytest.mark.covers("APPR-2", "APPR-4")
async def test_a_turn_whose_worker_died_after_its_last_event_has_no_second_one(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    reading = asyncio.ensure_future(create(gateway, issue(word), stream=True))
    (approval,) = await pending(gateway, word)
    id_ = approval["response_id"]
    async with gateway.http() as client, open_clients(stack.redis_url) as clients:
        seen = read_events((await _so_far(client, id_)).encode())
        number = seen[-1]["sequence_number"] + 1
        block = frame("response.completed", sequence_number=number, response=seen[0]["response"])
        log = RedisEventLog(clients.commands, KeyRing([("k1", b"k" * 32)]))
        await log.append("acme", id_, [(number, block)], ttl=60)
        assert (await client.post(f"/v1/responses/{id_}/cancel")).status_code == 200
    with anyio.fail_after(30):
        events = read_events((await reading).content)
    ends = ("response.completed", "response.failed", "error")
    assert [one["type"] for one in events if one["type"] in ends] == ["response.completed"]


async def _so_far(client: Any, id_: str) -> str:
    """Read the events of a held turn that are there already."""
    text = ""
    path = f"/v1/responses/{id_}?stream=true"
    with anyio.move_on_after(1):
        async with client.stream("GET", path) as answer:
            async for piece in answer.aiter_text():
                text += piece
    return text
