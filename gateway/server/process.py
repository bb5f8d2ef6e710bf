"""One serving process, and its stop (STREAM-4).

On the first SIGTERM or SIGINT readiness says no while requests are still served (the lame duck, so
that load balancers look away in time). Then the listener closes, and running streams have the
grace period. The process exits with 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from pydantic import SecretStr
from typing_extensions import override

from gateway.domain.lifecycle import Lifecycle
from gateway.server.protocol import HttpLimits, protocol_class
from gateway.server.sockets import SocketProtocol
from gateway.settings import ServerSettings, Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

_log = logging.getLogger("gateway.server")

_CLOSE_SECONDS = 5.0
_COLLECT_AFTER = 10_000
"""Objects more than before, after which the youngest are looked through: a few turns' worth."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulServer(uvicorn.Server):
    """uvicorn's server with a lame duck, and without dying of the signal it was stopped by.

    Args:
        lifecycle: Told of the stop; the application reads it.
        lame_duck: Seconds between the signal and the closing of the listener.
        signals: Which signals stop it.
        on_ready: Called once it accepts connections.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        lifecycle: Lifecycle,
        lame_duck: float = 0.0,
        signals: Sequence[signal.Signals] = STOP_SIGNALS,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        self._on_ready = on_ready
        self._lifecycle = lifecycle
        self._lame_duck = lame_duck
        self._signals = signals

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self._on_ready is not None:
            self._on_ready()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop as the stock server does, but do not wait for ever for the application's end."""
        grace = self.config.timeout_graceful_shutdown or 0
        try:
            async with asyncio.timeout(grace + _CLOSE_SECONDS):
                await super().shutdown(sockets=sockets)
        except TimeoutError:
            _log.error("The application did not close in time and is left")

    def stop(self) -> None:
        """Begin to stop; called again, end now."""
        if self._lifecycle.draining:
            self._end_now()
            return
        self._lifecycle.draining = True
        if self._lame_duck:
            _log.info("Draining: the listener closes in %.0f s", self._lame_duck)
            asyncio.get_running_loop().call_later(self._lame_duck, self._close)
        else:
            self._close()

    def _close(self) -> None:
        self._lifecycle.drained.set()
        self.should_exit = True

    def _end_now(self) -> None:
        self._lifecycle.drained.set()
        self.should_exit = self.force_exit = True
        for task in list(self.server_state.tasks):
            task.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop by signals; unlike the stock method, do not raise them again afterwards (rc 0)."""
        loop = asyncio.get_running_loop()
        added: list[signal.Signals] = []
        try:
            for number in self._signals:
                loop.add_signal_handler(number, self.stop)
                added.append(number)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows, or no main thread
            with super().capture_signals():
                yield
            return
        try:
            yield
        finally:
            for number in added:
                loop.remove_signal_handler(number)

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop where the loop cannot take signals (Windows)."""
        loop = asyncio.get_event_loop()
        loop.call_soon_threadsafe(self.stop)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leave out tracebacks of what the stop itself cancelled: they are no errors.

    The application's own end is told as text, when a second signal cuts it short.
    """
    error = record.exc_info[1] if record.exc_info else None
    told = record.levelno >= logging.ERROR and "CancelledError" in record.getMessage()
    return not told and not isinstance(error, asyncio.CancelledError)


def bind(host: str, port: int) -> socket.socket:
    """Bind the listening socket, before anything else is started.

    Raises:
        OSError: The address is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.set_inheritable(False)
    except OSError:
        listener.close()
        raise
    return listener


def server_config(app: ASGIApplication, settings: ServerSettings) -> uvicorn.Config:
    """Turn settings into uvicorn's configuration."""
    limits = HttpLimits(
        head_bytes=settings.max_header_bytes,
        headers=settings.max_headers,
        head_seconds=settings.head_timeout,
        body_seconds=settings.body_timeout,
    )
    return uvicorn.Config(
        app,
        loop=_loop(),
        http=protocol_class(limits),
        lifespan="on",
        log_config=None,  # the application decides how logs look
        access_log=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        server_header=False,
        backlog=4096,
        timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]  # seconds, any number
        timeout_graceful_shutdown=settings.grace_period,  # type: ignore[arg-type]  # likewise
        **websocket_options(settings),
    )


def websocket_options(settings: ServerSettings) -> dict[str, Any]:
    """Give uvicorn's options for WebSockets (API-6): bounded, and with pings for comments.

    Compression is off: it costs memory per socket, and a small message can grow without bound.
    """
    return {
        "ws": SocketProtocol,
        "ws_max_size": settings.max_body_bytes,
        "ws_ping_interval": settings.heartbeat,
        "ws_ping_timeout": settings.stall_timeout,
        "ws_per_message_deflate": False,
    }


def _loop() -> str:
    try:
        import uvloop  # noqa: F401  # only whether there is one
    except ImportError:
        return "asyncio"
    return "uvloop"


def _settle_garbage() -> None:
    """Leave what start-up made out of every later collection, and collect less often.

    Those are some 150,000 objects that stay, while what a turn makes goes with its last reference.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def serve(
    settings: Settings,
    listener: socket.socket,
    *,
    signals: Sequence[signal.Signals] = STOP_SIGNALS,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve on a bound socket until a signal; the Redis of the settings must be running.

    Raises:
        SystemExit: The application did not start.
    """
    from gateway.app import create_app

    def begin() -> None:
        _settle_garbage()
        if on_ready is not None:
            on_ready()

    lifecycle = Lifecycle()
    app = create_app(settings, lifecycle=lifecycle)
    server = GracefulServer(
        server_config(cast("ASGIApplication", app), settings.server),
        lifecycle=lifecycle,
        lame_duck=settings.server.lame_duck,
        signals=signals,
        on_ready=begin,
    )
    server.run(sockets=[listener])


def run(settings: Settings, *, workers: int = 1) -> int:
    """Serve as the settings say, with the embedded Valkey if they ask for it; return a status.

    Raises:
        OSError: The address is taken.
        EmbeddedValkeyError: The embedded Valkey does not start.
    """
    from gateway.adapters.redis.embedded import EmbeddedValkey

    with ExitStack() as stack:
        listener = stack.enter_context(bind(settings.server.host, settings.server.port))
        if settings.redis.embedded:
            store = stack.enter_context(EmbeddedValkey(settings.redis.directory))
            settings = settings.replace(redis={"url": SecretStr(store.url)})
        if workers > 1:
            from gateway.server.workers import Supervisor

            return Supervisor(settings, listener, workers=workers).run()
        serve(settings, listener)
    return 0
