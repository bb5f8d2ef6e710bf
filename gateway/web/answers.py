"""ASGI answers: bytes at once, or a stream that is always closed (API-3, STREAM-1, STREAM-2).

The stock streaming response leaves its source open when a client goes away or stops reading;
these own every way to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from litestar import Request
from litestar.types import Receive, Scope, Send

from gateway.domain.documents import encode
from gateway.domain.errors import GatewayError
from gateway.domain.events import COMMENT
from gateway.services.callers import Caller
from gateway.services.records import Answer, EventStream

logger = logging.getLogger("gateway.web")
T = TypeVar("T")

_PASSED = ("x-ratelimit-", "retry-after", "openai-", "x-ms-", "azureai-", "azure-", "gateway-")
_PASSED_WHOLE = frozenset({"x-request-id", "apim-request-id", "x-should-retry", "warning"})
_JSON = {"content-type": "application/json"}
_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def passed_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Choose the headers of an upstream's answer that matter to a caller (API-3)."""
    return {
        name: value
        for name, value in headers.items()
        if name in _PASSED_WHOLE or name.startswith(_PASSED)
    }


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    # An upstream's header may hold any bytes; they leave as they came.
    return [
        (name.encode("latin-1", "ignore"), value.encode("utf-8", "surrogateescape"))
        for name, value in headers.items()
    ]


def json_answer(
    caller: Caller, body: object, *, status: int = 200, extra: Mapping[str, str] | None = None
) -> JSONAnswer:
    """Answer a caller with JSON of the gateway's own."""
    headers = {"gateway-request-id": caller.request_id, **(extra or {})}
    return JSONAnswer(Answer(body=encode(body), status=status), headers)


class JSONAnswer:
    """A whole JSON answer, its bytes as they are."""

    def __init__(self, answer: Answer, extra: Mapping[str, str] | None = None) -> None:
        self._answer = answer
        self._extra = extra or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body = self._answer.body
        headers = {**passed_headers(self._answer.headers), **self._extra, **_JSON}
        headers["content-length"] = str(len(body))
        await send(
            {
                "type": "http.response.start",
                "status": self._answer.status,
                "headers": _raw(headers),
            }
        )
        await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a stream is kept.

    Attributes:
        heartbeat: Longest silence in seconds before a comment is sent (APPR-3).
        stall: Seconds that a client may leave bytes unread before it is cut off (STREAM-1).
    """

    heartbeat: float = 15.0
    stall: float = 60.0


class SSEAnswer:
    """A stream of events with comments in its silences.

    It ends when the events do, when the client leaves, or when the client stops reading; in
    every case the source is closed before this returns.
    """

    def __init__(
        self, stream: EventStream, pace: Pace, extra: Mapping[str, str] | None = None
    ) -> None:
        self._stream = stream
        self._pace = pace
        self._extra = extra or {}
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._sending: float | None = None
        self._ended = False
        self._comment: asyncio.Future[None] | None = None
        self._beat: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end or nobody reads them."""
        headers = {**passed_headers(self._stream.headers), **self._extra, **_STREAM}
        main = asyncio.current_task()
        leaving = asyncio.ensure_future(_until_left(receive))
        if main is not None:
            leaving.add_done_callback(lambda _: self._end(main))
        try:
            self._tick(send, main)
            await self._send(
                send, {"type": "http.response.start", "status": 200, "headers": _raw(headers)}
            )
            async for block in self._stream.events:
                await self._send(
                    send, {"type": "http.response.body", "body": block, "more_body": True}
                )
                del block
            await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not self._ended or main is None:
                raise
            main.uncancel()
        finally:
            if self._beat is not None:
                self._beat.cancel()
            self._ended = True
            leaving.cancel()
            await self._stream.aclose()

    def _end(self, main: asyncio.Task[object]) -> None:
        if not self._ended:
            self._ended = True
            main.cancel()

    async def _send(self, send: Send, message: object) -> None:
        self._sending = self._loop.time()
        await send(message)  # type: ignore[arg-type]
        self._last = self._loop.time()
        self._sending = None

    def _tick(self, send: Send, main: asyncio.Task[object] | None) -> None:
        """Look at the stream a few times per heartbeat: a silence, or a stall."""
        now = self._loop.time()
        if self._sending is not None and now - self._sending > self._pace.stall:
            logger.warning("a client stopped reading its stream")
            if main is not None:
                self._end(main)
            return
        if self._sending is None and now - self._last >= self._pace.heartbeat * 0.6:
            self._last = now
            message = {"type": "http.response.body", "body": COMMENT, "more_body": True}
            self._comment = asyncio.ensure_future(send(message))  # type: ignore[arg-type]
            self._comment.add_done_callback(_ignore)
        self._beat = self._loop.call_later(self._pace.heartbeat * 0.3, self._tick, send, main)


def _ignore(comment: asyncio.Future[None]) -> None:
    if not comment.cancelled():
        comment.exception()  # a client that has gone is noticed by the stream itself


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ClientLeft(GatewayError):
    """The client closed its connection; nobody reads this answer."""

    status_code = 499
    type = "invalid_request_error"
    default_code = "client_closed_request"


async def unless_left(request: Request[Any, Any, Any], call: Awaitable[T]) -> T:
    """Await a call, and cancel it when the client goes away first (STREAM-2).

    The body must have been read, because `receive` is shared.

    Raises:
        ClientLeft: The client has gone.
    """
    main = asyncio.current_task()
    left = False

    def gone(_: object) -> None:
        nonlocal left
        if main is not None and not leaving.cancelled():
            left = True
            main.cancel()

    leaving = asyncio.ensure_future(_until_left(request.receive))
    leaving.add_done_callback(gone)
    try:
        return await call
    except asyncio.CancelledError:
        if not left or main is None:
            raise
        main.uncancel()
        raise ClientLeft("The client closed the connection.") from None
    finally:
        leaving.remove_done_callback(gone)
        leaving.cancel()
