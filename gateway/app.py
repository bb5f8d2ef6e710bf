"""The application: opens stores and clients, starts what runs beside requests, opens the doors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException

from gateway.adapters.logs import configure_logging
from gateway.adapters.opa import OpaEngine
from gateway.adapters.openai.upstream import OpenAIUpstreams
from gateway.adapters.secrets import SecretResolver
from gateway.adapters.webhook import HttpWebhookSender
from gateway.console.routes import Services as ConsoleServices
from gateway.console.routes import console_router, take_back_cors
from gateway.domain.errors import GatewayError
from gateway.domain.lifecycle import Lifecycle
from gateway.services.webhooks import Deliverer
from gateway.settings import Settings, read_rules
from gateway.stores import open_stores
from gateway.web.approvals import approvals_router
from gateway.web.audit import audit_router
from gateway.web.errors import on_exception, on_http_error
from gateway.web.grants import grants_router
from gateway.web.health import health_router
from gateway.web.pins import pins_router
from gateway.web.policy import policy_router
from gateway.web.responses import (
    conversations_router,
    create_router,
    responses_router,
    resumption_router,
)
from gateway.web.sockets import SocketServices, sockets_router
from gateway.web.webhooks import webhooks_router
from gateway.wiring import Outside, Wiring

logger = logging.getLogger("gateway")


_LAST_CHAINING = 2.0
"""Seconds for the audit at the end; what is left then is chained by another replica."""


def create_app(settings: Settings, *, lifecycle: Lifecycle | None = None) -> Litestar:
    """Make the application; its adapters are opened when it starts.

    Raises at start-up:
        SecretUnavailable: A secret that is needed to start cannot be read.
    """
    configure_logging()
    life = lifecycle or Lifecycle()

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            for router in await _open(stack, settings, life):
                app.register(router)
            yield

    origins = list(settings.server.cors_allow_origins)
    return Litestar(
        lifespan=[lifespan],
        exception_handlers={
            GatewayError: on_exception,
            HTTPException: on_http_error,
            Exception: on_exception,
        },
        cors_config=CORSConfig(allow_origins=origins) if origins else None,
        before_send=[take_back_cors] if origins else [],
        request_max_body_size=settings.server.max_body_bytes,
        openapi_config=None,
        logging_config=None,
    )


async def _open(stack: AsyncExitStack, settings: Settings, life: Lifecycle) -> list[Router]:
    """Open the adapters, wire the services, start the background, and return the doors."""
    stores = await stack.enter_async_context(open_stores(settings))
    outside = await _outside(stack, settings, stores.secrets)
    wiring = Wiring(settings, stores=stores, outside=outside, lifecycle=life)
    await wiring.health.check()
    await _start(stack, wiring)
    await _start_deliveries(stack, wiring.deliverer, settings.server.grace_period)
    return _doors(wiring)


async def _outside(stack: AsyncExitStack, settings: Settings, secrets: SecretResolver) -> Outside:
    upstreams = OpenAIUpstreams(settings.to_upstreams(), secrets)
    stack.push_async_callback(upstreams.aclose)
    await upstreams.warm()
    sender = await stack.enter_async_context(
        HttpWebhookSender(timeout=settings.webhook_delivery.timeout)
    )
    policy, engine = settings.policy, None
    if policy.url is not None:
        engine = await stack.enter_async_context(
            OpaEngine(policy.url, timeout=policy.timeout, headers=policy.headers, secrets=secrets)
        )
    return Outside(upstreams=upstreams, sender=sender, engine=engine)


def _doors(wiring: Wiring) -> list[Router]:
    """Open every path of the process to the service behind it."""
    doors, pace, settings = wiring.doors, wiring.pace, wiring.settings
    sockets = SocketServices(
        doors=doors,
        turns=wiring.turns,
        prewarming=wiring.prewarming,
        meter=wiring.meter,
        lifecycle=wiring.lifecycle,
        pace=pace,
        lifetime=settings.server.websocket_lifetime,
        origins=settings.server.cors_allow_origins,
    )
    rooms = ConsoleServices(
        approvals=wiring.approvals,
        audit=wiring.audits,
        overview=wiring.overview,
        wake=wiring.stores.wake,
        servers=list(wiring.servers.values()),
        pins=wiring.pins,
        policy=wiring.policy,
        grants=wiring.grants,
        webhooks=wiring.webhooks,
        playground=wiring.playground,
    )
    return [
        create_router(doors, wiring.turns, pace),
        sockets_router(sockets),
        responses_router(doors, wiring.responses, pace),
        resumption_router(doors, wiring.resumption, pace),
        conversations_router(doors, wiring.conversations, pace),
        approvals_router(doors, wiring.approvals, wiring.grants, pace),
        grants_router(doors, wiring.grants),
        policy_router(doors, wiring.policy, partial(read_rules, known=settings)),
        audit_router(doors, wiring.audits),
        webhooks_router(doors, wiring.webhooks),
        pins_router(doors, wiring.pins),
        console_router(doors, wiring.sessions, pace, rooms),
        health_router(
            health=wiring.health, lifecycle=wiring.lifecycle, metrics=wiring.meter.expose
        ),
    ]


async def _start(stack: AsyncExitStack, wiring: Wiring) -> None:
    """Start what runs beside the requests; at the end, jobs that were begun may finish."""
    drained, worked = wiring.lifecycle.drained, asyncio.Event()
    group = await stack.enter_async_context(asyncio.TaskGroup())
    endless = [group.create_task(wiring.health.run()), group.create_task(wiring.stores.wake.run())]
    work = group.create_task(wiring.worker.run(drained))
    chain = group.create_task(wiring.chainer.run(worked))

    async def end() -> None:
        drained.set()
        await asyncio.wait({work}, timeout=wiring.settings.server.grace_period)
        worked.set()  # the last jobs leave something to chain
        await asyncio.wait({chain}, timeout=_LAST_CHAINING)
        # Again and again: a client library may swallow one cancellation.
        while running := {task for task in (*endless, work, chain) if not task.done()}:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=0.5)

    stack.push_async_callback(end)


async def _start_deliveries(stack: AsyncExitStack, deliverer: Deliverer, grace: float) -> None:
    """Start sending webhooks; at the end, those that were begun may finish."""
    stop = asyncio.Event()
    group = await stack.enter_async_context(asyncio.TaskGroup())
    work = group.create_task(deliverer.run(stop))

    async def end() -> None:
        stop.set()
        await asyncio.wait({work}, timeout=grace)
        work.cancel()

    stack.push_async_callback(end)
