"""Whether the process lives, wants work, and what it has counted (OPS-1)."""

from __future__ import annotations

from collections.abc import Callable

from litestar import Response, Router, get

from gateway.domain.documents import encode
from gateway.domain.lifecycle import Lifecycle
from gateway.services.health import Health


def health_router(
    *, health: Health, lifecycle: Lifecycle, metrics: Callable[[], tuple[bytes, str]]
) -> Router:
    """The doors for orchestrators; they need no key and tell no secret."""

    @get("/livez", sync_to_thread=False)
    def livez() -> Response[bytes]:
        """The event loop runs. Never asks Redis or an upstream."""
        return _answer(200, {"status": "ok"})

    @get("/readyz", sync_to_thread=False)
    def readyz() -> Response[bytes]:
        """The store takes writes and no stop was asked for; upstream trouble does not count."""
        checks = {
            "store": "ok" if health.problem is None else health.problem.code,
            "draining": lifecycle.draining,
        }
        ready = health.problem is None and not lifecycle.draining
        status = "ok" if ready else "unavailable"
        return _answer(200 if ready else 503, {"status": status, "checks": checks})

    @get("/metrics", sync_to_thread=False)
    def prometheus() -> Response[bytes]:
        """Metrics in Prometheus' text format."""
        body, media_type = metrics()
        return Response(body, media_type=media_type)

    return Router(path="/", route_handlers=[livez, readyz, prometheus])


def _answer(status: int, body: object) -> Response[bytes]:
    return Response(
        encode(body),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )
