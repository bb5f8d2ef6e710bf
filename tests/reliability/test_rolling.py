"""Replicas are told to stop while streams of all kinds are open (STREAM-3, STREAM-4, APPR-4)."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import anyio
import httpx2
import pytest
from websockets.asyncio.client import connect

from tests.reliability.support import (
    GITHUB,
    HOST,
    Ledger,
    Replica,
    Site,
    amount,
    eventually,
    report,
    spread,
)
from tests.support.approvals import frames, issue, marker
from tests.support.provider import Call, delta, frame, provider, response

pytestmark = [pytest.mark.timeout(300)]

HELD = 6
EACH = amount(10, long=25)
"""Streams of each of four kinds, at each of the two replicas."""

LAST = "response.completed"


@pytest.mark.covers("APPR-4", "STREAM-3", "STREAM-4")
async def test_a_rolling_restart_cuts_no_held_turn(site: Site) -> None:
    site.up("one", "two")
    ledger = Ledger(site)
    exits = []
    async with anyio.create_task_group() as group:
        for name in ("one", "two"):
            leaving = site.replicas[name]
            turns = [ledger.new() for _ in range(HELD)]
            for turn in turns:
                group.start_soon(ledger.turn, leaving, turn)
            for turn in turns:
                await turn.held.wait()

            async def asked(count: int = HELD) -> bool:
                return len(await ledger.pending()) == count

            await eventually(asked, "all of them are pending")
            leaving.listed = False  # readiness says no from now on
            leaving.signal(signal.SIGTERM)
            begun = time.monotonic()
            assert await anyio.to_thread.run_sync(leaving.wait, 20.0) == 0
            exits.append(time.monotonic() - begun)

            async def attached(turns: list[object] = turns) -> bool:  # type: ignore[assignment]
                return all(turn.connections >= 2 for turn in turns)  # type: ignore[attr-defined]

            await eventually(attached, "their callers are attached to the other replica")
            for approval in await ledger.pending():
                assert await ledger.decide(approval) == 200
            await eventually(lambda: _over(ledger), "all turns have ended")
            site.begin(leaving).ready()
    counted = await ledger.check()
    assert counted["completed"] == counted["reattached"] == 2 * HELD
    report("rolling restart", exits=spread(exits), **counted)


async def _over(ledger: Ledger) -> bool:
    return ledger.completed == len(ledger.turns)


class Gate:
    """An upstream whose streams begin, and end when the gate is opened."""

    def __init__(self, *, weight: int = 0) -> None:
        self.opened = anyio.Event()
        self._weight = weight

    async def answer(self, call: Call) -> None:
        """Answer a request."""
        id_ = "resp_" + secrets.token_hex(24)
        begun = response(id_, status="in_progress")
        await call.head()
        await call.send(frame("response.created", sequence_number=0, response=begun) + delta(1))
        await self.opened.wait()
        for number in range(self._weight):
            await call.send(delta(2 + number, "x" * 2**17))
        ending = frame(LAST, sequence_number=2 + self._weight, response=response(id_))
        await call.send(ending)
        await call.end()


@asynccontextmanager
async def gated(site: Site, gate: Gate, **server: Any) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas with the usual provider for `gpt-4.1`, and a gated one for `gated`."""
    for replica in site.replicas.values():
        replica.stop()
    async with provider(gate.answer) as upstream:
        usual = site.settings()["upstreams"][0]
        auth = {"type": "api_key", "value": "env:PROVIDER_KEY"}
        changes: dict[str, Any] = {
            "server": server,
            "upstreams": [usual, upstream.settings("gated", auth=auth)],
            "models": [
                {"name": "gpt-4.1", "routes": [{"upstream": "emulator", "deployment": "gpt-4.1"}]},
                {"name": "gated", "routes": [{"upstream": "gated", "deployment": "gated"}]},
            ],
        }
        names = ("left", "right")
        for name in names:
            site.prepare(name, **changes)
        one, two = site.up(*names)
        yield one, two


Kind = Literal["plain", "held", "background", "socket", "held socket"]


