"""What need not change passes as the very bytes that came (API-3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from tests.support.approvals import tenancy
from tests.support.provider import (
    ENDING,
    OPENING,
    Call,
    delta,
    frame,
    message,
    provider,
    response,
)
from tests.support.recordings import ALL, COPY, Recording, recorded_streams
from tests.support.stack import Stack

SIZES = (1, 7, 64, 3, 1000, 17, 4096, 2, 333)
"""Awkward chunk sizes, in turn."""

EXPECTED = 20
"""Streams in the repository's copy; all of them pass."""


def awkward(wire: bytes) -> Iterator[bytes]:
    """Cut bytes where it hurts: inside lines, inside characters, across frames."""
    sizes = cycle(SIZES)
    position = 0
    while position < len(wire):
        size = next(sizes)
        yield wire[position : position + size]
        position += size


def servers(recordings: list[Recording]) -> list[dict[str, Any]]:
    labels = {tool["server_label"] for found in recordings for tool in found.mcp_tools}
    return [{"label": label, "url": "https://mcp.example.com/mcp"} for label in sorted(labels)]


def rules(labels: list[dict[str, Any]], **effect: Any) -> list[dict[str, Any]]:
    return [
        {"id": one["label"], "match": {"server": one["label"], "tool": "*"}, **effect}
        for one in labels
    ]


def request(recording: Recording) -> dict[str, Any]:
    body: dict[str, Any] = {"model": recording.name, "input": "hello", "stream": True}
    if recording.mcp_tools:
        body["tools"] = [
            {"type": "mcp", "server_label": tool["server_label"]} for tool in recording.mcp_tools
        ]
    return body


def same_outside_tools(sent: bytes, received: bytes) -> bool:
    """Compare two streams frame by frame; only the MCP servers in `tools` may differ."""
    ours, theirs = received.split(b"\n\n"), sent.split(b"\n\n")
    return len(ours) == len(theirs) and all(
        one == other or without_tools(one) == without_tools(other)
        for one, other in zip(ours, theirs, strict=True)
    )


def without_tools(block: bytes) -> Any:
    name, _, data = block.partition(b"\n")
    event = msgspec.json.decode(data.removeprefix(b"data: "), type=dict[str, msgspec.Raw])
    inner = msgspec.json.decode(event["response"], type=dict[str, msgspec.Raw])
    inner.pop("tools")
    return name, event | {"response": b""}, inner


async def different(stack: Stack, recordings: list[Recording]) -> list[str]:
    """Send every recording through a gateway, and name those that do not come out the same."""
    by_name = {recording.name: recording for recording in recordings}

    async def answer(call: Call) -> None:
        await call.stream(awkward(by_name[call.json["model"]].wire))

    known = servers(recordings)
    # Calls must be allowed, or be asked of the caller, or the gateway would rightly step in.
    asking = rules(known, effect="ask", approval={"by": "caller", "approvers": ["role:caller"]})
    failed: list[str] = []
    async with provider(answer) as upstream:
        # A response id names one turn: recordings that are sent again need another tenant.
        common = {**tenancy(stack), "upstreams": [upstream.settings()], "mcp_servers": known}
        with (
            stack.gateway(**common, rules=rules(known, effect="allow")) as allows,
            stack.gateway(**common, rules=asking) as asks,
        ):
            for recording in recordings:
                gateway = asks if recording.asks else allows
                async with gateway.http() as client:
                    answered = await client.post("/v1/responses", json=request(recording))
                same = answered.content == recording.wire
                if recording.mcp_tools:
                    same = same_outside_tools(recording.wire, answered.content)
                if not same:
                    failed.append(recording.name)
    return failed


@pytest.mark.covers("API-3")
async def test_every_recorded_stream_of_the_repository_passes(stack: Stack) -> None:
    recordings = recorded_streams(COPY)
    assert await different(stack, recordings) == []
    assert len(recordings) == EXPECTED


