"""The pipe over one leg's events: pass bytes, note items, hold the terminal event (API-3, APPR-1).

upstream bytes ─> Framer ─> split ─┬─ bytes ──────────────> caller
                                   └─ Frame ─> by type ──┬─> caller (rewritten where needed)
                                                         └─> held: the terminal event
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gateway.domain import events
from gateway.domain.documents import NULL, Document, Raw, parse_document, raw
from gateway.domain.events import Frame, MalformedFrame
from gateway.domain.history import stored_output
from gateway.domain.scrubbing import Scrubber
from gateway.domain.turns import TurnState, View, output_of, text_field


@dataclass(frozen=True, slots=True, kw_only=True)
class LegResult:
    """What a leg came to: the final response object, its exact output, and its event's type."""

    response: Document
    output: list[Raw]
    event: str = "response.completed"

    @property
    def id(self) -> str:
        """The upstream's response id."""
        return text_field(self.response, "id")

    @property
    def status(self) -> str:
        """The upstream's response status."""
        return text_field(self.response, "status")


def json_result(body: bytes) -> LegResult:
    """Read a JSON leg.

    Raises:
        msgspec.DecodeError: The body is not a JSON object.
    """
    response = parse_document(body)
    return LegResult(response=response, output=output_of(response))


_MOST_AFTER = 4096


