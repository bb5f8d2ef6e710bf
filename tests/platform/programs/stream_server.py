"""Serve a stream under the gateway's server: PROCESSES LAME_DUCK GRACE.

Each process prints `ready PORT`.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import Any

from gateway.domain.lifecycle import Lifecycle
from gateway.server.process import STOP_SIGNALS, GracefulServer, bind, server_config
from gateway.server.workers import Supervisor, bind_worker
from gateway.settings import Settings


def make_app(lifecycle: Lifecycle) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    print("closed", flush=True)
                await send({"type": message["type"] + ".complete"})
            return
        status = 503 if scope["path"] == "/readyz" and lifecycle.draining else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        if scope["path"] == "/stream":
            for number in range(15):
                body = f"data: {number}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0.1)
        if scope["path"] == "/endless":
            while True:
                await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
                await asyncio.sleep(0.1)
        body = str(os.getpid()).encode() if scope["path"] == "/pid" else b""
        await send({"type": "http.response.body", "body": body})

    return app


def serve(settings: Settings, listener: socket.socket, signals: Any, *, tell: bool = False) -> None:
    lifecycle = Lifecycle()
    server = GracefulServer(
        server_config(make_app(lifecycle), settings.server),
        lifecycle=lifecycle,
        lame_duck=settings.server.lame_duck,
        signals=signals,
        on_ready=(lambda: print(f"ready {listener.getsockname()[1]}", flush=True))
        if tell
        else None,
    )
    server.run(sockets=[listener])


def work(settings: Settings, listener: socket.socket, parent: int) -> None:
    bind_worker(parent)
    serve(settings, listener, (signal.SIGTERM,), tell=True)


def main() -> int:
    processes, lame_duck, grace = (float(value) for value in sys.argv[1:])
    server = {"port": 0, "lame_duck": lame_duck, "grace_period": grace}
    settings = Settings(server=server)
    listener = bind(settings.server.host, settings.server.port)
    if processes > 1:
        return Supervisor(settings, listener, workers=int(processes), work=work).run()
    serve(settings, listener, STOP_SIGNALS, tell=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
