"""WebSockets with bounds that hold whatever the peer does (API-6, LIMIT-3, STREAM-1, STREAM-4).

uvicorn's protocol over `websockets` bounds messages and pauses writing, but closes sockets in the
middle of a turn when the server stops, answers pings of a peer that reads nothing, waits on a
handshake that it cannot read, keeps the connection of such a peer for as long as TCP does, and
resets the connection of a peer that is still sending when a message of it is refused.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import SecurityError

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

CLOSE_SECONDS = 5.0
"""How long a peer may take to answer a close."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """The stock protocol with bounds; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.close_timeout = CLOSE_SECONDS

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_handshake(self.conn.handshake_exc)

    def _refuse_handshake(self, fault: Exception) -> None:
        large = isinstance(fault.__cause__, SecurityError)
        status, code = (431, "request_header_fields_too_large") if large else (400, "bad_request")
        text = "A header is too large." if large else "The request is no valid WebSocket handshake."
        body = (
            f'{{"error":{{"message":"{text}","type":"invalid_request_error","param":null,'
            f'"code":"{code}"}}}}'
        ).encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            + b"connection: close\r\n\r\n"
            + body
        )
        self.transport.close()

    @override
    def handle_parser_exception(self) -> None:
        """Say why, then read away what is on its way: to close over unread bytes resets the
        connection, and a reset takes the close frame with it."""
        if self.close_sent or self.conn.close_sent is None:
            return
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    @override
    def handle_ping(self) -> None:
        pongs = self.conn.data_to_send()
        if self.writable.is_set():  # else the peer does not read, and would not read these
            self.transport.write(b"".join(pongs))

    @override
    def shutdown(self) -> None:
        """Leave an open socket to the application, which ends its turn first and then closes."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    @override
    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # refused in good order, and no error of ours

    @override
    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._drop_unread()

    @override
    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._drop_unread()

    def _drop_unread(self) -> None:
        """Give up what a peer does not read; closing alone would wait for it."""
        if not self.writable.is_set():
            self.transport.abort()
