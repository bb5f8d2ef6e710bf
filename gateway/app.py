"""The composition root: the only place that knows adapters, services and doors together."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException

from gateway.adapters.crypto import KeyRing as CipherRing
from gateway.adapters.crypto import parse_key
from gateway.adapters.logs import configure_logging
from gateway.adapters.metrics import PrometheusMeter
from gateway.adapters.opa import OpaEngine
from gateway.adapters.openai.upstream import OpenAIUpstreams
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.audit import RedisAuditStore
from gateway.adapters.redis.client import Client, open_clients
from gateway.adapters.redis.conversations import RedisConversationStore
from gateway.adapters.redis.event_log import RedisEventLog
from gateway.adapters.redis.fleet import RedisFleet
from gateway.adapters.redis.grants import RedisGrantStore
from gateway.adapters.redis.jobs import RedisJobQueue
from gateway.adapters.redis.pins import RedisPinStore
from gateway.adapters.redis.probe import RedisProbe
from gateway.adapters.redis.turns import RedisTurnStore
from gateway.adapters.redis.wake import RedisWake
from gateway.adapters.redis.webhooks import RedisOutbox, RedisWebhookStore
from gateway.adapters.secrets import SecretResolver
from gateway.adapters.webhook import HttpWebhookSender
from gateway.console.playground import Playground, Suggestion
from gateway.console.routes import Services as ConsoleServices
from gateway.console.routes import console_router, take_back_cors
from gateway.console.sessions import Sessions
from gateway.domain.errors import GatewayError
from gateway.domain.identity import KeyRing
from gateway.domain.lifecycle import Lifecycle
from gateway.domain.requests import Bounds
from gateway.services.answers import NativeAnswers
from gateway.services.approvals import ApprovalService
from gateway.services.audit import AuditService, AuditTerms, Chainer
from gateway.services.continuations import Continuations, Sweeper
from gateway.services.conversations import ConversationService
from gateway.services.endings import Endings
from gateway.services.following import Following
from gateway.services.granted import Granted
from gateway.services.grants import Grants
from gateway.services.health import Health
from gateway.services.judgement import Judge
from gateway.services.legs import Legs
from gateway.services.overview import Overview
from gateway.services.pins import Pinning, PinService
from gateway.services.pipe import Pipe
from gateway.services.policy import Policy, PolicyEngine
from gateway.services.preparation import Catalog, Preparation
from gateway.services.prewarm import Prewarming
from gateway.services.records import Records
from gateway.services.redaction import RedactingUpstreams
from gateway.services.refusals import Refusals
from gateway.services.responses import ResponseService
from gateway.services.resumption import Resumption
from gateway.services.settlement import Settlement
from gateway.services.turns import EARLY, TurnService
from gateway.services.webhook_endpoints import WebhookEndpoints
from gateway.services.webhooks import Deliverer, Directory, FanOut, Messenger
from gateway.services.worker import Worker
from gateway.settings import Settings, read_rules
from gateway.web.answers import Pace
from gateway.web.approvals import approvals_router
from gateway.web.audit import audit_router
from gateway.web.doors import Doors
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

logger = logging.getLogger("gateway")


_LAST_CHAINING = 2.0
"""Seconds for the audit at the end; what is left then is chained by another replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The state of a process, over one store."""

    turns: RedisTurnStore
    conversations: RedisConversationStore
    approvals: RedisApprovalStore
    grants: RedisGrantStore
    log: RedisEventLog
    jobs: RedisJobQueue
    audit: RedisAuditStore
    fleet: RedisFleet
    outbox: RedisOutbox
    webhooks: RedisWebhookStore
    pins: RedisPinStore
    wake: RedisWake
    probe: RedisProbe


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
    secrets = SecretResolver()
    stack.push_async_callback(secrets.aclose)
    cipher = await _cipher(settings, secrets)
    stores = await _stores(stack, settings, secrets, cipher)
    client = OpenAIUpstreams(settings.to_upstreams(), secrets)
    stack.push_async_callback(client.aclose)
    sender = await stack.enter_async_context(
        HttpWebhookSender(timeout=settings.webhook_delivery.timeout)
    )

    servers = {server.label: server for server in settings.to_mcp_servers()}
    tenants = {tenant.id: tenant for tenant in settings.to_tenants()}
    models = {model.name: model for model in settings.to_models()}
    rules = settings.to_rule_set()
    upstreams = {one.name: one for one in settings.to_upstreams()}
    upstream = RedactingUpstreams(client, secrets=secrets, upstreams=upstreams, servers=servers)
    catalog = Catalog(models, next(iter(upstreams)), servers)
    bounds = Bounds(
        max_depth=settings.server.max_json_depth,
        max_tools=settings.server.max_tools,
        max_items=settings.server.max_items,
    )
    meter = PrometheusMeter(models=models, servers=servers)
    health = Health(stores.probe)
    lease = settings.server.lease
    refusals = Refusals(stores.audit)

    following = Following(log=stores.log, turns=stores.turns, wake=stores.wake, lifecycle=life)
    endings = Endings(
        turns=stores.turns,
        conversations=stores.conversations,
        log=stores.log,
        following=following,
        meter=meter,
        tenants=tenants,
    )
    records = Records(turns=stores.turns, approvals=stores.approvals, following=following)
    keys = KeyRing(settings.to_api_keys())
    granted = Granted(
        store=stores.grants,
        audit=stores.audit,
        meter=meter,
        fatigue=settings.approvals.fatigue.to_domain(),
    )
    policy = Policy(
        rules,
        servers=servers,
        meter=meter,
        audit=stores.audit,
        engine=await _engine(stack, settings, secrets),
        on_error=settings.policy.on_error,
    )
    judge = Judge(
        policy=policy, active=lambda key_id: keys.entry(key_id) is not None, granted=granted
    )
    pinning = Pinning(
        store=stores.pins,
        approvals=stores.approvals,
        outbox=stores.outbox,
        audit=stores.audit,
        meter=meter,
        rules=judge.rules,
    )
    preparation = Preparation(
        turns=stores.turns,
        conversations=stores.conversations,
        answers=NativeAnswers(stores.approvals, refusals=refusals, lease=lease),
        catalog=catalog,
        judge=judge,
        pinning=pinning,
        refusals=refusals,
        meter=meter,
    )
    legs = Legs(upstream=upstream, secrets=secrets, upstreams=upstreams, meter=meter)
    settlement = Settlement(approvals=stores.approvals, judge=judge, pinning=pinning, meter=meter)
    pipe = Pipe(
        legs=legs,
        settlement=settlement,
        turns=stores.turns,
        conversations=stores.conversations,
        approvals=stores.approvals,
        jobs=stores.jobs,
        outbox=stores.outbox,
        audit=stores.audit,
        meter=meter,
        lease=lease,
        version=settings.version,
    )
    continuations = Continuations(
        approvals=stores.approvals,
        turns=stores.turns,
        conversations=stores.conversations,
        log=stores.log,
        jobs=stores.jobs,
        fleet=stores.fleet,
        outbox=stores.outbox,
        wake=stores.wake,
        following=following,
        endings=endings,
        pipe=pipe,
        settlement=settlement,
        servers=servers,
        tenants=tenants,
        version=settings.version,
        lease=lease,
    )
    directory = Directory(
        store=stores.webhooks,
        configured=settings.to_webhooks(),
        networks=settings.to_networks(),
    )
    messenger = Messenger(
        directory=directory,
        sender=sender,
        secrets=secrets,
        public_url=settings.server.public_url or "",
    )
    worker = Worker(
        jobs=stores.jobs,
        wake=stores.wake,
        fleet=stores.fleet,
        version=settings.version,
        lease=lease,
        continuations=continuations,
        webhooks=FanOut(store=stores.webhooks, directory=directory, approvals=stores.approvals),
        sweeper=Sweeper(stores.approvals, meter),
        tenants=tenants,
        meter=meter,
        most_in_background=settings.server.max_background,
    )
    await health.check()
    chainer = Chainer(
        store=stores.audit,
        signer=cipher,
        meter=meter,
        tenants=tenants,
        policy=rules,
        terms=AuditTerms(
            retention=settings.audit.retention,
            checkpoint_interval=settings.audit.checkpoint_interval,
            checkpoint_entries=settings.audit.checkpoint_entries,
        ),
    )
    await _start(
        stack, health, stores.wake, worker, chainer, life.drained, settings.server.grace_period
    )
    deliverer = Deliverer(
        store=stores.webhooks,
        directory=directory,
        messenger=messenger,
        meter=meter,
        audit=stores.audit,
        wake=stores.wake,
        tenants=tenants,
        retries=settings.webhook_delivery.retries,
        # Whoever took a delivery has time to try it and to say what became of it.
        lease=max(lease, settings.webhook_delivery.timeout + 10),
    )
    await _start_deliveries(stack, deliverer, settings.server.grace_period)

    sessions = Sessions(cipher, keys, tenants)
    doors = Doors(keys, tenants, bounds.max_depth, sessions.holder)
    pace = Pace(heartbeat=settings.server.heartbeat, stall=settings.server.stall_timeout)
    turns = TurnService(
        preparation=preparation,
        pipe=pipe,
        records=records,
        approvals=stores.approvals,
        conversations=stores.conversations,
        log=stores.log,
        following=following,
        health=health,
        bounds=bounds,
        early=min(EARLY, settings.server.heartbeat * 0.6),
    )
    grants = Grants(
        store=stores.grants,
        approvals=stores.approvals,
        judge=judge,
        pinning=pinning,
        servers=servers,
        audit=stores.audit,
        meter=meter,
    )
    responses = ResponseService(
        turns=stores.turns,
        conversations=stores.conversations,
        approvals=stores.approvals,
        grants=grants,
        upstream=upstream,
        records=records,
        following=following,
        preparation=preparation,
        legs=legs,
        continuations=continuations,
        catalog=catalog,
        bounds=bounds,
    )
    resumption = Resumption(
        turns=stores.turns, approvals=stores.approvals, records=records, refusals=refusals
    )
    conversations = ConversationService(
        turns=stores.turns,
        conversations=stores.conversations,
        upstream=upstream,
        catalog=catalog,
        bounds=bounds,
        refusals=refusals,
    )
    approvals = ApprovalService(
        grants=grants,
        approvals=stores.approvals,
        turns=stores.turns,
        audit=stores.audit,
        wake=stores.wake,
        meter=meter,
        drained=life.drained,
        refusals=refusals,
    )
    audits = AuditService(store=stores.audit, signer=cipher, chainer=chainer)
    pins = PinService(store=stores.pins, servers=servers, audit=stores.audit, meter=meter)
    webhooks = WebhookEndpoints(
        store=stores.webhooks,
        directory=directory,
        messenger=messenger,
        sender=sender,
        audit=stores.audit,
    )
    return [
        create_router(doors, turns, pace),
        sockets_router(
            SocketServices(
                doors=doors,
                turns=turns,
                prewarming=Prewarming(
                    preparation=preparation, turns=stores.turns, health=health, bounds=bounds
                ),
                meter=meter,
                lifecycle=life,
                pace=pace,
                lifetime=settings.server.websocket_lifetime,
                origins=settings.server.cors_allow_origins,
            )
        ),
        responses_router(doors, responses, pace),
        resumption_router(doors, resumption, pace),
        conversations_router(doors, conversations, pace),
        approvals_router(doors, approvals, grants, pace),
        grants_router(doors, grants),
        policy_router(doors, policy, partial(read_rules, known=settings)),
        audit_router(doors, audits),
        webhooks_router(doors, webhooks),
        pins_router(doors, pins),
        console_router(
            doors,
            sessions,
            pace,
            ConsoleServices(
                approvals=approvals,
                audit=audits,
                overview=Overview(turns=stores.turns, approvals=stores.approvals),
                wake=stores.wake,
                servers=list(servers.values()),
                pins=pins,
                policy=policy,
                grants=grants,
                webhooks=webhooks,
                playground=_playground(settings),
            ),
        ),
        health_router(health=health, lifecycle=life, metrics=meter.expose),
    ]


def _playground(settings: Settings) -> Playground | None:
    if not settings.console.playground:
        return None
    return Playground(
        models=[model.name for model in settings.models],
        servers=settings.to_mcp_servers(),
        suggestions=[Suggestion(one.title, one.text) for one in settings.console.suggestions],
    )


async def _engine(
    stack: AsyncExitStack, settings: Settings, secrets: SecretResolver
) -> PolicyEngine | None:
    policy = settings.policy
    if policy.url is None:
        return None
    engine = OpaEngine(policy.url, timeout=policy.timeout, headers=policy.headers, secrets=secrets)
    return await stack.enter_async_context(engine)


async def _cipher(settings: Settings, secrets: SecretResolver) -> CipherRing:
    return CipherRing(
        [(key.id, parse_key(await secrets.resolve(key.value))) for key in settings.encryption.keys]
    )


async def _stores(
    stack: AsyncExitStack, settings: Settings, secrets: SecretResolver, cipher: CipherRing
) -> Stores:
    url = await settings.redis.resolve_url(secrets.resolve)
    clients = await stack.enter_async_context(
        open_clients(
            url,
            socket_timeout=settings.redis.timeout,
            connect_timeout=settings.redis.connect_timeout,
        )
    )
    # Less than a command may take, so that a slow disk is told apart from a lost server.
    fsync = settings.redis.timeout * 0.8 if settings.redis.durability == "fsync" else 0.0
    lease = settings.server.lease
    return make_stores(clients.commands, clients.pubsub, cipher, lease=lease, fsync=fsync)


def make_stores(
    commands: Client, pubsub: Client, cipher: CipherRing, *, lease: float, fsync: float
) -> Stores:
    """Make the stores of one process."""
    consumer = f"{socket.gethostname()}-{os.getpid()}"
    return Stores(
        turns=RedisTurnStore(commands, cipher),
        conversations=RedisConversationStore(commands, cipher),
        approvals=RedisApprovalStore(commands, cipher, fsync=fsync),
        grants=RedisGrantStore(commands, cipher),
        log=RedisEventLog(commands, cipher),
        audit=RedisAuditStore(commands, cipher),
        jobs=RedisJobQueue(commands, consumer, lease=lease),
        fleet=RedisFleet(commands),
        outbox=RedisOutbox(commands, cipher),
        webhooks=RedisWebhookStore(commands, cipher),
        pins=RedisPinStore(commands, cipher),
        wake=RedisWake(pubsub),
        probe=RedisProbe(commands),
    )


async def _start(
    stack: AsyncExitStack,
    health: Health,
    wake: RedisWake,
    worker: Worker,
    chainer: Chainer,
    drained: asyncio.Event,
    grace: float,
) -> None:
    """Start what runs beside the requests; at the end, jobs that were begun may finish."""
    worked = asyncio.Event()
    group = await stack.enter_async_context(asyncio.TaskGroup())
    endless = [group.create_task(health.run()), group.create_task(wake.run())]
    work = group.create_task(worker.run(drained))
    chain = group.create_task(chainer.run(worked))

    async def end() -> None:
        drained.set()
        await asyncio.wait({work}, timeout=grace)
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