@pytest.mark.covers("API-3")
@pytest.mark.skipif(not ALL.is_dir(), reason="the other recordings are not at hand")
async def test_every_other_recorded_stream_passes(stack: Stack) -> None:
    recordings = recorded_streams(ALL)
    failed = await different(stack, recordings)
    assert failed == []
    assert len(recordings) >= 100


@asynccontextmanager
async def speaking(stack: Stack, wire: bytes, **head: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a gateway whose upstream answers with these bytes."""

    async def answer(call: Call) -> None:
        if head.get("media_type") == "application/json":
            await call.document(wire, **{k: v for k, v in head.items() if k != "media_type"})
        else:
            await call.stream(awkward(wire), **head)

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                yield client


STREAM = {"model": "m", "input": "hello", "stream": True}

UNKNOWN = frame(
    "response.hologram.delta", sequence_number=2, wibble={"é": "\u2028", "n": 1e400}
).replace(b"Infinity", b"1e400")
ITEM = {"id": "holo_1", "type": "hologram_call", "beam": [1.0, 2.50], "status": "completed"}
CURIOUS = (
    OPENING
    + UNKNOWN
    + frame("response.output_item.added", sequence_number=3, output_index=0, item=ITEM)
    + frame("response.output_item.done", sequence_number=4, output_index=0, item=ITEM)
    + frame("response.completed", sequence_number=5, response=response(output=[ITEM], novelty=0.10))
)


@pytest.mark.covers("API-3")
async def test_unknown_events_items_and_fields_pass(stack: Stack) -> None:
    async with speaking(stack, CURIOUS) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content == CURIOUS


@pytest.mark.covers("API-3")
async def test_a_stream_without_event_lines_passes(stack: Stack) -> None:
    wire = b"".join(
        b": a comment\n\n" + block.partition(b"\n")[2] + b"\n\n"
        for block in CURIOUS.split(b"\n\n")
        if block
    )
    async with speaking(stack, wire) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content == wire


@pytest.mark.covers("API-3")
async def test_a_stream_with_carriage_returns_passes(stack: Stack) -> None:
    wire = CURIOUS.replace(b"\n", b"\r\n")
    async with speaking(stack, wire) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content == wire


@pytest.mark.covers("API-3")
async def test_ids_retries_and_data_before_the_event_line_pass(stack: Stack) -> None:
    wire = CURIOUS.replace(b"event: ", b"id: 7\nretry: 100\nevent: ")
    async with speaking(stack, wire) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content == wire


@pytest.mark.covers("API-3")
async def test_a_done_marker_after_the_last_event_passes(stack: Stack) -> None:
    wire = CURIOUS + b"data: [DONE]\n\n"
    async with speaking(stack, wire) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content == wire


@pytest.mark.covers("API-3")
async def test_a_last_event_without_its_blank_line_still_ends_the_stream(stack: Stack) -> None:
    wire = CURIOUS.removesuffix(b"\n\n")
    async with speaking(stack, wire) as client:
        answer = await client.post("/v1/responses", json=STREAM)
    assert answer.content.rstrip() == wire


@pytest.mark.covers("API-3", "API-4")
async def test_a_json_body_passes_with_its_own_spaces_and_numbers(stack: Stack) -> None:
    wire = json.dumps(response(output=[message("é\u2028"), ITEM]), indent=3).encode()
    wire = wire.replace(b"2.5", b"2.50e+00") + b"\n"
    async with speaking(stack, wire, media_type="application/json") as client:
        answer = await client.post("/v1/responses", json={"model": "m", "input": "hello"})
    assert answer.content == wire
    assert answer.json()["id"] == "resp_1"


PASSED = {
    "x-request-id": "req_1",
    "openai-processing-ms": "42",
    "openai-model": "m-2026",
    "x-ratelimit-remaining-tokens": "7",
    "x-ratelimit-novel-thing": "8",
    "x-ms-region": "Sweden Central",
    "apim-request-id": "a-1",
    "azureai-requested-tokens": "3",
    "retry-after-ms": "5",
}


@pytest.mark.covers("API-3")
@pytest.mark.parametrize("streamed", [False, True])
async def test_headers_that_matter_pass_and_others_do_not(stack: Stack, streamed: bool) -> None:
    wire = CURIOUS if streamed else json.dumps(response()).encode()
    media = "text/event-stream" if streamed else "application/json"
    others = {"set-cookie": "a=b", "server": "nginx", "strict-transport-security": "max-age=1"}
    async with speaking(stack, wire, media_type=media, headers=PASSED | others) as client:
        answer = await client.post("/v1/responses", json=STREAM | {"stream": streamed})
    assert answer.headers.items() >= PASSED.items()
    assert not set(answer.headers) & {"set-cookie", "strict-transport-security"}
    assert answer.headers.get("server") != "nginx"
    assert answer.headers["gateway-request-id"].startswith("greq_")


@pytest.mark.covers("API-3")
async def test_unknown_request_fields_tools_and_items_reach_the_upstream_as_they_came(
    stack: Stack,
) -> None:
    sent = (
        b'{"model":"m","hologram":{"b":1.50,"a":[1e3,{"x":"\\u00e9"}]},"tools":[{"type":"beam","w": 1.0}],'
        b'"input":[{"type":"hologram_output","call_id":"c","data": 1.10}],"temperature":0.70}'
    )
    body = json.dumps(response()).encode()

    async def answer(call: Call) -> None:
        await call.document(body)

    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                answered = await client.post("/v1/responses", content=sent)
        assert answered.status_code == 200
        received = upstream.calls[0].body
    assert fields(received) == fields(sent)


def fields(body: bytes) -> dict[str, bytes]:
    """The fields of a body, each as the bytes that were sent."""
    found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return {name: bytes(value) for name, value in found.items()}


@pytest.mark.covers("API-3", "API-8")
async def test_headers_and_query_of_the_upstream_are_sent_and_the_callers_key_is_not(
    stack: Stack,
) -> None:
    async def answer(call: Call) -> None:
        await call.document(json.dumps(response()).encode())

    async with provider(answer) as upstream:
        entry = upstream.settings(
            query={"api-version": "preview"}, headers={"x-ms-oai-image-generation-deployment": "i"}
        )
        with stack.gateway(upstreams=[entry]) as gateway:
            async with gateway.http() as client:
                headers = {
                    "openai-beta": "responses=v2",
                    "x-client-request-id": "c-1",
                    "cookie": "a=b",
                }
                await client.post("/v1/responses", json={"model": "m"}, headers=headers)
        (call,) = upstream.calls
    assert call.path == "/v1/responses?api-version=preview"
    assert call.headers["x-ms-oai-image-generation-deployment"] == "i"
    assert call.headers["openai-beta"] == "responses=v2"
    assert call.headers["x-client-request-id"] == "c-1"
    assert "cookie" not in call.headers
    assert gateway.keys["caller"] not in call.headers["authorization"]


@pytest.mark.covers("API-3", "STREAM-1")
async def test_each_event_leaves_before_the_next_one_comes(stack: Stack) -> None:
    seen = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        for number in range(2, 6):
            await seen.wait()
            seen.clear()
            await call.send(delta(number))
        await seen.wait()
        await call.send(ENDING)
        await call.end()

    got = b""
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()]) as gateway:
            async with gateway.http() as client:
                with anyio.fail_after(10):
                    async with client.stream("POST", "/v1/responses", json=STREAM) as answered:
                        async for piece in answered.aiter_bytes():
                            got += piece
                            if got.endswith(b"\n\n"):
                                seen.set()
    assert got == OPENING + b"".join(delta(number) for number in range(2, 6)) + ENDING
