"""A real Valkey for every test here, emptied before each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import Client, open_clients
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.adapters.redis.event_log import RedisEventLog
from gateway.adapters.redis.jobs import RedisJobQueue
from gateway.adapters.redis.turns import RedisTurnStore
from gateway.adapters.redis.webhooks import RedisWebhookStore


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def client(valkey: EmbeddedValkey) -> AsyncIterator[Client]:
    async with open_clients(valkey.url) as clients:
        await clients.commands.flushall()
        yield clients.commands


@pytest.fixture(scope="session")
def ring() -> KeyRing:
    return KeyRing([("k1", b"\1" * 32)])


@dataclass(frozen=True)
class Stores:
    client: Client
    turns: RedisTurnStore
    approvals: RedisApprovalStore
    jobs: RedisJobQueue
    log: RedisEventLog
    webhooks: RedisWebhookStore


@pytest.fixture
def stores(client: Client, ring: KeyRing) -> Stores:
    return Stores(
        client=client,
        turns=RedisTurnStore(client, ring),
        approvals=RedisApprovalStore(client, ring),
        jobs=RedisJobQueue(client, "tests"),
        log=RedisEventLog(client, ring),
        webhooks=RedisWebhookStore(client, ring),
    )