class Interceptor:
    """Reads one leg of a turn; the caller sees one stream whatever the number of legs (APPR-2).

    Attributes:
        result: The leg's result once its terminal event is there; the event itself is held.
        sequence: The next free `sequence_number` of the caller's stream.
        told: Code and message of the upstream's own `error` event, or `None`.
        fault: A frame that cannot be read, met after others that have left.
        first_event_at: `time.time()` of the first event, or `None`.
    """

    def __init__(self, state: TurnState, view: View, scrubber: Scrubber) -> None:
        self._state = state
        self._view = view
        self._scrubber = scrubber
        self._later = state.legs > 0 or state.background
        self._offset = state.output_count
        self._framer = events.Framer()
        self._done: dict[str, tuple[int, Raw]] = {}
        self._last_block = b""
        self._terminal: tuple[Frame, Document] | None = None
        self._sequence = state.sequence
        self._after: list[bytes] = []
        self.result: LegResult | None = None
        self.fault: MalformedFrame | None = None
        self.told: tuple[str | None, str] | None = None
        self.first_event_at: float | None = None

    def feed(self, chunk: bytes) -> bytes:
        """Take bytes from the upstream, return those for the caller.

        Raises:
            MalformedFrame: A frame that must be acted on cannot be read.
            FrameTooLarge: A frame does not end.
        """
        block = self._framer.feed(chunk)
        if not block:
            return b""
        if self.first_event_at is None:
            self.first_event_at = time.time()
        parts: list[bytes] = []
        try:
            for part in events.split(block):
                if self.result is not None:
                    self._after.append(part if isinstance(part, bytes) else part.data)
                elif isinstance(part, Frame):
                    parts.append(_ACTS[part.type](self, part))
                else:
                    parts.append(self._pass(part))
                if self.fault is not None:
                    break
        except MalformedFrame as exc:
            if not any(parts):
                raise
            self.fault = exc  # what came before it still leaves
        shown = b"".join(parts)
        return self._scrubber.scrub(shown) if self._scrubber else shown

    def finish(self) -> bytes:
        """Take the end of the upstream's bytes: a last frame may lack its blank line."""
        rest = self._framer.rest
        if b"\r\r" in rest:  # ends lines in a way that nothing here has looked into
            raise MalformedFrame("lines end with CR alone")
        return self.feed(b"\n\n") if rest.strip() and self.result is None else b""

    @property
    def sequence(self) -> int:
        """The next free `sequence_number`."""
        if not self._later and self._last_block:
            last = events.last_sequence_number(self._last_block)
            self._last_block = b""
            if last is not None:
                self._sequence = max(self._sequence, last + 1)
        return self._sequence

    @property
    def passed_end(self) -> bool:
        """Whether more followed the terminal event than any provider means to send."""
        return sum(map(len, self._after)) > _MOST_AFTER

    def _pass(self, block: bytes) -> bytes:
        if not self._later:
            self._last_block = block
            return block
        shown: list[bytes] = []
        try:
            for frame in events.frames(block):
                shown.append(self._renumber(frame))
        except MalformedFrame as exc:
            if not shown:
                raise
            self.fault = exc  # what came before it has its numbers, and leaves
        return b"".join(shown)

    def _renumber(self, frame: bytes) -> bytes:
        if not frame.strip() or frame.startswith(b":"):
            return frame
        renumbered = events.renumber(frame, sequence=self._sequence, index_offset=self._offset)
        self._sequence += 1
        return renumbered

    def _number(self, document: Document) -> None:
        """Note a frame's number on the first leg, and give it one on later legs."""
        if self._later:
            document["sequence_number"] = raw(self._sequence)
            self._sequence += 1
            return
        self._last_block = b""
        number = events.sequence_number(document)
        self._sequence = self._sequence + 1 if number is None else number + 1

    def _opening(self, frame: Frame) -> bytes:
        if self._state.turn_id and not (self._later or self._view.changes_opening):
            return self._pass(frame.data)  # opened already, and nothing is to be changed
        document = frame.document()
        response = _object(document, "response")
        if not self._state.first:
            self._state.first = response
        if not self._state.turn_id:
            self._state.turn_id = text_field(response, "id")
        if self._later and not (self._state.legs == 0 and frame.type == "response.in_progress"):
            return b""  # the caller's response has been opened
        self._number(document)
        if not self._view.changes_opening:
            return frame.data
        document["response"] = raw(self._view.response(response))
        return events.rewrite(frame, document)

    def _item(self, frame: Frame) -> bytes:
        done = frame.type == "response.output_item.done"
        if not (done or self._later or self._view.hides_ciphertext):
            return self._pass(frame.data)
        document = frame.document()
        item = document.get("item", NULL)
        if done:
            id_ = text_field(_object(document, "item"), "id")
            if id_:
                self._done[id_] = (_index(document), Raw(bytes(item)))
        self._number(document)
        shown = self._view.item(item)
        if shown is item and not self._later:
            return frame.data
        document["item"] = shown
        if self._later:
            document["output_index"] = raw(_index(document) + self._offset)
        return events.rewrite(frame, document)

    def _error(self, frame: Frame) -> bytes:
        document = frame.document()
        inner = document.get("error", NULL)
        told = parse_document(inner) if bytes(inner)[:1] == b"{" else document
        self.told = (text_field(told, "code") or None, text_field(told, "message"))
        if not self._later:
            self._last_block = frame.data
            return frame.data
        return self._renumber(frame.data)

    def _ending(self, frame: Frame) -> bytes:
        document = frame.document()
        response = _object(document, "response")
        if not self._state.turn_id:
            self._state.turn_id = text_field(response, "id")
        self._terminal = (frame, document)
        if not self._later:
            number = events.sequence_number(document)
            # Without numbers of its own the stream is counted by what was passed.
            self._sequence = self.sequence if number is None else number
        output = stored_output(output_of(response), self._done)
        self.result = LegResult(response=response, output=output, event=frame.type)
        return b""

    def terminal_frame(self) -> bytes:
        """Write the held terminal event, and what followed it, as the end of the stream."""
        if self._terminal is None:
            return b""
        frame, document = self._terminal
        response = _object(document, "response")
        if not self._later and not self._view.changes_final(response):
            data = frame.data
        else:
            shown = {**document, "response": raw(self._view.final(response))}
            if self._later:
                shown["sequence_number"] = raw(self._sequence)
            data = events.rewrite(frame, shown)
        data += b"".join(self._after)  # some providers end with `[DONE]`
        return self._scrubber.scrub(data) if self._scrubber else data


_ACTS: dict[str, Callable[[Interceptor, Frame], bytes]] = {
    **dict.fromkeys(events.OPENING, Interceptor._opening),
    **dict.fromkeys(events.TERMINAL, Interceptor._ending),
    **dict.fromkeys(events.ITEMS, Interceptor._item),
    "error": Interceptor._error,
}
"""What is done with each type of frame that is acted on."""


def _index(document: Document) -> int:
    try:
        return msgspec.json.decode(document.get("output_index", Raw(b"0")), type=int)
    except msgspec.DecodeError as exc:
        raise MalformedFrame("the event has no output_index") from exc


def _object(document: Document, key: str) -> Document:
    try:
        return parse_document(document.get(key, NULL))
    except msgspec.DecodeError as exc:
        raise MalformedFrame(f"the event has no {key} object") from exc
