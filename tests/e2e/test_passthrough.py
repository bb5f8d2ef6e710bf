"""What need not change passes as the very bytes that came (API-3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from tests.support.provider import (
    ENDING,
    OPENING,
    Call,
    awkward,
    delta,
    frame,
    message,
    provider,
    response,
)
from tests.support.stack import Stack


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
                with anyio.fail_after(30):
                    async with client.stream("POST", "/v1/responses", json=STREAM) as answered:
                        async for piece in answered.aiter_bytes():
                            got += piece
                            if got.endswith(b"\n\n"):
                                seen.set()
    assert got == OPENING + b"".join(delta(number) for number in range(2, 6)) + ENDING
