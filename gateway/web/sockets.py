"""WebSocket mode of the Responses API, on the paths of `POST /responses` (API-6).

A message `response.create` holds the body of the POST; the answer is the stream of that POST, each
event as one text message. Turns come from the same services as over HTTP, so chains outlive their
socket and continue over either.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import Router, WebSocket, websocket
from litestar.exceptions import WebSocketException

from gateway.domain import events
from gateway.domain.documents import Document, encode, field, parse_document, parse_request, raw
from gateway.domain.errors import BadRequest, Conflict, Forbidden, GatewayError, Unauthenticated
from gateway.domain.identity import Role
from gateway.domain.lifecycle import Lifecycle
from gateway.domain.ports import Meter
from gateway.domain.requests import without
from gateway.services.callers import Caller
from gateway.services.prewarm import Prewarming
from gateway.services.records import Answer, EventStream
from gateway.services.turns import TurnService
from gateway.web import steering
from gateway.web.answers import Pace
from gateway.web.doors import LONGEST_WAIT, Doors
from gateway.web.errors import error_answer
from gateway.web.responses import api_paths

logger = logging.getLogger("gateway.web")

AnySocket = WebSocket[Any, Any, Any]

MOST_LANES = 16
"""Turns that may run on one socket at the same time, each on a `stream_id` of its own."""

LAST_WORDS = 1.0
"""Seconds to say goodbye to a peer when the grace period is over."""

_ENVELOPE = ("type", "stream_id", "generate")
_BETA = "responses_websockets"
_CREDENTIAL = "openai-insecure-api-key."
_GOING_AWAY, _REFUSED = 1001, 1008
_LONGEST_REASON = 123


class ConnectionLimit(GatewayError):
    """This socket takes no more turns; a new one does."""

    status_code = 400
    type = "invalid_request_error"
    default_code = "websocket_connection_limit_reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketServices:
    """What a socket needs.

    Attributes:
        lifetime: Seconds after which a socket takes no more turns.
        origins: Origins of browsers that may connect, besides the gateway's own.
    """

    doors: Doors
    turns: TurnService
    prewarming: Prewarming
    meter: Meter
    lifecycle: Lifecycle
    pace: Pace
    lifetime: float
    origins: Sequence[str]


def sockets_router(services: SocketServices) -> Router:
    """The door for WebSockets."""

    @websocket(api_paths("/responses"))
    async def open_socket(socket: AnySocket) -> None:
        """Create responses over a WebSocket."""
        await Session(socket, services).run()

    return Router(path="/", route_handlers=[open_socket])


@dataclass(slots=True)
class Lane:
    """The turn that runs on a `stream_id`, or on none.

    Attributes:
        first: The first event, which names the response.
        last: The newest event; after its last one a turn is over for its caller, who may go on at
            once, while its task still tidies up.
    """

    task: asyncio.Future[None]
    first: bytes = b""
    last: bytes = b""

    @property
    def response_id(self) -> str:
        """The id of the response that runs here, or has just ended; "" before it is known."""
        return _started.decode(self.first).response.id if self.first else ""

    @property
    def is_over(self) -> bool:
        """Whether the caller has been told the end of the turn."""
        if self.task.done():
            return True
        with contextlib.suppress(msgspec.DecodeError):  # an upstream may send what is no event
            return bool(self.last) and _kind.decode(self.last).type in events.TERMINAL
        return False


class _Typed(msgspec.Struct):
    type: str = ""


class _Named(msgspec.Struct):
    id: str = ""


class _Started(msgspec.Struct):
    response: _Named = msgspec.field(default_factory=_Named)


_kind = msgspec.json.Decoder(_Typed)
_started = msgspec.json.Decoder(_Started)


class Session:
    """One socket: reads messages, runs turns, and says goodbye."""

    def __init__(self, socket: AnySocket, services: SocketServices) -> None:
        self._socket = socket
        self._services = services
        self._lanes: dict[str | None, Lane] = {}
        self._limit: ConnectionLimit | None = None
        self._cursor = ""
        self._reading: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve the socket until it is closed."""
        try:
            _check_origin(self._socket, self._services.origins)
            tenant = self._caller().tenant.id
        except GatewayError as exc:
            await self._refuse(exc)
            return
        await self._socket.accept(subprotocols=_subprotocol(self._socket))
        self._services.meter.websockets(tenant, 1)
        try:
            await self._serve()
        finally:
            self._services.meter.websockets(tenant, -1)

    async def _serve(self) -> None:
        self._reading = reading = asyncio.ensure_future(self._read())
        over = asyncio.ensure_future(self._until_over())
        try:
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
            while not reading.done() and (running := self._running()):
                await asyncio.wait({reading, *running}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await self._leave()
        except asyncio.CancelledError:  # the grace period is over
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._close(_GOING_AWAY, "The gateway stops.")
            raise
        finally:
            left = [reading, over, *self._running()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _running(self) -> list[asyncio.Future[None]]:
        return [lane.task for lane in self._lanes.values() if not lane.task.done()]

    async def _until_over(self) -> None:
        """Wait until this socket should take no more turns."""
        try:
            async with asyncio.timeout(self._services.lifetime):
                await self._services.lifecycle.drained.wait()
        except TimeoutError:
            self._limit = ConnectionLimit(
                "The WebSocket has reached its longest life. Open a new one to go on."
            )
        else:
            self._limit = ConnectionLimit("This replica stops. Open a new WebSocket to go on.")

    async def _leave(self) -> None:
        if self._limit is not None and not self._services.lifecycle.drained.is_set():
            await self._tell(self._limit, None)
        reason = self._cursor or (self._limit.message if self._limit else "")
        await self._close(_GOING_AWAY, reason)

    # Messages

    async def _read(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] != "websocket.receive":
                return
            lane: str | None = None
            try:
                document = self._document(message)
                if field(document, "type", str) == "response.steer":
                    await self._send(self._steer(document))
                    continue
                lane = _lane_of(document)
                self._take(document, lane)
            except Unauthenticated as exc:
                await self._tell(exc, lane)
                await self._close(_REFUSED, "The credential is not valid any more.")
                return
            except GatewayError as exc:
                await self._tell(exc, lane)

    def _document(self, message: Mapping[str, Any]) -> Document:
        text = message.get("text")
        if text is None:
            raise BadRequest("A message must be text that holds JSON, not binary.")
        return parse_request(text.encode(), max_depth=self._services.doors.max_depth)

    def _take(self, document: Document, name: str | None) -> None:
        kind = field(document, "type", str)
        if kind != "response.create":
            raise BadRequest(
                f"Unknown type {kind!r}: a message is of type 'response.create'. To cancel a "
                "response, close the WebSocket or POST to /responses/{id}/cancel.",
                code="invalid_value",
                param="type",
            )
        if field(document, "background", bool):
            raise BadRequest(
                "'background' is not supported over WebSocket.",
                code="background_not_supported",
                param="background",
            )
        before = self._room(name)
        caller = self._caller()
        generate = field(document, "generate", bool) is not False
        body = {**without(document, *_ENVELOPE), "stream": raw(True)}
        # Begun by the loop, and so never before its lane is known.
        task = asyncio.ensure_future(self._turn(caller, body, name, before, generate=generate))
        self._lanes[name] = Lane(task)

    def _steer(self, document: Document) -> bytes:
        """Answer a wish to steer: it cannot be done, and the answer says why."""
        try:
            wanted = steering.target(document)
        except BadRequest as exc:
            return steering.failed(document, "invalid_input", exc.message)
        for name, lane in self._lanes.items():
            if lane.response_id == wanted:
                over = lane.is_over
                event = steering.failed(
                    document, "response_already_completed" if over else "steering_not_supported"
                )
                return event if name is None else _with_lane(event, name)
        return steering.failed(document, "response_not_found")

    def _room(self, name: str | None) -> asyncio.Future[None] | None:
        """Find room for a turn, and return what must end before it.

        Raises:
            GatewayError: This socket has no room now, or takes no more turns.
        """
        if self._limit is not None:
            raise self._limit
        lane = self._lanes.get(name)
        if lane is not None and not lane.is_over:
            where = "this WebSocket" if name is None else f"the stream '{name}'"
            raise Conflict(
                f"A response is still running on {where}; wait for its end before the next "
                "'response.create'.",
                code="response_in_progress",
            )
        self._lanes = {key: one for key, one in self._lanes.items() if not one.task.done()}
        others = [one for one in self._lanes.values() if not one.is_over]
        if len(others) >= MOST_LANES or len(self._lanes) >= 2 * MOST_LANES:
            raise Conflict(
                f"At most {MOST_LANES} responses run on one WebSocket at the same time.",
                code="too_many_streams",
                param="stream_id",
            )
        return lane.task if lane is not None and not lane.task.done() else None

    def _caller(self) -> Caller:
        """Authenticate anew: a credential may have ended since the socket was opened."""
        caller = self._services.doors.caller(self._socket, Role.CALLER)
        beta = caller.headers.get("openai-beta")
        if beta is None:
            return caller
        # What a client says of its socket is no matter of the upstream's HTTP.
        kept = ", ".join(one for one in map(str.strip, beta.split(",")) if not _is_ours(one))
        headers = {key: value for key, value in caller.headers.items() if key != "openai-beta"}
        return replace(caller, headers={**headers, "openai-beta": kept} if kept else headers)

    # Turns

    async def _turn(
        self,
        caller: Caller,
        body: Document,
        name: str | None,
        before: asyncio.Future[None] | None,
        *,
        generate: bool,
    ) -> None:
        lane = self._lanes[name]
        if before is not None:
            await asyncio.wait({before})
        try:
            stream = await self._open(caller, body, generate=generate)
            try:
                async for block in stream.events:
                    for frame in events.frames(block):
                        await self._frame(frame, name, lane)
            finally:
                await stream.aclose()
        except _Gone:
            self._give_up()
        except Exception as exc:  # noqa: BLE001  # told and, where it is a fault of ours, logged
            await self._tell(exc, name)

    async def _open(self, caller: Caller, body: Document, *, generate: bool) -> EventStream:
        if not generate:
            return await self._services.prewarming.answer(caller, body)
        answer = await self._services.turns.create(caller, body, wait=LONGEST_WAIT)
        return answer if isinstance(answer, EventStream) else _as_stream(answer)

    async def _frame(self, frame: bytes, name: str | None, lane: Lane) -> None:
        lines = [line[5:].strip() for line in frame.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
        if data[:1] != b"{":  # a comment, for which pings stand here, or a provider's [DONE]
            if frame.startswith(b": draining"):
                self._cursor = frame[2:].decode().strip()
            return
        if name is not None:
            data = _with_lane(data, name)
        lane.first = lane.first or data
        lane.last = data
        await self._send(data)

    # What is sent

    async def _tell(self, exc: Exception, name: str | None) -> None:
        answer = error_answer(exc)
        error = parse_document(parse_document(answer.body)["error"])
        if answer.headers:
            error["headers"] = raw(dict(answer.headers))
        event = encode(
            {"type": raw("error"), "status": raw(answer.status), "error": raw(error)},
        )
        try:
            await self._send(event if name is None else _with_lane(event, name))
        except _Gone:
            self._give_up()

    async def _send(self, data: bytes) -> None:
        """Send a message when the peer has read enough of what went before (STREAM-1).

        Raises:
            _Gone: The peer has left, or does not read.
        """
        message = {"type": "websocket.send", "bytes": None, "text": data.decode()}
        try:
            async with asyncio.timeout(self._services.pace.stall):
                await self._socket.send(message)  # type: ignore[arg-type]
        except TimeoutError as exc:
            logger.warning("a client stopped reading its WebSocket")
            raise _Gone from exc
        except (OSError, WebSocketException) as exc:
            raise _Gone from exc

    def _give_up(self) -> None:
        """End the session of a peer that has gone or stopped reading."""
        if self._reading is not None:
            self._reading.cancel()

    async def _close(self, code: int, reason: str) -> None:
        text = reason.encode()[:_LONGEST_REASON].decode(errors="ignore")
        with contextlib.suppress(OSError, TimeoutError, WebSocketException):
            async with asyncio.timeout(self._services.pace.stall):
                await self._socket.send({"type": "websocket.close", "code": code, "reason": text})

    async def _refuse(self, exc: GatewayError) -> None:
        """Answer the handshake with an error, as any other request."""
        answer = error_answer(exc)
        headers = {**answer.headers, "content-type": "application/json"}
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        start = {"type": "websocket.http.response.start", "status": answer.status}
        await self._socket.send({**start, "headers": pairs})  # type: ignore[arg-type]
        await self._socket.send(
            {"type": "websocket.http.response.body", "body": answer.body}  # type: ignore[arg-type]
        )


class _Gone(Exception):
    """Raised when nobody reads any more."""


def _lane_of(document: Document) -> str | None:
    name = field(document, "stream_id", str)
    if name is not None and not 1 <= len(name) <= 64:
        raise BadRequest(
            "'stream_id' must have 1 to 64 characters.", code="invalid_value", param="stream_id"
        )
    return name


def _with_lane(data: bytes, name: str) -> bytes:
    """Name the lane at the end of an event, whose other bytes stay as they are."""
    return data.rstrip()[:-1] + b',"stream_id":' + msgspec.json.encode(name) + b"}"


def _as_stream(answer: Answer) -> EventStream:
    """Tell of a response that is there already as a stream would."""
    response = parse_document(answer.body)
    status = msgspec.json.decode(response.get("status", raw("")), type=str)
    if status in ("in_progress", "queued"):
        raise Conflict(
            "The response still waits; retrieve it when it has ended.", code="approval_pending"
        )
    end = f"response.{status}"

    async def told() -> Any:
        kinds = ["response.created", end if end in events.TERMINAL else "response.failed"]
        for number, kind in enumerate(kinds):
            numbered = {"type": raw(kind), "sequence_number": raw(number)}
            yield events.write(kind, {**numbered, "response": raw(response)})

    return EventStream(answer.headers, told())


def _is_ours(beta: str) -> bool:
    return beta.partition("=")[0] == _BETA


def _subprotocol(socket: AnySocket) -> str | None:
    """Choose the first that is offered; browsers want one of theirs. Never one that is a key."""
    offered = (one for one in socket.scope["subprotocols"] if not one.startswith(_CREDENTIAL))
    return next(offered, None)


def _check_origin(socket: AnySocket, allowed: Sequence[str]) -> None:
    """Let browsers in from the gateway's own pages and the configured origins only.

    CORS does not cover WebSockets: a browser opens one to anywhere.
    """
    origin = socket.headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed:
        return
    if urlsplit(origin).netloc != socket.headers.get("host") or origin == "null":
        raise Forbidden(
            "This origin may not open a WebSocket here.", code="origin_not_allowed", param="Origin"
        )