@dataclass
class Reader:
    """A caller with one stream, over one or two connections.

    Attributes:
        text: What it has read, over all of them.
        there: Its stream has come to where it stays until the test goes on.
        attached: It reads on at another replica.
        done: It has seen the end.
    """

    kind: Kind
    text: str = ""
    there: anyio.Event = field(default_factory=anyio.Event)
    attached: anyio.Event = field(default_factory=anyio.Event)
    done: anyio.Event = field(default_factory=anyio.Event)

    @property
    def moves(self) -> bool:
        """Whether its turn goes on without its first replica."""
        return self.kind in ("held", "background", "held socket")

    @property
    def last(self) -> int:
        """The last `sequence_number` that it has seen."""
        return int(frames(self.text)[-1]["sequence_number"])

    @property
    def id(self) -> str:
        """The response's id."""
        return str(frames(self.text)[0]["response"]["id"])

    def body(self) -> dict[str, Any]:
        """What it asks for."""
        if self.kind.startswith("held"):
            return {"model": "gpt-4.1", "input": issue(marker()), "tools": [GITHUB]}
        asked = {"model": "gated", "input": "x"}
        kept = {"background": True, "store": False}
        return asked | (kept if self.kind == "background" else {})

    def take(self, text: str) -> None:
        """Take what came."""
        self.text += text
        mark = "mcp_approval_request" if self.kind.startswith("held") else "output_text.delta"
        if mark in self.text:
            self.there.set()
        if LAST in self.text:
            self.done.set()

    async def run(self, client: httpx2.AsyncClient, first: Replica, then: Replica) -> None:
        """Read the stream to its end; what does not end at the first replica goes on at another."""
        if "socket" in self.kind:
            await self._socket(client, first)
        else:
            body = {**self.body(), "stream": True}
            async with client.stream("POST", f"{first.url}/v1/responses", json=body) as answer:
                await self._read(answer)
            if self.moves:
                assert f": draining; go on with starting_after={self.last}\n" in self.text
        assert self.moves == (LAST not in self.text)
        if self.moves:
            await self.attach(client, then)
        assert frames(self.text)[-1]["type"] == LAST

    async def attach(self, client: httpx2.AsyncClient, replica: Replica) -> None:
        """Read on after what was seen."""
        path = f"/v1/responses/{self.id}?stream=true&starting_after={self.last}"
        async with client.stream("GET", replica.url + path) as answer:
            self.attached.set()
            await self._read(answer)

    async def _read(self, answer: httpx2.Response) -> None:
        assert answer.status_code == 200
        async for text in answer.aiter_text():  # a body that is cut raises
            self.take(text)

    async def _socket(self, client: httpx2.AsyncClient, replica: Replica) -> None:
        url = replica.url.replace("http", "ws", 1) + "/v1/responses"
        headers = {"authorization": client.headers["authorization"]}
        async with connect(url, additional_headers=headers, proxy=None, max_size=None) as sock:
            await sock.send(json.dumps({"type": "response.create", **self.body()}))
            async for message in sock:
                event = json.loads(message)
                self.take(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
        assert sock.close_code == 1001
        if self.moves:
            assert sock.close_reason == f"draining; go on with starting_after={self.last}"

    async def check(self, client: httpx2.AsyncClient, replica: Replica) -> None:
        """Compare what was read with the whole stream: each event once, each byte as it was."""
        numbers = [event["sequence_number"] for event in frames(self.text)]
        assert numbers == list(range(len(numbers)))
        if not self.moves:
            return
        whole = (await client.get(f"{replica.url}/v1/responses/{self.id}?stream=true")).text
        if self.kind == "held socket":
            assert frames(self.text) == frames(whole)
        else:
            assert _events(self.text) == _events(whole)


def _events(text: str) -> list[str]:
    """The events of a stream as they came, without comments."""
    return [block for block in text.split("\n\n") if block and not block.startswith(":")]


@asynccontextmanager
async def caller(site: Site) -> AsyncIterator[httpx2.AsyncClient]:
    """A client for any number of streams."""
    async with httpx2.AsyncClient(
        headers={"authorization": f"Bearer {site.keys['caller']}"},
        limits=httpx2.Limits(max_connections=None),
        timeout=60,
        trust_env=False,
    ) as client:
        yield client


async def all_of(events: list[anyio.Event], what: str) -> None:
    """Wait for events."""

    async def over() -> bool:
        return all(event.is_set() for event in events)

    await eventually(over, what, seconds=60)


@pytest.mark.covers("STREAM-3", "STREAM-4", "APPR-4", "API-6")
async def test_a_rolling_restart_cuts_no_stream_without_a_place_to_go_on_from(site: Site) -> None:
    gate = Gate()
    exits: list[float] = []
    count = 0
    async with gated(site, gate, grace_period=60) as pair, caller(site) as client:
        for leaving, staying in (pair, pair[::-1]):
            gate.opened = anyio.Event()
            kinds: list[Kind] = ["plain", "held", "background", "socket"] * (EACH - EACH // 2)
            kinds += ["plain", "held", "background", "held socket"] * (EACH // 2)
            readers = [Reader(kind) for kind in kinds]
            count += len(readers)
            async with anyio.create_task_group() as group:
                for reader in readers:
                    group.start_soon(reader.run, client, leaving, staying)
                await all_of([reader.there for reader in readers], "all streams are open")
                leaving.listed = False
                leaving.signal(signal.SIGTERM)
                moving = [reader.attached for reader in readers if reader.moves]
                await all_of(moving, "held and background ones are read on at the other replica")
                gate.opened.set()
                ledger = Ledger(site)
                async with ledger.approver():
                    await all_of([reader.done for reader in readers], "all streams have ended")
                begun = time.monotonic()
                assert await anyio.to_thread.run_sync(leaving.wait, 60.0) == 0
                exits.append(time.monotonic() - begun)
            for reader in readers:
                await reader.check(client, staying)
            site.begin(leaving).ready()
        report("rolling restart, all kinds", streams=count, exits_after_the_last=spread(exits))


@pytest.mark.covers("STREAM-3", "STREAM-4", "STREAM-1")
async def test_a_stream_that_is_cut_after_the_grace_period_is_read_on_elsewhere(site: Site) -> None:
    gate = Gate(weight=100)
    async with AsyncExitStack() as stack:
        leaving, staying = await stack.enter_async_context(gated(site, gate, grace_period=1))
        client = await stack.enter_async_context(caller(site))
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (HOST, leaving.port))
        stream, writer = await asyncio.open_connection(sock=sock)
        reader = Reader("background")
        body = json.dumps({**reader.body(), "stream": True})
        authorization = client.headers["authorization"]
        head = f"host: {HOST}\r\nauthorization: {authorization}\r\ncontent-length: {len(body)}"
        writer.write(f"POST /v1/responses HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        raw = await stream.readuntil(b"output_text.delta")
        gate.opened.set()  # far more comes than fits on the way, and its caller reads nothing
        id_ = frames(raw.decode().partition("\r\n\r\n")[2].partition("\r\n")[2])[0]["response"][
            "id"
        ]

        async def done() -> bool:
            found = (await client.get(f"{staying.url}/v1/responses/{id_}")).json()
            return bool(found["status"] == "completed")

        await eventually(done, "the turn has ended", seconds=60)
        leaving.signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(leaving.wait, 30.0) == 0
        raw += await _rest(stream)
        writer.close()
        assert not raw.endswith(b"0\r\n\r\n")  # cut, and no end in good order
        seen = _body(raw.partition(b"\r\n\r\n")[2]).decode()
        assert LAST not in seen
        reader.take(seen[: seen.rindex("\n\n") + 2])
        await reader.attach(client, staying)
        await reader.check(client, staying)
        assert frames(reader.text)[-1]["type"] == LAST


async def _rest(stream: asyncio.StreamReader) -> bytes:
    """Read what still comes, until the connection breaks or ends."""
    pieces = []
    try:
        while piece := await stream.read(2**16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def _body(chunks: bytes) -> bytes:
    """Read a chunked body, also one that is cut."""
    body = b""
    while b"\r\n" in chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        length = int(size, 16)
        body, chunks = body + chunks[:length], chunks[length + 2 :]
    return body
