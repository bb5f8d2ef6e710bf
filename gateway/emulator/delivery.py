"""How a turn reaches the client, as a stream or a document, and how its leaving ends it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
from litestar import Litestar, Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send
from typing_extensions import override

from gateway.emulator import connection, stream
from gateway.emulator.emission import Event
from gateway.emulator.errors import ApiError
from gateway.emulator.exchange import send_document, send_error, start
from gateway.emulator.faults import Fault, FaultKind


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A turn on its way to the client."""

    events: AsyncGenerator[Event, None]
    as_stream: bool
    obfuscated: bool = True
    fault: Fault | None = None
    delay: float = 0.0
    refusal: Any = None
    """Called at the end of a turn without stream: the error to answer with, or None."""


class TurnResponse(Response[bytes]):
    """A response that runs its turn while it is sent."""

    def __init__(self, delivery: Delivery) -> None:
        super().__init__(b"")
        self._delivery = delivery

    @override
    def to_asgi_response(
        self, app: Litestar | None, request: Request[Any, Any, Any], **options: Any
    ) -> ASGIResponse:
        return _TurnASGIResponse(self._delivery)


class _TurnASGIResponse(ASGIResponse):
    def __init__(self, delivery: Delivery) -> None:
        super().__init__()
        self._delivery = delivery

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._delivery.fault
        if fault and fault.kind is FaultKind.RESET_BEFORE:
            await connection.reset(scope, receive)
            return
        torn = False
        async with connection.while_connected(receive):
            silence = fault.seconds if fault and fault.kind is FaultKind.SILENCE else 0.0
            await anyio.sleep(self._delivery.delay + silence)
            torn = await self._deliver(send)
        if torn:
            await connection.reset(scope, receive)

    async def _deliver(self, send: Send) -> bool:
        """Send everything; tell whether the connection is to be reset instead of ended."""
        if not self._delivery.as_stream:
            return await self._send_document(send)
        try:
            await self._send_stream(send)
        except stream.ConnectionReset:
            return True
        return False

    async def _send_stream(self, send: Send) -> None:
        delivery = self._delivery
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        await start(send, 200, headers, "text/event-stream; charset=utf-8")
        chunks = stream.frames(
            delivery.events, obfuscated=delivery.obfuscated, fault=delivery.fault
        )
        async with aclosing(chunks), aclosing(delivery.events):
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_document(self, send: Send) -> bool:
        response: dict[str, Any] = {}
        async with aclosing(self._delivery.events):
            async for event in self._delivery.events:
                response = event.get("response", response)
        refused: ApiError | None = self._delivery.refusal() if self._delivery.refusal else None
        if refused is not None:
            await send_error(refused, send)
            return False
        body, whole = await stream.document(response, self._delivery.fault)
        if whole:
            await send_document(send, body)
            return False
        await start(send, 200, {"content-length": str(len(body) * 2)})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        return True
