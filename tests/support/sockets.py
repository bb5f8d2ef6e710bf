"""Talking to the gateway over a WebSocket, message by message."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect

from tests.support.stack import Gateway

MODEL = "gpt-4.1"
LAST = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.steer.failed"}
)


class Talk:
    """One socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, **message: Any) -> None:
        """Send a message as it is."""
        await self.socket.send(json.dumps(message))

    async def create(self, input: Any, **body: Any) -> None:
        """Ask for a response."""
        await self.say(type="response.create", model=MODEL, input=input, **body)

    async def hear(self) -> dict[str, Any]:
        """Receive one event."""
        with anyio.fail_after(30):
            event = json.loads(await self.socket.recv())
        assert isinstance(event, dict)
        return event

    async def rest(self) -> list[dict[str, Any]]:
        """Receive events until a turn or an error ends."""
        events = [await self.hear()]
        while events[-1]["type"] not in LAST and "status" not in events[-1]:
            events.append(await self.hear())
        return events

    async def turn(self, input: Any, **body: Any) -> Any:
        """Ask for a response and return it as it ends."""
        await self.create(input, **body)
        last = (await self.rest())[-1]
        assert last["type"] == "response.completed", last
        return last["response"]

    async def refused(self, **message: Any) -> dict[str, Any]:
        """Send what must be refused, and return the error event."""
        await self.say(**message)
        event = await self.hear()
        assert event["type"] == "error", event
        assert {"message", "type", "param", "code"} <= set(event["error"])
        return event


@asynccontextmanager
async def talk(
    gateway: Gateway,
    *,
    key: str = "caller",
    path: str = "/v1/responses",
    headers: dict[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Talk]:
    """Open a socket with one of the gateway's keys."""
    url = gateway.url.replace("http://", "ws://") + path
    sent = {"authorization": f"Bearer {gateway.keys[key]}", **(headers or {})}
    options = {"additional_headers": sent, "proxy": None, "max_size": None, **options}
    async with connect(url, **options) as socket:
        yield Talk(socket)
