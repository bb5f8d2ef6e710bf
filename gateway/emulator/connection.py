"""The client's connection: noticing that it is gone, and tearing it down on purpose."""

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from litestar.types import Receive, Scope, Send

_KEY = "emulator.transport"
_FLUSH = 0.05


class CannotReset(Exception):
    """The server gives no access to the transport; raising this makes it drop the connection."""


def remember_transport(scope: Scope, send: Send) -> None:
    """Keep the server's transport in the scope.

    uvicorn's `send` is a method of its request cycle, which holds the transport. Other servers
    hide it: `reset` then falls back to an exception.
    """
    cycle = getattr(send, "__self__", None)
    extensions = dict(scope.get("extensions") or {})
    extensions[_KEY] = {"transport": getattr(cycle, "transport", None)}
    scope["extensions"] = extensions


async def reset(scope: Scope, receive: Receive) -> None:
    """Reset the TCP connection and return once the server knows.

    Raises:
        CannotReset: when the server hides its transport.
    """
    await anyio.sleep(_FLUSH)  # what was sent so far should arrive
    extensions: Any = scope.get("extensions") or {}
    transport = extensions.get(_KEY, {}).get("transport")
    if transport is None:
        raise CannotReset
    _linger_no_more(transport)
    transport.abort()
    await wait_for_disconnect(receive)


def _linger_no_more(transport: Any) -> None:
    """Make closing the socket send RST instead of FIN."""
    original = transport.get_extra_info("socket")
    if original is None:
        return
    with socket.socket(fileno=os.dup(original.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client goes."""

    async def watch(scope: anyio.CancelScope) -> None:
        await wait_for_disconnect(receive)
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch, group.cancel_scope)
        yield
        group.cancel_scope.cancel()
