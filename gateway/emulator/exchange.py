"""The outermost layer of every HTTP exchange: recorded, counted, headed, and broken on request."""

import hashlib
import secrets
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import anyio
import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from gateway.emulator import connection, faults
from gateway.emulator.errors import ApiError
from gateway.emulator.faults import Fault, FaultDesk, FaultKind
from gateway.emulator.settings import EmulatorSettings

INTROSPECTION = "/_emulator"
_SECRET_HEADERS = frozenset({"authorization", "api-key"})


class Exchange:
    """Wraps the application; holds what introspection shows."""

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.faults = FaultDesk()
        self.requests: deque[dict[str, Any]] = deque(maxlen=settings.history)
        self.active = 0

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["path"].startswith(INTROSPECTION):
            await app(scope, receive, send)
            return
        self.active += 1
        try:
            await self._run(app, scope, receive, send)
        finally:
            self.active -= 1

    async def _run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        connection.remember_transport(scope, send)
        body = await _read(receive)
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self.requests.append(_record(scope, headers, body))
        headed = _with_headers(send, standard_headers(self.settings), time.monotonic())
        replay = _Replay(body, receive)
        try:
            fault = self.faults.from_header(headers.get(faults.HEADER))
            early = None if _is_turn(scope) else fault
            if early and await self._strike_early(early, scope, replay, headed):
                return
        except ApiError as exc:
            await send_error(exc, headed)
            return
        scope["state"]["fault"] = fault
        await app(scope, replay, headed)

    async def _strike_early(
        self, fault: Fault, scope: Scope, replay: "_Replay", send: Send
    ) -> bool:
        """Do what a fault does before the first byte; tell whether the exchange is over."""
        refused = faults.refusal(fault, azure=self.settings.azure)
        if refused is not None:
            raise refused
        if fault.kind is FaultKind.RESET_BEFORE:
            await connection.reset(scope, replay.receive)
            return True
        if fault.kind is FaultKind.SILENCE:
            came_through = False
            async with connection.while_connected(replay.receive):
                await anyio.sleep(fault.seconds)
                came_through = True
            return not came_through
        return False


def _is_turn(scope: Any) -> bool:
    """Tell whether this creates a response: the turn then carries its fault itself."""
    return bool(scope["method"] == "POST" and scope["path"].endswith("/responses"))


class _Replay:
    """A `receive` that gives the body that was already read, then what the server says."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Any:
        if self._body is None:
            return await self.receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


def _record(scope: Any, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        parsed = {"invalid_json": body.decode(errors="replace")}
    return {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode("latin-1"),
        "headers": {
            name: hashlib.sha256(value.encode()).hexdigest() if name in _SECRET_HEADERS else value
            for name, value in headers.items()
        },
        "body": parsed,
    }


def standard_headers(settings: EmulatorSettings) -> dict[str, str]:
    """Return the headers that every answer carries."""
    common = {
        "x-request-id": f"req_{secrets.token_hex(16)}",
        "x-ratelimit-limit-requests": "500",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-requests": "499",
        "x-ratelimit-remaining-tokens": "199000",
        "x-ratelimit-reset-requests": "120ms",
        "x-ratelimit-reset-tokens": "0s",
        "strict-transport-security": "max-age=31536000; includeSubDomains; preload",
    }
    if settings.azure:
        return common | {
            "apim-request-id": str(uuid.uuid4()),
            "azureai-fe-is-streaming": "False",
            "skip-error-remapping": "true",
            "x-ms-region": "Sweden Central",
            "x-ms-rai-invoked": "true",
        }
    return common | {
        "openai-organization": "org-emulated",
        "openai-project": "proj_emulated",
        "openai-version": "2020-10-01",
    }


def _with_headers(send: Send, extra: dict[str, str], began: float) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = list(message["headers"])
            spent = max(1, int((time.monotonic() - began) * 1000))
            given = {"openai-processing-ms": str(spent), **extra}
            if "apim-request-id" in extra:
                del given["openai-processing-ms"]
                given["azureai-fe-is-streaming"] = str(_is_stream(own))
            names = {name for name, _ in own}
            own += [p for p in encode_headers(given) if p[0] not in names]
            message["headers"] = own
        await send(message)

    return wrapped


def _is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(v.startswith(b"text/event-stream") for n, v in headers if n == b"content-type")


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI wants them."""
    return [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]


async def send_document(
    send: Send, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole JSON response."""
    await start(send, status, {"content-length": str(len(body)), **(headers or {})})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def start(
    send: Send, status: int, headers: Mapping[str, str], media_type: str = "application/json"
) -> None:
    """Send the head of a response."""
    encoded = encode_headers({"content-type": media_type, **headers})
    await send({"type": "http.response.start", "status": status, "headers": encoded})


async def send_error(error: ApiError, send: Send) -> None:
    """Send an error response."""
    body = msgspec.json.encode(error.to_body())
    await send_document(send, body, status=error.status, headers=error.headers)
