"""HTTP/1.1 with bounds that hold before a request is parsed (LIMIT-3).

uvicorn with httptools takes heads of any size, requests without a Host or with two, and waits for
ever for a head that does not end. This protocol refuses or ends them:

- a head over its bounds: 431, while at most one read beyond the bound is held in memory;
- no Host, an empty one, or more than one: 400 (a router in front could see another host);
- Transfer-Encoding beside Content-Length: 400 (requests could be smuggled);
- a head or body that stops coming: 408 and closed; a connection that stays silent: closed.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1024 * 1024
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection.

    Attributes:
        head_bytes: Request line and headers together.
        head_seconds: From the connection or the first byte of a head to its end.
        body_seconds: The longest silence inside a body that is being read.
    """

    head_bytes: int = 64 * 1024
    headers: int = 100
    head_seconds: float = 20.0
    body_seconds: float = 30.0


def protocol_class(limits: HttpLimits) -> type[HttpToolsProtocol]:
    """Make the protocol class that uvicorn takes as `http=`."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


class _Refused(Exception):
    """Raised inside a parser's callback to stop parsing."""


class LimitedProtocol(HttpToolsProtocol):
    """The stock protocol with bounds; see the module."""

    limits: ClassVar[HttpLimits] = HttpLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._in_message = False
        self._heads = 0  # that ended
        self._fed = 0  # bytes of the current head in earlier reads
        self._tail = b""
        self._head_size = 0
        self._is_over = False
        self._discarded = 0
        self._refusal: tuple[int, str, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waits_for = "head"

    # Reads

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm("head", self.limits.head_seconds)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._is_over:
            self._discard(len(data))
            return
        if self.transport.is_closing():
            return
        if self._in_head and self._overflows(data):
            self._refusal = _too_large("The request's headers are too large.")
            self.send_400_response("")
            return
        began_in_head, heads = self._in_head, self._heads
        super().data_received(data)
        if self._in_head:
            # A head that began in the middle of this read is not counted yet: that is at most one
            # read, and the parser's callbacks count the whole at its end.
            whole = heads == self._heads and began_in_head
            self._fed = self._fed + len(data) if whole else 0
            self._tail = (self._tail + data[-3:])[-3:]
        self._watch()

    def _overflows(self, data: bytes) -> bool:
        room = max(self.limits.head_bytes - self._fed, 0)
        return len(data) > room and _END not in self._tail + data[:room]

    def _watch(self) -> None:
        """Set the deadline for what is still to come."""
        if self._is_over or self.transport.is_closing():
            return
        if not self._in_head:
            self._arm("body", self.limits.body_seconds)
        elif not (self._in_message or self._fed):
            self._disarm()
        elif self._waits_for != "head":
            self._arm("head", self.limits.head_seconds)

    # Parser callbacks

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._head_size = 0

    @override
    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= self.limits.headers:
            self._refuse(_too_large("The request has too many headers."))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self.limits.head_bytes:
            self._refuse(_too_large("The request's headers are too large."))

    @override
    def on_headers_complete(self) -> None:
        self._check_framing()
        super().on_headers_complete()
        self._in_head = False
        self._heads += 1
        self._fed, self._tail = 0, b""

    def _check_framing(self) -> None:
        hosts = [value.strip() for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 or _HOST.fullmatch(hosts[0]) is None:
            self._refuse(_bad("The request must have exactly one valid Host header."))
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if not codings:
            return
        if any(name == b"content-length" for name, _ in self.headers):
            self._refuse(_bad("Transfer-Encoding and Content-Length exclude each other."))
        if [coding.strip().lower() for coding in codings] != [b"chunked"]:
            self._refuse(_bad("Transfer-Encoding must be chunked."))

    @override
    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_message = False
        self._in_head = True

    @override
    def handle_websocket_upgrade(self) -> None:
        if self._is_answering():  # two protocols would write on one connection
            self._refusal = _bad("A WebSocket cannot begin before the last request is answered.")
            self.send_400_response("")
            return
        self._disarm()  # from here on the connection belongs to another protocol
        super().handle_websocket_upgrade()

    # Refusals

    def _refuse(self, refusal: tuple[int, str, str]) -> None:
        self._refusal = refusal
        raise _Refused

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be served, in the API's error shape (API-5), and close."""
        self._disarm()
        status, code, text = self._refusal or _bad("The request is not valid HTTP.")
        if not self._may_answer():
            self.transport.close()
            return
        error = {"message": text, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        head = [STATUS_LINE[status], b"content-type: application/json\r\n"]
        for name, value in self.server_state.default_headers:
            head += [name, b": ", value, b"\r\n"]
        head.append(b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body))
        self.transport.write(b"".join(head) + body)
        self._close_softly()

    def _close_softly(self) -> None:
        """Read on for a moment: a close with unread bytes would reset, and lose the answer."""
        self._is_over = True
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > _LINGER_BYTES:
            self.transport.abort()

    def _may_answer(self) -> bool:
        """Tell whether an error can be written; it must not land inside another response."""
        if not self._is_answering():
            return True
        if self._in_head or self.pipeline or self.cycle.response_started:
            return False
        # The application waits for this very body: it learns that its caller is gone.
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        return True

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    # Deadlines

    def _arm(self, waits_for: str, seconds: float) -> None:
        self._disarm()
        self._waits_for = waits_for
        self._timer = self.loop.call_later(seconds, self._expired)

    def _disarm(self) -> None:
        self._waits_for = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        waits_for, self._timer = self._waits_for, None
        if self.transport.is_closing():
            return
        if waits_for == "body":
            self._body_expired()
        elif self._is_answering():  # the next request waits behind a long answer
            self._arm(waits_for, self.limits.head_seconds)
        elif self._in_message or self._fed:
            self._refusal = (408, "request_timeout", "The request's headers did not arrive.")
            self.send_400_response("")
        else:
            self.transport.close()

    def _body_expired(self) -> None:
        if self.flow.read_paused:  # we are the slow side
            self._arm("body", self.limits.body_seconds)
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self._refusal = (408, "request_timeout", "The request's body stopped arriving.")
            self.send_400_response("")


def _bad(text: str) -> tuple[int, str, str]:
    return 400, "bad_request", text


def _too_large(text: str) -> tuple[int, str, str]:
    return 431, "request_header_fields_too_large", text
