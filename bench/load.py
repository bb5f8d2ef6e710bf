"""A load generator over bare HTTP/1.1 on kept-alive connections.

`closed_loop` keeps a number of requests under way and tells the throughput, `open_loop` starts
requests at a fixed rate whatever the answers do and tells the latency, `hold_open` opens streams
and keeps them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

from typing_extensions import override

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_EVENT: Final = b"\ndata: "
_CONNECTING: Final = 64
_PATIENCE: Final = 60.0


class LoadError(Exception):
    """The target did not answer as it must."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent again and again: where to, and the bytes."""

    port: int
    content: bytes

    @classmethod
    def post(cls, url: str, body: bytes, *, key: str) -> Request:
        """Make a POST of a JSON body with an API key, to a loopback URL."""
        parts = urlsplit(url)
        if parts.hostname != "127.0.0.1" or parts.port is None:
            raise ValueError(f"load goes to 127.0.0.1 and a port only, not to {url}")
        head = (
            f"POST {parts.path} HTTP/1.1\r\n"
            f"host: 127.0.0.1:{parts.port}\r\n"
            f"authorization: Bearer {key}\r\n"
            "content-type: application/json\r\n"
            "user-agent: bench\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return cls(parts.port, head.encode() + body)


@dataclass(slots=True)
class Result:
    """What a run saw."""

    seconds: float = 0.0
    requests: int = 0
    events: int = 0
    errors: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.requests / self.seconds

    @property
    def event_rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    def percentile(self, share: float) -> float:
        """Return a latency in milliseconds: `percentile(0.5)` is the median."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, done: Callable[[_Connection, str | None], None]) -> None:
        self._done = done
        self._reset()
        self.transport: asyncio.Transport

    def _reset(self) -> None:
        self.answer = bytearray()
        self.began = 0.0
        self.opened = asyncio.Event()
        self._size: int | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self.began:
            self._finish(f"connection closed within an answer: {exc or 'end of file'}")

    def send(self, content: bytes) -> None:
        """Start a request."""
        self._reset()
        self.began = time.perf_counter()
        self.transport.write(content)

    @override
    def data_received(self, data: bytes) -> None:
        self.answer += data
        if self._size is None and not self._read_head():
            return
        if self._size:
            complete = len(self.answer) >= self._size
        else:
            complete = self.answer.endswith(_LAST_CHUNK)
        if complete:
            ok = self.answer.startswith(b"HTTP/1.1 200")
            self._finish(None if ok else bytes(self.answer[:600]).decode(errors="replace"))

    def _read_head(self) -> bool:
        """Look for the whole head and learn the size; 0 stands for a chunked answer."""
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return False
        found = _LENGTH.search(self.answer, 0, end)
        self._size = end + 4 + int(found.group(1)) if found else 0
        self.opened.set()
        return True

    def _finish(self, error: str | None) -> None:
        self._done(self, error)


def body_of(answer: bytes | bytearray) -> bytes:
    """Return the body of an answer, without its chunk frames."""
    head, _, rest = bytes(answer).partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(body)


async def _connect(
    port: int, done: Callable[[_Connection, str | None], None], count: int
) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(_CONNECTING)

    async def connect() -> _Connection:
        async with gate, asyncio.timeout(_PATIENCE):
            _, connection = await loop.create_connection(
                lambda: _Connection(done), "127.0.0.1", port
            )
            return connection

    return list(await asyncio.gather(*(connect() for _ in range(count))))


async def once(request: Request) -> bytes:
    """Send one request and return the body of its answer.

    Raises:
        LoadError: The status was not 200, or the connection broke.
    """
    finished: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def done(_connection: _Connection, error: str | None) -> None:
        if not finished.done():
            finished.set_result(error)

    (connection,) = await _connect(request.port, done, 1)
    connection.send(request.content)
    async with asyncio.timeout(_PATIENCE):
        error = await finished
    connection.began = 0.0
    connection.transport.close()
    if error is not None:
        raise LoadError(error)
    return body_of(connection.answer)


async def closed_loop(request: Request, *, connections: int, seconds: float) -> Result:
    """Keep `connections` requests under way for some seconds; the last ones are not counted."""
    result = Result()
    broken = asyncio.Event()

    def done(connection: _Connection, error: str | None) -> None:
        if error is not None:
            result.errors.append(error)
            connection.began = 0.0
            broken.set()
            return
        result.requests += 1
        result.events += connection.answer.count(_EVENT)
        result.latencies.append(time.perf_counter() - connection.began)
        connection.send(request.content)

    pool = await _connect(request.port, done, connections)
    began = time.perf_counter()
    for connection in pool:
        connection.send(request.content)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(broken.wait(), seconds)
    result.seconds = time.perf_counter() - began
    _close(pool)
    if result.errors:
        raise LoadError(result.errors[0])
    return result


async def open_loop(request: Request, *, rate: float, seconds: float) -> Result:
    """Start `rate` requests a second, whether or not earlier ones were answered."""
    result = Result(seconds=seconds)
    total = int(rate * seconds)
    finished = asyncio.Event()
    idle: deque[_Connection] = deque()

    def done(connection: _Connection, error: str | None) -> None:
        if error is not None:
            result.errors.append(error)
        else:
            result.requests += 1
            result.latencies.append(time.perf_counter() - connection.began)
            idle.append(connection)
        connection.began = 0.0
        if result.requests + len(result.errors) == total:
            finished.set()

    pool = await _connect(request.port, done, 32)
    idle.extend(pool)
    began = time.perf_counter()
    for number in range(total):
        delay = began + number / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        if not idle:
            extra = await _connect(request.port, done, 1)
            pool.extend(extra)
            idle.extend(extra)
        idle.popleft().send(request.content)
    async with asyncio.timeout(_PATIENCE):
        await finished.wait()
    _close(pool)
    if result.errors:
        raise LoadError(result.errors[0])
    return result


@contextlib.asynccontextmanager
async def hold_open(request: Request, *, streams: int) -> AsyncGenerator[None]:
    """Open streams that do not end, enter once each has its first bytes, close them on leaving."""
    errors: list[str] = []

    def done(connection: _Connection, error: str | None) -> None:
        connection.began = 0.0
        errors.append(error or "a stream ended that should be held")

    pool = await _connect(request.port, done, streams)
    try:
        for connection in pool:
            connection.send(request.content)
            await asyncio.sleep(0.001)
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(connection.opened.wait() for connection in pool))
        yield
    finally:
        _close(pool)
    if errors:
        raise LoadError(errors[0])


def _close(pool: list[_Connection]) -> None:
    """Drop connections; what is still under way counts for nothing."""
    for connection in pool:
        connection.began = 0.0
        connection.transport.abort()
