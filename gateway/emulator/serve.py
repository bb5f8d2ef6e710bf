"""Serving the emulator and its companions with uvicorn: as a program, or inside a test."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from typing_extensions import override

from gateway.emulator.app import create_emulator
from gateway.emulator.settings import EmulatorSettings

_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
_KEPT_SECONDS = 75
_TICK_SECONDS = 0.1


class _Server(uvicorn.Server):
    """A server that says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._leaving = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    @override
    async def main_loop(self) -> None:
        """Tick as uvicorn does, and leave at once when told to."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _TICK_SECONDS)

    def leave(self) -> None:
        """Stop; may be called from another thread."""
        self.should_exit = True
        with suppress(RuntimeError):  # it has stopped by itself
            self._loop.call_soon_threadsafe(self._leaving.set)

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def _server(
    app: Any, host: str, port: int, ready: Callable[[str], None], **options: Any
) -> _Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        # Longer than its clients keep a connection: whoever closes first breaks no request.
        timeout_keep_alive=_KEPT_SECONDS,
        **{"ws": "none", **options},
    )
    return _Server(config, ready)


def serve(app: Any, host: str, port: int, name: str) -> None:
    """Serve an application until a signal, printing one line when it is ready."""
    server = _server(app, host, port, lambda url: print(f"{name} ready on {url}", flush=True))
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after a graceful stop
        server.run()


def run(settings: EmulatorSettings, host: str = "127.0.0.1", port: int = 8099) -> None:
    """Serve the emulator until a signal. Port 0 takes a free one; the ready line names it."""
    serve(create_emulator(settings), host, port, "emulator")


@contextmanager
def serving(app: Any, host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[str]:
    """Serve an application in a thread for the length of the block, and give its base URL.

    Args:
        options: More of uvicorn's options.

    Raises:
        RuntimeError: when it does not start.
    """
    urls: list[str] = []
    started = threading.Event()

    def ready(url: str) -> None:
        urls.append(url)
        started.set()

    server = _server(app, host, port, ready, **options)

    def target() -> None:
        try:
            server.run()
        finally:
            started.set()

    thread = threading.Thread(target=target, name="serving", daemon=True)
    thread.start()
    started.wait(_START_SECONDS)
    if not urls:
        raise RuntimeError("the server did not start")
    try:
        yield urls[0]
    finally:
        server.leave()
        thread.join(_STOP_SECONDS)
