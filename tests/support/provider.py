"""A provider that sends exactly the bytes it is told to, when it is told to.

    async def answer(call: Call) -> None:
        await call.head("text/event-stream")
        await call.send(b"...")

    async with provider(answer) as upstream, ...

Faults and shapes that the emulator would never make, and answers that wait for the test.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from tests.support.stack import upstream_entry

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


@dataclass(eq=False)
class Call:
    """One request and the means to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway has closed the connection."""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    async def head(
        self, media_type: str = SSE, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send status and headers; what follows is chunked."""
        given = {"content-type": media_type, "transfer-encoding": "chunked", **(headers or {})}
        lines = [f"HTTP/1.1 {status} Said", *(f"{name}: {value}" for name, value in given.items())]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self.writer.drain()

    async def send(self, data: bytes) -> None:
        """Send one chunk; waits while the gateway does not read."""
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        """End the answer in good order."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def stream(self, pieces: Iterable[bytes], **head: Any) -> None:
        """Send a whole stream, piece by piece, each in its own turn of the event loop."""
        await self.head(**head)
        for piece in pieces:
            await self.send(piece)
            await asyncio.sleep(0)
        await self.end()

    async def document(self, body: bytes, **head: Any) -> None:
        """Send a whole JSON body."""
        await self.head(JSON, **head)
        await self.send(body)
        await self.end()


@dataclass
class Provider:
    """A running provider and the requests that reached it."""

    url: str
    calls: list[Call] = field(default_factory=list)

    async def call(self, number: int = 0) -> Call:
        """Wait for a request, counted from 0."""
        async with asyncio.timeout(30):
            while len(self.calls) <= number:
                await asyncio.sleep(0.01)
        return self.calls[number]

    def settings(self, name: str = "emulator", **changes: Any) -> dict[str, Any]:
        """The gateway's entry of this upstream."""
        return upstream_entry(self.url + "/v1/", name=name, kind="compatible", **changes)


@asynccontextmanager
async def provider(answer: Callable[[Call], Awaitable[None]]) -> AsyncIterator[Provider]:
    """Run a provider on the test's own event loop."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while (call := await _read(reader, writer)) is not None:
                running.calls.append(call)
                await _answered(answer, call)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the gateway or the test has gone
        finally:
            tasks.discard(task)
            writer.close()

    tasks: set[asyncio.Task[Any]] = set()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    running = Provider(f"http://{host}:{port}")
    try:
        yield running
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _answered(answer: Callable[[Call], Awaitable[None]], call: Call) -> None:
    """Answer, and note when the gateway leaves before that is done."""
    answering = asyncio.ensure_future(answer(call))
    leaving = asyncio.ensure_future(call.reader.read(1))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() or isinstance(answering.exception(), OSError):
            call.left.set()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.wait({answering, leaving})
    with suppress(asyncio.CancelledError):
        answering.result()
    if call.left.is_set():
        raise ConnectionResetError


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Call | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.rstrip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Call(method, path, headers, body, reader, writer)


SIZES = (1, 7, 64, 3, 1000, 17, 4096, 2, 333)
"""Awkward chunk sizes, in turn."""


def awkward(wire: bytes) -> Iterator[bytes]:
    """Cut bytes where it hurts: inside lines, inside characters, across frames."""
    sizes = cycle(SIZES)
    position = 0
    while position < len(wire):
        size = next(sizes)
        yield wire[position : position + size]
        position += size


def frame(kind: str, **fields: Any) -> bytes:
    """Write an event as OpenAI does."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def response(id_: str = "resp_1", status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Write a small response object."""
    return {
        "id": id_,
        "object": "response",
        "created_at": 1_750_000_000,
        "model": "m",
        "status": status,
        "output": [],
        "tools": [],
        **fields,
    }


def message(text: str, id_: str = "msg_1") -> dict[str, Any]:
    """Write a message item."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {
        "id": id_,
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }


OPENING = frame(
    "response.created", sequence_number=0, response=response(status="in_progress")
) + frame("response.in_progress", sequence_number=1, response=response(status="in_progress"))
ENDING = frame("response.completed", sequence_number=9, response=response())


def delta(number: int, text: str = "x") -> bytes:
    """Write a text delta."""
    return frame(
        "response.output_text.delta",
        sequence_number=number,
        item_id="msg_1",
        output_index=0,
        content_index=0,
        delta=text,
    )


Script = Callable[[Call], list[dict[str, Any]]]
"""Chooses the output of an upstream, item by item."""


def saying(script: Script, conversation: str = "") -> Callable[[Call], Awaitable[None]]:
    """Speak as an upstream with conversations, whose output is what a script says."""

    async def answer(call: Call) -> None:
        if "/conversations" in call.path:
            shown = {"id": conversation, "object": "conversation", "created_at": 1}
            return await call.document(json.dumps(shown).encode())
        document = response(f"resp_{secrets.token_hex(12)}", output=script(call))
        if not call.json.get("stream"):
            return await call.document(json.dumps(document).encode())
        ending = frame("response.completed", sequence_number=0, response=document)
        return await call.stream([ending])

    return answer


def asked_for(word: str) -> dict[str, Any]:
    """Write a request for an approval, with a word in its arguments."""
    return {
        "id": f"mcpr_{secrets.token_hex(12)}",
        "type": "mcp_approval_request",
        "server_label": "github",
        "name": "create_issue",
        "arguments": json.dumps({"title": word}),
    }


def ran(request: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Write the call that answers a request as it was approved, or with changes."""
    return {
        "id": f"mcp_{secrets.token_hex(12)}",
        "type": "mcp_call",
        "server_label": request["server_label"],
        "name": request["name"],
        "arguments": request["arguments"],
        "output": "done",
        "error": None,
        "approval_request_id": request["id"],
        **changes,
    }
