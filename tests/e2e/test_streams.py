"""Streams: nobody slows another, nobody holds an upstream for nothing, silence is not death."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.events import numbers, read_events
from tests.support.provider import ENDING, OPENING, Call, Provider, delta, provider, response
from tests.support.stack import Gateway, Stack

BODY: dict[str, Any] = {"model": "gpt-4.1", "input": "/long 20"}


async def idle(stack: Stack) -> None:
    """Wait until the upstream serves nothing any more."""
    with anyio.fail_after(30):
        while await stack.active():
            await anyio.sleep(0.01)


async def busy(stack: Stack) -> None:
    """Wait until the upstream serves something."""
    with anyio.fail_after(30):
        while not await stack.active():
            await anyio.sleep(0.01)


@asynccontextmanager
async def upstream_with(
    stack: Stack, answer: Any, **server: Any
) -> AsyncIterator[tuple[Gateway, Provider]]:
    """A gateway before a provider that does as it is told."""
    section = {"lame_duck": 0, "grace_period": 1, **server}
    async with provider(answer) as upstream:
        with stack.gateway(upstreams=[upstream.settings()], server=section) as gateway:
            yield gateway, upstream


class Reader:
    """A client with a small window that reads when it is told to."""

    def __init__(self, gateway: Gateway, **body: Any) -> None:
        self._gateway = gateway
        self._body = json.dumps({**BODY, "stream": True, **body}).encode()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    async def __aenter__(self) -> Reader:
        host, port = self._gateway.url.removeprefix("http://").split(":")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, (host, int(port)))
        head = (
            f"POST /v1/responses HTTP/1.1\r\nhost: {host}\r\n"
            f"authorization: Bearer {self._gateway.keys['caller']}\r\n"
            f"content-length: {len(self._body)}\r\n\r\n"
        )
        await loop.sock_sendall(self._socket, head.encode() + self._body)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def read(self) -> bytes:
        """Read what is there, b"" at the end."""
        with suppress(ConnectionResetError):
            return await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        return b""


def said(answer: httpx2.Response) -> bytes:
    """What was streamed, without the comments that fill a silence."""
    return answer.content.replace(b": keep-alive\n\n", b"")


PIECE = delta(2, "x" * 60_000)


async def pour(call: Call) -> None:
    """Send for as long as somebody reads; count the bytes that were taken."""
    await call.head()
    await call.send(OPENING)
    poured[call] = 0
    while True:
        await call.send(PIECE)
        poured[call] += len(PIECE)


poured: dict[Call, int] = {}


async def stands_still(call: Call) -> int:
    """Wait until no more bytes are taken from the upstream, and return how many were."""
    with anyio.fail_after(30):
        while True:
            before = poured.get(call, -1)
            await anyio.sleep(0.3)
            if before > 0 and poured[call] == before:
                return before


@pytest.mark.covers("STREAM-1")
async def test_a_reader_that_stops_stops_the_upstream_and_nobody_else(stack: Stack) -> None:
    async def answer(call: Call) -> None:
        if call.json["model"] == "pour":
            await pour(call)
        await call.stream([OPENING, delta(2), ENDING])

    async with upstream_with(stack, answer) as (gateway, upstream):
        async with Reader(gateway, model="pour") as slow:
            await slow.read()
            taken = await stands_still(await upstream.call())
            assert taken < 16 * 1024 * 1024
            async with gateway.http() as client:
                with anyio.fail_after(30):
                    for _ in range(20):
                        other = await client.post("/v1/responses", json={**BODY, "stream": True})
                        assert said(other) == OPENING + delta(2) + ENDING
            got = 0
            with anyio.fail_after(30):
                while got < taken + 2 * len(PIECE):  # it goes on when the client reads again
                    got += len(await slow.read())
        with anyio.fail_after(30):
            await (await upstream.call()).left.wait()


@pytest.mark.covers("STREAM-1")
async def test_a_client_that_stops_reading_for_good_is_cut_off(stack: Stack) -> None:
    async with (
        upstream_with(stack, pour, stall_timeout=0.5, heartbeat=0.2) as (gateway, upstream),
        Reader(gateway) as stalled,
    ):
        await stalled.read()
        with anyio.fail_after(30):
            await (await upstream.call()).left.wait()
        with anyio.fail_after(30):
            while await stalled.read():
                pass  # what was on its way; then the end


@pytest.mark.covers("STREAM-2")
@pytest.mark.parametrize("store", [True, False])
async def test_leaving_a_stream_closes_the_upstream(
    gateway: Gateway, stack: Stack, store: bool
) -> None:
    await idle(stack)
    async with gateway.http() as client:
        body = {**BODY, "input": "/fault stall:60", "stream": True, "store": store}
        async with client.stream("POST", "/v1/responses", json=body) as answer:
            async for _ in answer.aiter_bytes():
                assert await stack.active() == 1
                break
    await idle(stack)


@pytest.mark.covers("STREAM-2")
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("store", [True, False])
async def test_leaving_before_the_first_byte_closes_the_upstream(
    gateway: Gateway, stack: Stack, streamed: bool, store: bool
) -> None:
    await idle(stack)
    body = {**BODY, "input": "/fault silence:60", "stream": streamed, "store": store}
    async with gateway.http() as client:
        call = asyncio.ensure_future(client.post("/v1/responses", json=body))
        await busy(stack)
        call.cancel()
        await asyncio.wait({call})
    await idle(stack)


@pytest.mark.covers("STREAM-2")
async def test_leaving_a_json_call_whose_answer_has_begun_closes_the_upstream(
    stack: Stack,
) -> None:
    begun = asyncio.Event()

    async def answer(call: Call) -> None:
        await call.head("application/json")
        await call.send(b'{"id":"resp_1",')
        begun.set()
        await call.left.wait()

    async with upstream_with(stack, answer) as (gateway, upstream), gateway.http() as client:
        posted = asyncio.ensure_future(client.post("/v1/responses", json=BODY))
        with anyio.fail_after(30):
            await begun.wait()
            posted.cancel()
            await (await upstream.call()).left.wait()
        await asyncio.wait({posted})


@pytest.mark.covers("STREAM-2")
async def test_leaving_a_count_closes_the_upstream(stack: Stack) -> None:
    begun = asyncio.Event()

    async def answer(call: Call) -> None:
        begun.set()
        await call.left.wait()

    async with upstream_with(stack, answer) as (gateway, upstream), gateway.http() as client:
        for path in ("/v1/responses/input_tokens", "/v1/responses/compact", "/v1/conversations"):
            begun.clear()
            posted = asyncio.ensure_future(client.post(path, json={"model": "m", "metadata": {}}))
            with anyio.fail_after(30):
                await begun.wait()
                posted.cancel()
                await upstream.calls[-1].left.wait()
            await asyncio.wait({posted})


@pytest.mark.covers("STREAM-2", "STREAM-3")
async def test_leaving_a_background_stream_loses_nothing(gateway: Gateway) -> None:
    client = gateway.client()
    stream = await client.responses.create(
        model="gpt-4.1", input="/long 30", background=True, stream=True
    )
    id_ = ""
    async for event in stream:
        if event.type == "response.created":
            id_ = event.response.id
            break
    await stream.close()
    with anyio.fail_after(30):
        while (found := await client.responses.retrieve(id_)).status != "completed":
            await anyio.sleep(0.01)
    assert found.output_text


@pytest.mark.covers("APPR-3")
async def test_comments_fill_the_silence_before_and_between_events(stack: Stack) -> None:
    go_on = asyncio.Event()

    async def answer(call: Call) -> None:
        await go_on.wait()
        go_on.clear()
        await call.head()
        await call.send(OPENING + delta(2))
        await go_on.wait()
        await call.send(ENDING)
        await call.end()

    got = b""
    async with (
        upstream_with(stack, answer, heartbeat=0.2) as (gateway, _),
        gateway.http() as client,
    ):
        with anyio.fail_after(30):
            async with client.stream(
                "POST", "/v1/responses", json={**BODY, "stream": True}
            ) as answered:
                async for piece in answered.aiter_bytes():
                    got += piece
                    if got.endswith(b": keep-alive\n\n" * 2):
                        go_on.set()
    parts = [part for part in got.split(b"\n\n") if part]
    comments = [number for number, part in enumerate(parts) if part.startswith(b":")]
    assert comments[:2] == [0, 1]
    assert comments[-1] > parts.index((OPENING + delta(2)).split(b"\n\n")[-2])
    assert got.replace(b": keep-alive\n\n", b"") == OPENING + delta(2) + ENDING


@pytest.mark.covers("APPR-3", "API-5")
async def test_an_error_after_the_first_comment_is_an_event(stack: Stack) -> None:
    error = {
        "message": "Slow down",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    go_on = asyncio.Event()

    async def answer(call: Call) -> None:
        await go_on.wait()
        await call.document(json.dumps({"error": error}).encode(), status=429)

    got = b""
    async with (
        upstream_with(stack, answer, heartbeat=0.2) as (gateway, _),
        gateway.http() as client,
    ):
        with anyio.fail_after(30):
            async with client.stream(
                "POST", "/v1/responses", json={**BODY, "stream": True}
            ) as answered:
                assert answered.status_code == 200
                async for piece in answered.aiter_bytes():
                    got += piece
                    go_on.set()
    events = read_events(got)
    assert [event["type"] for event in events] == ["error", "response.failed"]
    assert events[0]["error"]["code"] == "rate_limit_exceeded"
    assert events[0]["error"]["message"] == "Slow down"
    assert events[1]["response"]["status"] == "failed"
    assert numbers(events) == [0, 1]


@pytest.mark.covers("STREAM-1")
async def test_hundreds_of_streams_run_side_by_side(stack: Stack) -> None:
    everyone = asyncio.Event()
    count = 100

    async def answer(call: Call) -> None:
        await call.head()
        await call.send(OPENING)
        if len(upstream.calls) == count:
            everyone.set()
        await everyone.wait()
        await call.send(delta(2) + ENDING)
        await call.end()

    limits = httpx2.Limits(max_connections=count)
    async with (
        upstream_with(stack, answer) as (gateway, upstream),
        gateway.http(limits=limits) as client,
    ):
        with anyio.fail_after(30):
            answers = await asyncio.gather(
                *(client.post("/v1/responses", json={**BODY, "stream": True}) for _ in range(count))
            )
    assert {said(answer) for answer in answers} == {OPENING + delta(2) + ENDING}


@pytest.mark.covers("STREAM-1")
async def test_json_and_stream_say_the_same(gateway: Gateway) -> None:
    client = gateway.client()
    text = "/think about it\n/echo the same"
    plain = await client.responses.create(model="gpt-4.1", input=text)
    async with client.responses.stream(model="gpt-4.1", input=text) as stream:
        final = await stream.get_final_response()
    assert [item.type for item in final.output] == [item.type for item in plain.output]
    assert final.output_text == plain.output_text
    assert response()["object"] == final.object
