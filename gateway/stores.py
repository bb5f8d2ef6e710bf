"""The state of a process, opened as the settings say: for the gateway and for its commands."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gateway.adapters.crypto import KeyRing, parse_key
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.audit import RedisAuditStore
from gateway.adapters.redis.client import open_clients
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
from gateway.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The state of a process over one Redis, and what opens it: secrets and the cipher."""

    secrets: SecretResolver
    cipher: KeyRing
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


@asynccontextmanager
async def open_stores(
    settings: Settings, *, command_timeout: float | None = None
) -> AsyncGenerator[Stores, None]:
    """Open the stores, and close them at the end; nothing is sent to Redis yet.

    Args:
        command_timeout: Seconds for one command, instead of `redis.timeout`.

    Raises:
        SecretUnavailable: The URL or an encryption key cannot be read.
        ValueError: `redis.url` is none.
    """
    redis = settings.redis
    async with AsyncExitStack() as stack:
        secrets = SecretResolver()
        stack.push_async_callback(secrets.aclose)
        cipher = KeyRing(
            [
                (key.id, parse_key(await secrets.resolve(key.value)))
                for key in settings.encryption.keys
            ]
        )
        clients = await stack.enter_async_context(
            open_clients(
                await redis.resolve_url(secrets.resolve),
                socket_timeout=redis.timeout if command_timeout is None else command_timeout,
                connect_timeout=redis.connect_timeout,
            )
        )
        commands = clients.commands
        # Less than a command may take, so that a slow disk is told apart from a lost server.
        fsync = redis.timeout * 0.8 if redis.durability == "fsync" else 0.0
        consumer = f"{socket.gethostname()}-{os.getpid()}"
        yield Stores(
            secrets=secrets,
            cipher=cipher,
            turns=RedisTurnStore(commands, cipher),
            conversations=RedisConversationStore(commands, cipher),
            approvals=RedisApprovalStore(commands, cipher, fsync=fsync),
            grants=RedisGrantStore(commands, cipher),
            log=RedisEventLog(commands, cipher),
            jobs=RedisJobQueue(commands, consumer, lease=settings.server.lease),
            audit=RedisAuditStore(commands, cipher),
            fleet=RedisFleet(commands),
            outbox=RedisOutbox(commands, cipher),
            webhooks=RedisWebhookStore(commands, cipher),
            pins=RedisPinStore(commands, cipher),
            wake=RedisWake(clients.pubsub),
            probe=RedisProbe(commands),
        )
