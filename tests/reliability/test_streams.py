"""Many streams at once, and readers among them that are five times slower (STREAM-1)."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import resource
import socket
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import anyio
import pytest

from tests.reliability.support import HOST, Replica, Site, amount, report
from tests.support.provider import Call, delta, frame, provider, response

pytestmark = pytest.mark.timeout(amount(300, long=1200))

STREAMS = amount(200, long=1000)
SLOW = STREAMS // 10
ALONE, ROUNDS = 32, 128
"""Rounds without slow readers, and with them. In a round each quick reader gets one event, and the
next begins when all have it."""

LAG = 5
"""A slow reader takes one event in so many rounds, although the upstream has one at any time."""

BIG = 128 * 1024
"""Bytes of an event for slow readers: of these the upstream sends as many as anybody takes."""

MOST_PER_QUICK, MOST_PER_SLOW = 256 * 1024, 4 * 1024 * 1024
"""Bytes that the gateway's memory may grow by for a stream."""


class Rounds:
    """Lets the upstream send an event to everybody, and waits until the quick readers have it."""

    def __init__(self, quick: int) -> None:
        self._quick = quick
        self._begun = [anyio.Event() for _ in range(ALONE + ROUNDS + 1)]
        self._got: Counter[int] = Counter()
        self._done = [anyio.Event() for _ in range(ALONE + ROUNDS)]

    async def begun(self, number: int) -> None:
        """Wait until a round has begun."""
        await self._begun[number].wait()

    def got(self, number: int) -> None:
        """Note that a quick reader has the event of a round."""
        self._got[number] += 1
        if self._got[number] == self._quick:
            self._done[number].set()

    async def run(self, number: int) -> float:
        """Run a round; return how long it took."""
        at = time.perf_counter()
        self._begun[number].set()
        with anyio.fail_after(60):
            await self._done[number].wait()
        return time.perf_counter() - at

    @property
    def over(self) -> bool:
        """Whether the upstream has no more for slow readers."""
        return self._begun[-1].is_set()

    def end(self) -> None:
        """Let slow readers read what is left."""
        self._begun[-1].set()


def id_of(name: str) -> str:
    """Name the response of a stream."""
    return f"resp_{name.replace(' ', '_')}"


def opening(name: str) -> bytes:
    """Write the first event of a stream."""
    begun = response(id_of(name), status="in_progress")
    return frame("response.created", sequence_number=0, response=begun)


class Upstream:
    """Sends quick streams a small event in each round, and slow ones whatever they take."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self.taken: Counter[str] = Counter()
        self.digests: dict[str, str] = {}
        self.read: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
        self._ends = anyio.CapacityLimiter(16)

    async def answer(self, call: Call) -> None:
        """Answer a request: its input is the stream's name."""
        name = call.json["input"]
        digest = hashlib.sha256(opening(name))
        call.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await call.head()
        await call.send(opening(name))
        async for event in self._events(name):
            digest.update(event)
            await call.send(event)
            self.taken[name] += len(event)
        ending = frame("response.completed", sequence_number=0, response=response(id_of(name)))
        digest.update(ending)
        self.digests[name] = digest.hexdigest()
        async with self._ends:  # turns do not all end in the same instant
            await call.send(ending)
            await call.end()
            await self.read[name].wait()

    async def _events(self, name: str) -> AsyncIterator[bytes]:
        if name.startswith("slow"):
            for number in itertools.count():
                if self._rounds.over:
                    return
                yield delta(number + 1, f"{name} {number}".ljust(BIG))
        for number in range(ALONE + ROUNDS):
            await self._rounds.begun(number)
            yield delta(number + 1, f"{name} {number}")


