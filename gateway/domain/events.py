"""Server-sent events as bytes: cut into frames, find those that matter, write new ones.

Only lifecycle events, `output_item.added/done` and errors are acted on; all else passes as the
very bytes that came (API-3). A read of 300 deltas is cut into lines once, and nothing is done for
each of them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from gateway.domain.documents import Document, Raw, encode, parse_document, raw

MAX_FRAME = 32 * 1024 * 1024
"""Largest event in bytes; partial images reach megabytes."""

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
OPENING = frozenset({"response.created", "response.queued", "response.in_progress"})
LIFECYCLE = TERMINAL | OPENING
ITEMS = frozenset({"response.output_item.added", "response.output_item.done"})
ACTED_ON = LIFECYCLE | ITEMS | {"error"}

# The line feed before `event:` makes the search jump from one to the next: with `^` it would try
# every line. A block therefore gets a line feed in front.
_ACTED = re.compile(
    rb"\nevent: ?(response\.(?:created|queued|in_progress|completed|incomplete|failed"
    rb"|output_item\.added|output_item\.done)|error)(?=\r?\n)"
)
_FRAME_END = re.compile(rb"\n\r?\n")


class FrameTooLarge(Exception):
    """One event is larger than `MAX_FRAME`."""


class MalformedFrame(Exception):
    """An event that must be acted on cannot be read."""


class Framer:
    """Cuts a byte stream into blocks of whole frames, holding back only a part of a frame."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes, return the whole frames that are complete now (maybe none).

        Raises:
            FrameTooLarge: A frame does not end within `MAX_FRAME` bytes.
        """
        if not self._rest:
            return self._cut(chunk)
        # A frame may come in thousands of pieces: only what is new is searched.
        start = max(len(self._rest) - 3, 0)
        self._rest += chunk
        if self._rest.find(b"\n\n", start) < 0 and self._rest.find(b"\r\n\r\n", start) < 0:
            if len(self._rest) > MAX_FRAME:
                raise FrameTooLarge
            return b""
        data = bytes(self._rest)
        self._rest.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> bytes:
        if data.endswith((b"\n\n", b"\r\n\r\n")):
            return data
        feeds = data.rfind(b"\n\n")
        returns = data.rfind(b"\r\n\r\n", max(feeds, 0))
        end = max(feeds + 2 if feeds >= 0 else 0, returns + 4 if returns >= 0 else 0)
        self._rest += data[end:]
        if len(self._rest) > MAX_FRAME:
            raise FrameTooLarge
        return data[:end]

    @property
    def rest(self) -> bytes:
        """Bytes of a frame that has not ended."""
        return bytes(self._rest)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that is acted on: its event type and its bytes with the blank line."""

    type: str
    data: bytes

    def document(self) -> Document:
        """Decode the frame's JSON.

        Raises:
            MalformedFrame: There is none, or it is not an object.
        """
        return read_data(self.data)


def read_data(frame: bytes) -> Document:
    """Decode the JSON of a frame's `data:` lines.

    Raises:
        MalformedFrame: There is none, or it is not an object.
    """
    lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
    try:
        return parse_document(b"\n".join(lines))
    except msgspec.DecodeError as exc:
        raise MalformedFrame(str(exc)) from exc


def split(block: bytes) -> Iterator[bytes | Frame]:
    """Split a block of whole frames into bytes to pass and frames to act on, in order."""
    lines = block.split(b"\n")
    kinds = lines[:-1:3]
    told = set(kinds)
    if len(lines) % 3 != 1 or any(lines[2::3]) or not all(map(_is_event_line, told)):
        yield from _split_any(block)
        return
    # As providers write them: every frame is its event, its data and a blank line.
    if told.isdisjoint(_ACTED_LINES):
        yield block
        return
    position = 0
    for number, line in enumerate(kinds):
        kind = _ACTED_LINES.get(line)
        if kind is not None:
            if position < number:
                yield _frames_of(lines, position, number)
            yield Frame(kind, _frames_of(lines, number, number + 1))
            position = number + 1
    if position < len(kinds):
        yield _frames_of(lines, position, len(kinds))


_ACTED_LINES = {
    line.encode(): kind for kind in ACTED_ON for line in (f"event: {kind}", f"event:{kind}")
}
_is_event_line = operator.methodcaller("startswith", b"event:")


def _frames_of(lines: list[bytes], start: int, end: int) -> bytes:
    """Put frames of three lines each together again."""
    return b"\n".join(lines[3 * start : 3 * end]) + b"\n"


def _split_any(block: bytes) -> Iterator[bytes | Frame]:
    """Split a block whose frames have other lines, or line ends, than is usual."""
    if not _is_named(block):
        yield from _split_by_type(block)
        return
    position = 0
    for match in _ACTED.finditer(b"\n" + block):  # so its positions are one further
        start = _start_of_frame(block, match.start(), position)
        end = _end_of_frame(block, match.end() - 1)
        if start > position:
            yield block[position:start]
        yield Frame(match.group(1).decode(), block[start:end])
        position = end
    if position < len(block):
        yield block[position:]


