"""A provider as fast as asyncio allows: fixed answers with fresh ids, over bare HTTP/1.1.

The body's `stream` chooses JSON or events, its `model` the pace: `paced` sends ten events a second,
`hold` sends the first events and then nothing until the caller leaves, all else is sent at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, Final, cast

import uvloop
from typing_extensions import override

EVENTS: Final = 300
"""Events of one stream."""

JSON_SIZE: Final = 2048
"""Bytes of one JSON body."""

_ID = "0" * 50  # stands for the part of all ids of an answer that changes
_DELTAS = EVENTS - 8
_PACE = 0.1
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_PACED = re.compile(rb'"model"\s*:\s*"(paced|hold)"')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_HEAD = (
    "HTTP/1.1 200 OK\r\n"
    "content-type: {type}\r\n"
    "x-request-id: req_" + _ID + "\r\n"
    "openai-processing-ms: 12\r\n"
    "x-ratelimit-limit-requests: 10000\r\n"
    "x-ratelimit-remaining-requests: 9999\r\n"
    "{framing}\r\n\r\n"
)


def response(status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a Response object as the provider sends it."""
    done = status == "completed"
    return {
        "id": f"resp_{_ID}",
        "object": "response",
        "created_at": 1790000000,
        "status": status,
        "background": False,
        "completed_at": 1790000002 if done else None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "model": "gpt-4.1-2025-04-14",
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default" if done else "auto",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 36,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": _DELTAS,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 36 + _DELTAS,
        }
        if done
        else None,
        "user": None,
        "metadata": {},
    }


def message(text: str, status: str = "completed") -> dict[str, Any]:
    """Return a message item; one in progress has no content yet."""
    content = [part(text)] if status == "completed" else []
    return {
        "id": f"msg_{_ID}",
        "type": "message",
        "status": status,
        "content": content,
        "role": "assistant",
    }


def part(text: str) -> dict[str, Any]:
    """Return a content part with text."""
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def events() -> Iterator[dict[str, Any]]:
    """Yield the events of one stream, without sequence numbers."""
    text = "".join(f" word{n % 10}" for n in range(_DELTAS))
    at = {"item_id": f"msg_{_ID}", "output_index": 0, "content_index": 0}
    yield {"type": "response.created", "response": response("in_progress", [])}
    yield {"type": "response.in_progress", "response": response("in_progress", [])}
    yield {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": message("", "in_progress"),
    }
    yield {"type": "response.content_part.added", **at, "part": part("")}
    for n in range(_DELTAS):
        delta = {"delta": f" word{n % 10}", "logprobs": [], "obfuscation": "x" * 10}
        yield {"type": "response.output_text.delta", **at, **delta}
    yield {"type": "response.output_text.done", **at, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": part(text)}
    yield {"type": "response.output_item.done", "output_index": 0, "item": message(text)}
    yield {"type": "response.completed", "response": response("completed", [message(text)])}


def frames() -> list[str]:
    """Return the events of one stream as server-sent events, each in an HTTP chunk of its own."""
    chunks = []
    for number, event in enumerate(events()):
        kind = event.pop("type")
        data = json.dumps({"type": kind, "sequence_number": number, **event}, separators=(",", ":"))
        frame = f"event: {kind}\ndata: {data}\n\n"
        chunks.append(f"{len(frame):x}\r\n{frame}\r\n")
    return chunks


def json_answer() -> str:
    """Return head and body of a JSON answer of `JSON_SIZE` bytes."""
    bare = len(json.dumps(response("completed", [message("")])))
    body = json.dumps(response("completed", [message("w" * (JSON_SIZE - bare))]))
    head = _HEAD.format(type="application/json", framing=f"content-length: {len(body)}")
    return head + body


class _Template:
    """A fixed text whose ids are new each time."""

    def __init__(self, text: str) -> None:
        self._parts = text.encode().split(_ID.encode())

    def fill(self, suffix: bytes) -> bytes:
        return suffix.join(self._parts)


_CHUNKS = frames()
_STREAM_HEAD = _HEAD.format(
    type="text/event-stream; charset=utf-8", framing="transfer-encoding: chunked"
)
_END = "0\r\n\r\n"
_JSON = _Template(json_answer())
_BURST = _Template(_STREAM_HEAD + "".join(_CHUNKS) + _END)
_OPENING = _Template(_STREAM_HEAD + "".join(_CHUNKS[:5]))
_NEXT = [_Template(chunk) for chunk in _CHUNKS[5:]]
_NOT_FOUND = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 58\r\n\r\n"
    b'{"error":{"message":"no such path","type":"invalid_path"}}'
)

_process = secrets.token_hex(8)
_numbers = itertools.count()


def _suffix() -> bytes:
    """Return the changing part of the ids of one answer: unique, and as long as the real one."""
    return f"{_process}{next(_numbers):034x}".encode()


class _Connection(asyncio.Protocol):
    """One connection: answers request after request."""

    def __init__(self) -> None:
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @override
    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            found = _LENGTH.search(head)
            size = end + 4 + (int(found.group(1)) if found else 0)
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        if not path.endswith(b"/responses"):
            self._transport.write(_NOT_FOUND)
        elif not _STREAM.search(body):
            self._transport.write(_JSON.fill(_suffix()))
        elif (pace := _PACED.search(body)) is None:
            self._transport.write(_BURST.fill(_suffix()))
        else:
            suffix = _suffix()
            self._transport.write(_OPENING.fill(suffix))
            if pace.group(1) == b"paced":
                self._later(iter(_NEXT), suffix)

    def _later(self, rest: Iterator[_Template], suffix: bytes) -> None:
        self._timer = asyncio.get_running_loop().call_later(_PACE, self._send, rest, suffix)

    def _send(self, rest: Iterator[_Template], suffix: bytes) -> None:
        template = next(rest, None)
        if template is None:
            self._transport.write(_END.encode())
            return
        self._transport.write(template.fill(suffix))
        self._later(rest, suffix)


async def serve(port: int) -> None:
    """Serve on a loopback port until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Run the fake upstream until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.fake_upstream", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