class Reader:
    """A caller of one stream that keeps nothing of it but a digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._digest = hashlib.sha256()
        self._rest = b""
        self._stream: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self, replica: Replica) -> None:
        """Ask for the stream, and read its opening; a slow reader has a small window."""
        sock = socket.socket()
        if self.name.startswith("slow"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, replica.port))
        self._stream, self._writer = await asyncio.open_connection(sock=sock)
        body = json.dumps({"model": "m", "input": self.name, "stream": True}).encode()
        head = (
            f"POST /v1/responses HTTP/1.1\r\nhost: {HOST}\r\n"
            f"authorization: Bearer {replica.client().api_key}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._stream.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        while b"\n\n" not in self._rest:
            self._rest += await self._chunk()

    async def _chunk(self) -> bytes:
        """Read a chunk of the body, without comments; b"" at its end."""
        size = int(await self._stream.readuntil(b"\r\n"), 16)
        data = (await self._stream.readexactly(size + 2))[:-2]
        if data.startswith(b":"):
            return await self._chunk()
        self._digest.update(data)
        return data

    async def events(self) -> AsyncIterator[int]:
        """Yield after each delta that was read, counted from 0."""
        count, data = 0, b"opened"
        while data:
            while b"\n\n" in self._rest:
                event, _, self._rest = self._rest.partition(b"\n\n")
                if b"output_text.delta" in event[:50]:
                    yield count
                    count += 1
            data = await self._chunk()
            self._rest += data

    def close(self) -> str:
        """Leave; return the digest of all that was read."""
        self._writer.close()
        return self._digest.hexdigest()


async def read(reader: Reader, upstream: Upstream, rounds: Rounds, digests: dict[str, str]) -> None:
    """Read at once, or one event in `LAG` rounds and the rest when the quick readers are done."""
    async for number in reader.events():
        if reader.name.startswith("slow"):
            await rounds.begun(min(ALONE + (number + 1) * LAG, ALONE + ROUNDS))
        else:
            rounds.got(number)
    digests[reader.name] = reader.close()
    upstream.read[reader.name].set()


@pytest.fixture(autouse=True)
def enough_files() -> Iterator[None]:
    """Two connections per stream, for the gateway as for the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def opened(replica: Replica, names: list[str]) -> list[Reader]:
    """Open streams, some at a time."""
    readers = [Reader(name) for name in names]
    gate = anyio.CapacityLimiter(32)

    async def open_one(reader: Reader) -> None:
        async with gate:
            await reader.open(replica)

    async with anyio.create_task_group() as group:
        for reader in readers:
            group.start_soon(open_one, reader)
    return readers


@pytest.mark.covers("STREAM-1")
async def test_slow_readers_cost_bounded_memory_and_nobody_elses_time(site: Site) -> None:
    rounds = Rounds(STREAMS - SLOW)
    upstream = Upstream(rounds)
    digests: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(provider(upstream.answer))
        entry = running.settings(auth={"type": "api_key", "value": "env:PROVIDER_KEY"})
        server = {"stall_timeout": 300}
        replica = site.prepare(
            "crowded", upstreams=[entry], server=server, mcp_servers=[], rules=[]
        )
        site.up("crowded")
        empty = replica.resident
        quick = await opened(replica, [f"quick {n}" for n in range(STREAMS - SLOW)])
        group = await stack.enter_async_context(anyio.create_task_group())
        for reader in quick:
            group.start_soon(read, reader, upstream, rounds, digests)
        alone = [await rounds.run(number) for number in range(ALONE)]
        calm = replica.resident
        for reader in await opened(replica, [f"slow {n}" for n in range(SLOW)]):
            group.start_soon(read, reader, upstream, rounds, digests)
        beside, peak = [], calm
        for number in range(ALONE, ALONE + ROUNDS):
            beside.append(await rounds.run(number))
            peak = max(peak, replica.resident)
        taken = sum(size for name, size in upstream.taken.items() if name.startswith("slow"))
        rounds.end()
    assert digests == upstream.digests
    assert len(digests) == STREAMS
    per_quick, per_slow = (calm - empty) / (STREAMS - SLOW), (peak - calm) / SLOW
    report(
        "slow readers",
        streams=STREAMS,
        slow=SLOW,
        kb_per_quick=round(per_quick / 1024),
        kb_per_slow=round(per_slow / 1024),
        mb_taken_per_slow=round(taken / SLOW / 2**20, 1),
        round_ms_alone=round(statistics.median(alone) * 1000, 1),
        round_ms_while_buffers_fill=round(statistics.median(beside[: ROUNDS // 2]) * 1000, 1),
        round_ms_beside_slow=round(statistics.median(beside[ROUNDS // 2 :]) * 1000, 1),
    )
    assert per_quick < MOST_PER_QUICK
    assert per_slow < MOST_PER_SLOW
