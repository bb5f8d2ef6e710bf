"""A store that is down, full, or forgetful: an error in time, and nothing half-written (OPS-4)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from redis.exceptions import ResponseError

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import Client, execute, open_clients, translate
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.adapters.redis.event_log import RedisEventLog
from gateway.adapters.redis.jobs import RedisJobQueue
from gateway.adapters.redis.turns import RedisTurnStore
from gateway.domain.approvals import BatchStatus
from gateway.domain.errors import StorageFull, StoreUnavailable
from gateway.domain.ports import Job

from .conftest import Stores
from .make import APPROVE, TENANT, approval, everything, opened, turn, vote

T = TypeVar("T")
RING = KeyRing([("k1", b"\1" * 32)])
JOB = Job(token="1-1", tenant=TENANT, kind="continue", subject="resp_leg")


def operations(client: Client) -> list[Callable[[], Awaitable[object]]]:
    turns, approvals = RedisTurnStore(client, RING), RedisApprovalStore(client, RING)
    jobs, log = RedisJobQueue(client, "w"), RedisEventLog(client, RING)
    asked = approval()
    return [
        lambda: turns.record(turn("resp_1"), ttl=60),
        lambda: turns.head(TENANT, "resp_1"),
        lambda: turns.chain(TENANT, "resp_1", ttl=60),
        lambda: turns.turns_of_items(TENANT, ["msg_1"]),
        lambda: turns.delete(TENANT, "resp_1"),
        lambda: opened(approvals, asked),
        lambda: approvals.get(TENANT, asked.id),
        lambda: approvals.list(TENANT, status=None),
        lambda: vote(approvals, asked, "ann", APPROVE),
        lambda: approvals.expire_due(TENANT),
        lambda: approvals.claim(TENANT, "resp_leg", lease=1),
        lambda: jobs.take([TENANT], limit=1),
        lambda: jobs.add(JOB),
        lambda: jobs.done(JOB),
        lambda: log.append(TENANT, "resp_1", [(0, b"x")], ttl=60),
        lambda: log.read(TENANT, "resp_1", cursor=""),
    ]


@pytest.mark.covers("OPS-4")
async def test_a_server_that_is_not_there_is_told_in_time(tmp_path: Path) -> None:
    async with open_clients(f"unix://{tmp_path}/none.sock") as clients:
        begun = time.monotonic()
        for operation in operations(clients.commands):
            with pytest.raises(StoreUnavailable):
                await operation()
        assert time.monotonic() - begun < 16


@pytest.mark.covers("OPS-4")
async def test_a_server_that_says_nothing_is_told_in_time() -> None:
    with EmbeddedValkey() as server:
        assert server.pid is not None
        async with open_clients(server.url, socket_timeout=0.1) as clients:
            operation = operations(clients.commands)[0]
            await operation()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await operation()
                assert time.monotonic() - begun < 2
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await operation()


async def test_a_lost_connection_is_made_anew(stores: Stores, client: Client) -> None:
    await stores.turns.record(turn("resp_1"), ttl=60)
    await client.client_kill_filter(_type="normal", skipme=True)
    async with open_clients(_url(client)) as other:
        await other.commands.client_kill_filter(_type="normal", skipme=True)
    assert await stores.turns.head(TENANT, "resp_1") is not None


@pytest.fixture
async def full(client: Client) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    yield lambda: client.config_set("maxmemory", 1)
    await client.config_set("maxmemory", 0)


@pytest.mark.covers("OPS-4")
async def test_a_full_server_keeps_all_or_nothing(
    stores: Stores, client: Client, full: Callable[[], Awaitable[object]]
) -> None:
    asked = [approval(quorum=2, timeout=60), approval()]
    await opened(stores.approvals, *asked)
    await stores.turns.record(turn("resp_1"), ttl=60)
    await full()
    before = await everything(client)
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: stores.turns.record(turn("resp_1", item_ids=("m",), items=b"2"), ttl=60),
        lambda: stores.turns.record(turn("resp_2", item_ids=("m",)), ttl=60),
        lambda: opened(stores.approvals, approval(batch_id="resp_2")),
        lambda: vote(stores.approvals, asked[0], "ann", APPROVE),
        lambda: vote(stores.approvals, asked[1], "ann", APPROVE),
        lambda: stores.approvals.abandon(TENANT, "resp_leg", reason="x"),
        lambda: stores.approvals.rewind(TENANT, "resp_leg", by="subject:ann", reason="x"),
        lambda: stores.approvals.extend(TENANT, asked[0].id, actor="ann", seconds=1),
        lambda: stores.approvals.cancel(TENANT, asked[0].id, actor="ann", reason="x"),
        lambda: stores.approvals.supersede(TENANT, asked[0].id, cause="x"),
        lambda: stores.log.append(TENANT, "resp_1", [(0, b"x")], ttl=60),
        lambda: stores.jobs.add(JOB),
        lambda: stores.jobs.add(JOB, delay=5),
    ]
    for write in writes:
        with pytest.raises(StorageFull):
            await write()
    assert sorted(await everything(client)) == sorted(before)
    assert await stores.turns.chain(TENANT, "resp_1", ttl=60) is not None
    assert await stores.turns.delete(TENANT, "resp_1")


async def test_a_full_server_still_expires_and_hands_out_jobs(
    stores: Stores, full: Callable[[], Awaitable[object]]
) -> None:
    asked = approval(timeout=0)
    await stores.jobs.add(JOB)
    await stores.jobs.take([TENANT], limit=1)
    await opened(stores.approvals, asked, approval())
    await full()
    got = await stores.approvals.get(TENANT, asked.id)
    assert got is not None
    assert got.status == "expired"
    assert len(await stores.jobs.take([TENANT], limit=10)) >= 1


async def test_a_read_only_server_is_left_for_the_one_that_takes_writes(
    stores: Stores, client: Client
) -> None:
    await stores.turns.record(turn("resp_1"), ttl=60)
    await execute(client, "REPLICAOF", "127.0.0.1", "1")
    before = await execute(client, "CLIENT", "ID")
    try:
        with pytest.raises(StoreUnavailable):
            await stores.turns.record(turn("resp_2"), ttl=60)
        assert await stores.turns.head(TENANT, "resp_1") is not None
        # The connection was made anew: a name that now means another server would be followed.
        assert await execute(client, "CLIENT", "ID") > before
    finally:
        await execute(client, "REPLICAOF", "NO", "ONE")
    await stores.turns.record(turn("resp_2"), ttl=60)


def test_a_server_whose_disk_is_full_is_full() -> None:
    error = ResponseError("MISCONF Valkey is configured to save RDB snapshots, but")
    assert isinstance(translate(error), StorageFull)


def test_an_error_of_our_own_making_stays_what_it_is() -> None:
    error = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    assert translate(error) is error


@pytest.mark.covers("APPR-5")
async def test_what_somebody_relies_on_is_on_disk_first(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        async with open_clients(server.url) as clients:
            client = clients.commands
            store = RedisApprovalStore(client, RING, fsync=0.8)
            asked = approval()
            await opened(store, asked)
            await vote(store, asked, "ann", APPROVE)
            claimed = await store.claim(TENANT, asked.batch_id, lease=30)
            assert claimed is not None
            assert await store.dispatch(TENANT, asked.batch_id, fence=1)
            calls = (await client.info("commandstats"))["cmdstat_waitaof"]["calls"]
            assert calls == 2


@pytest.mark.covers("APPR-5")
async def test_a_disk_that_takes_too_long_is_no_success(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server:
        async with open_clients(server.url) as clients:
            # The server writes to its disk every tenth of a second: one of many may be in time.
            store = RedisApprovalStore(clients.commands, RING, fsync=0.001)
            asked = [approval() for _ in range(8)]
            await opened(store, *asked)
            late = []
            for one in asked:
                try:
                    await vote(store, one, "ann", APPROVE)
                except StoreUnavailable:
                    late.append(one)
            assert late
            patient = RedisApprovalStore(clients.commands, RING, fsync=0.8)
            again = await vote(patient, late[0], "ann", APPROVE)
            assert again.problem is None
            assert again.approval is not None
            assert again.approval.status == "approved"


async def test_a_server_without_a_file_keeps_what_it_can(client: Client) -> None:
    store = RedisApprovalStore(client, RING, fsync=0.8)
    asked = [approval(), approval()]
    await opened(store, *asked)
    for one in asked:
        result = await vote(store, one, "ann", APPROVE)
        assert result.approval is not None


@pytest.mark.parametrize(
    "url", ["redis+sentinel://h", "redis+sentinel:///main", "redis+sentinel://h:x/m"]
)
async def test_a_sentinel_url_names_hosts_and_a_service(url: str) -> None:
    with pytest.raises(ValueError, match="SERVICE"):
        async with open_clients(url):
            pass


@pytest.mark.parametrize("scheme", ["redis+cluster", "http", ""])
async def test_an_unsupported_url_is_refused_without_being_shown(scheme: str) -> None:
    with pytest.raises(ValueError, match="redis://") as caught:
        async with open_clients(f"{scheme}://:hunter2@host"):
            pass
    assert "hunter2" not in str(caught.value)


class Forgetful:
    """A way to a server that swallows answers: the command was done, the caller cannot know."""

    def __init__(self, target: str, path: Path) -> None:
        self._target = target
        self._path = path
        self.swallow = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        server = await asyncio.start_unix_server(self._serve, self._path)
        async with server, open_clients(f"unix://{self._path}") as clients:
            yield clients.commands

    async def _serve(self, up: asyncio.StreamReader, down: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_unix_connection(self._target)
        with contextlib.suppress(ConnectionError):
            while data := await up.read(1 << 20):
                requests.write(data)
                answer = await answers.read(1 << 20)
                if b"EVALSHA" in data and b"NOSCRIPT" not in answer and self.swallow:
                    self.swallow -= 1
                    break
                down.write(answer)
        for writer in (requests, down):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.covers("APPR-5")
async def test_a_repeated_command_does_nothing_twice(
    stores: Stores, client: Client, tmp_path: Path
) -> None:
    way = Forgetful(_url(client).removeprefix("unix://"), tmp_path / "way.sock")
    asked = [approval(quorum=2), approval()]
    async with way.open() as lossy:
        store, log = RedisApprovalStore(lossy, RING), RedisEventLog(lossy, RING)

        async def lost(call: Awaitable[T]) -> T:
            way.swallow = 1
            result = await call
            assert way.swallow == 0
            return result

        batch = await lost(opened(store, *asked))
        assert batch.open == 2
        first = await lost(vote(store, asked[0], "ann", APPROVE))
        assert first.approval is not None
        assert (first.approval.votes, first.approval.version) == (("ann",), 2)
        await lost(vote(store, asked[1], "ann", APPROVE))
        await lost(vote(store, asked[0], "ben", APPROVE))
        claimed = await lost(store.claim(TENANT, batch.id, lease=30))
        assert claimed is not None
        assert claimed.fence == 1
        assert await lost(store.dispatch(TENANT, batch.id, fence=1))
        assert not await store.dispatch(TENANT, batch.id, fence=1)
        assert await lost(store.finish(TENANT, batch.id, fence=1, status=BatchStatus.DONE))
        other = await lost(opened(store, approval(batch_id="resp_2")))
        assert await lost(store.abandon(TENANT, other.id, reason="x"))
        await lost(log.append(TENANT, "resp_1", [(0, b"a"), (1, b"b")], ttl=60, end=True))
        page = await log.read(TENANT, "resp_1", cursor="")
    assert page is not None
    assert [block for _, block in page.blocks] == [b"a", b"b"]
    jobs = await stores.jobs.take([TENANT], limit=100)
    assert [job.subject for job in jobs if job.kind == "continue"] == [batch.id]
    events = [(job.subject, job.event) for job in jobs if job.kind == "webhook"]
    assert len(set(events)) == len(events) == 7


def _url(client: Client) -> str:
    return "unix://" + str(client.connection_pool.connection_kwargs["path"])
