"""Bounds that hold before a request is parsed (LIMIT-3), by raw sockets."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway.server.protocol import HttpLimits, protocol_class

LIMITS = HttpLimits(head_bytes=4096, headers=20, head_seconds=0.3, body_seconds=0.3)
GOOD = b"GET / HTTP/1.1\r\nHost: gw.example\r\n\r\n"


class App:
    """Reads the body and answers with its size; `/slow` streams for half a second."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            size += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/slow":
            for _ in range(5):
                await send({"type": "http.response.body", "body": b"tick", "more_body": True})
                await asyncio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"size=%d" % size})


@asynccontextmanager
async def serving(app: Any, keep_alive: int = 5) -> AsyncGenerator[int]:
    config = uvicorn.Config(
        app,
        port=0,
        http=protocol_class(LIMITS),
        lifespan="off",
        log_config=None,
        timeout_keep_alive=keep_alive,
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.force_exit = True
        for connection in list(server.server_state.connections):
            connection.transport.close()
        await server.shutdown()


async def talk(
    port: int, *parts: bytes, pause: float = 0.02, until: tuple[bytes, int] | None = None
) -> bytes:
    """Send parts, then return all that comes until the server closes, or a word came so often."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        async with asyncio.timeout(30):
            while not until or received.count(until[0]) < until[1]:
                data = await reader.read(65536)
                if not data:
                    return received + b"<closed>"
                received += data
        received += b"<open>"
    except TimeoutError:
        received += b"<open>"
    except ConnectionError:
        received += b"<reset>"
    finally:
        writer.close()
    return received


def error_of(answer: bytes) -> dict[str, Any]:
    body = answer.partition(b"\r\n\r\n")[2].removesuffix(b"<closed>")
    error: dict[str, Any] = json.loads(body)["error"]
    return error


async def test_a_good_request_is_answered_and_its_connection_kept() -> None:
    async with serving(App()) as port:
        answer = await talk(port, GOOD, GOOD, until=(b"200 OK", 2))
    assert answer.count(b"200 OK") == 2
    assert answer.endswith(b"<open>")


@pytest.mark.covers("LIMIT-3")
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://evil/ HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Length: 5\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: b\r\n" * 20 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"v" * 5000 + b"\r\n\r\n", 431),
        (b"GET /" + b"p" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    ],
)
async def test_a_bad_head_is_refused_and_closed(head: bytes, status: int) -> None:
    app = App()
    async with serving(app) as port:
        answer = await talk(port, head + GOOD)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1, "nothing after a bad head is served"
    assert answer.endswith(b"<closed>")
    assert error_of(answer)["type"] == "invalid_request_error"
    assert not app.messages


async def test_a_head_in_small_pieces_is_counted_as_a_whole() -> None:
    pieces = [b"GET / HTTP/1.1\r\nHost: a\r\n"] + [b"X-Long: " + b"v" * 500 + b"\r\n"] * 10
    async with serving(App()) as port:
        answer = await talk(port, *pieces, pause=0.005)
    assert b" 431 " in answer.split(b"\r\n")[0]


@pytest.mark.covers("LIMIT-3")
async def test_an_endless_header_is_stopped_before_it_is_buffered() -> None:
    async with serving(App()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        sent = 0
        try:
            while sent < 50_000_000 and not reader.at_eof():
                writer.write(b"v" * 65536)
                await writer.drain()
                await asyncio.sleep(0)
                sent += 65536
        except ConnectionError:
            pass
        writer.close()
    assert sent < 20_000_000


async def test_endless_empty_lines_are_stopped() -> None:
    async with serving(App()) as port:
        answer = await talk(port, b"\r\n" * 3000, b"\r\n" * 3000)
    assert b"<open>" not in answer


async def test_the_bound_counts_heads_and_not_bodies() -> None:
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"b" * 100_000
    async with serving(App()) as port:
        answer = await talk(
            port, request + request[:70_000], request[70_000:] + GOOD, until=(b"size=", 3)
        )
    assert answer.count(b"size=100000") == 2
    assert answer.count(b"size=0") == 1


async def test_a_terminator_split_between_reads_is_found() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"v" * 4000 + b"\r\n\r\n"
    async with serving(App()) as port:
        answer = await talk(port, head[:-2], head[-2:] + GOOD, until=(b"200 OK", 2))
    assert answer.count(b"200 OK") == 2


@pytest.mark.covers("LIMIT-3")
async def test_a_half_sent_head_ends_by_its_deadline() -> None:
    async with serving(App()) as port:
        answer = await talk(port, b"GET / HTTP/1.1\r\nHost: a\r\nX-")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"<closed>")


async def test_a_dripping_head_cannot_extend_its_deadline() -> None:
    async with serving(App()) as port:
        answer = await talk(port, *[b"GET / HTTP/1.1\r\nHost: a\r\n", *[b"X"] * 10], pause=0.06)
    assert b"<open>" not in answer
    assert b"200" not in answer


async def test_a_silent_connection_is_closed() -> None:
    async with serving(App()) as port:
        assert await talk(port) == b"<closed>"


async def test_a_half_sent_head_on_a_kept_connection_ends_too() -> None:
    async with serving(App()) as port:
        answer = await talk(port, GOOD, b"GET / HT")
    assert b"200 OK" in answer
    assert b" 408 " in answer


async def test_an_idle_kept_connection_is_closed_after_its_time() -> None:
    async with serving(App(), keep_alive=1) as port:
        answer = await talk(port, GOOD)
    assert answer.endswith(b"<closed>")
    assert b" 408 " not in answer


@pytest.mark.covers("LIMIT-3")
async def test_a_body_that_stops_ends_the_request() -> None:
    app = App()
    async with serving(app) as port:
        answer = await talk(port, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b"<closed>")
    assert app.messages[-1] == "http.disconnect"


async def test_a_slow_body_that_goes_on_is_read() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"
    async with serving(App()) as port:
        answer = await talk(port, head, *[b"x"] * 8, pause=0.1, until=(b"size=8", 1))
    assert b"size=8" in answer


async def test_broken_chunking_is_answered_while_nothing_was_sent() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(App()) as port:
        answer = await talk(port, head, b"zz\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")


async def test_an_error_never_lands_inside_another_response() -> None:
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving(App()) as port:
        answer = await talk(port, slow, b"GET / HTTP/1.1\r\n\r\n", pause=0.1)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"400" not in answer


async def test_a_long_answer_outlives_the_head_deadline() -> None:
    slow = b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"
    async with serving(App()) as port:
        answer = await talk(port, slow, b"GET / HTTP")  # pipelined, and half of it
    assert answer.count(b"tick") == 5


async def test_a_hundred_slow_heads_do_not_stop_others() -> None:
    async with serving(App()) as port, asyncio.timeout(60):
        slow = [asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        connections = await asyncio.gather(*slow)
        for _, writer in connections:
            writer.write(b"GET / HTTP/1.1\r\n")
        assert b"200 OK" in await talk(port, GOOD, until=(b"200 OK", 1))
        for reader, writer in connections:
            assert b" 408 " in await reader.read(1000)
            writer.close()
    assert threading.active_count() < 50