def _is_named(block: bytes) -> bool:
    """Tell whether every event has its `event:` line; one without would not be found by name."""
    named = block.count(b"\nevent:") + block.startswith(b"event:")
    return named >= block.count(b"\ndata:") + block.startswith(b"data:")


def _start_of_frame(block: bytes, at: int, floor: int) -> int:
    # An `id:` or comment line may stand before the `event:` line of the same frame.
    line_feeds = block.rfind(b"\n\n", floor, at)
    returns = block.rfind(b"\r\n\r\n", floor, at)
    return max(line_feeds + 2 if line_feeds >= 0 else floor, returns + 4 if returns >= 0 else floor)


def _end_of_frame(block: bytes, at: int) -> int:
    match = _FRAME_END.search(block, at)
    return match.end() if match else len(block)


class _Type(msgspec.Struct):
    type: str = ""


_type = msgspec.json.Decoder(_Type)


def frames(block: bytes) -> Iterator[bytes]:
    """Cut a block of whole frames into single frames, each with its blank line."""
    position = 0
    for match in _FRAME_END.finditer(block):
        yield block[position : match.end()]
        position = match.end()
    if position < len(block):
        yield block[position:]


def _split_by_type(block: bytes) -> Iterator[bytes | Frame]:
    # Some providers send no `event:` lines; then the JSON's own `type` tells.
    for frame in frames(block):
        lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
        try:
            kind = _type.decode(b"\n".join(lines)).type
        except msgspec.DecodeError:
            yield frame
            continue
        yield Frame(kind, frame) if kind in ACTED_ON else frame


def last_sequence_number(block: bytes) -> int | None:
    """Find the `sequence_number` of the last event of a block, or `None`."""
    end = len(block)
    while end > 0:
        feeds = block.rfind(b"\n\n", 0, end - 2)
        returns = block.rfind(b"\r\n\r\n", max(feeds, 0), end - 4)
        start = max(feeds + 2 if feeds >= 0 else 0, returns + 4 if returns >= 0 else 0)
        frame = block[start:end]
        if b"data:" in frame:
            try:
                return sequence_number(read_data(frame))
            except MalformedFrame:
                return None
        end = start
    return None


def sequence_number(document: Document) -> int | None:
    """Read the `sequence_number` of an event, or `None`."""
    number = document.get("sequence_number")
    try:
        return msgspec.json.decode(number, type=int) if number is not None else None
    except msgspec.DecodeError:
        return None


def write(kind: str, document: Document) -> bytes:
    """Write a frame."""
    return b"event: " + kind.encode() + b"\ndata: " + encode(document) + b"\n\n"


def rewrite(frame: Frame, document: Document) -> bytes:
    """Write a frame anew with another document, with an `event:` line where it had one."""
    if frame.data.startswith(b"data:"):
        return b"data: " + encode(document) + b"\n\n"
    return write(frame.type, document)


COMMENT = b": keep-alive\n\n"
"""A frame without an event; keeps proxies and clients from giving up (APPR-3)."""


def error_frames(
    *,
    sequence: int,
    kind: str,
    code: str | None,
    message: str,
    response: Document,
    told: bool = False,
) -> bytes:
    """Write an `error` event and the `response.failed` that ends the stream (API-5).

    Args:
        sequence: The next free `sequence_number`.
        kind: OpenAI's error type.
        response: The response as far as it is known; leaves as `failed`.
        told: Whether the caller has had the upstream's own `error` event.
    """
    error = {"type": kind, "code": code, "message": message, "param": None}
    failed = {
        **response,
        "status": raw("failed"),
        "error": raw({"code": code or "server_error", "message": message}),
    }
    numbered = {"type": raw("error"), "sequence_number": raw(sequence), "error": raw(error)}
    first = b"" if told else write("error", numbered)
    ending = {
        "type": raw("response.failed"),
        "sequence_number": raw(sequence if told else sequence + 1),
        "response": raw(failed),
    }
    return first + write("response.failed", ending)


def renumber(frame: bytes, *, sequence: int, index_offset: int) -> bytes:
    """Give a frame of a later leg its place in the caller's stream (APPR-2).

    Raises:
        MalformedFrame: The frame has no JSON object.
    """
    document = read_data(frame)
    document["sequence_number"] = raw(sequence)
    index = document.get("output_index")
    if index is not None:
        document["output_index"] = raw(msgspec.json.decode(index, type=int) + index_offset)
    kind = msgspec.json.decode(document.get("type", Raw(b'""')), type=str)
    return rewrite(Frame(kind, frame), document)
