"""Failover by real Sentinels: the master dies under load, a replica of it takes over (OPS-2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from gateway.adapters.redis.embedded import find_server
from tests.reliability.support import (
    HOST,
    Ledger,
    Process,
    Site,
    Valkey,
    amount,
    free_port,
    report,
)

pytestmark = [pytest.mark.timeout(400)]

SERVICE = "gateway"


class Sentinel(Process):
    """One of three that must agree, by two, that the master is gone."""

    def __init__(self, directory: Path, master: Valkey) -> None:
        self.port = free_port()
        home = directory / f"sentinel-{self.port}"
        home.mkdir()
        config = home / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind {HOST}\ndir {home}\n"
            f"sentinel monitor {SERVICE} {HOST} {master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        super().__init__([str(find_server()), str(config), "--sentinel"], home / "log")


class Trio:
    """A master, two replicas of it, and three Sentinels."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        # What a master that is cut off acknowledges would be lost: it must not.
        careful = {"min_replicas_to_write": "1", "min_replicas_max_lag": "2"}
        self.servers = [Valkey(directory, f"valkey-{n}", **careful) for n in range(3)]
        for server in self.servers:
            stack.callback(server.stop)
            server.start().ready()
        first = self.servers[0]
        for server in self.servers[1:]:
            assert server.call("REPLICAOF", HOST, str(first.port)) == "OK"
        first.until(lambda: "connected_slaves:2" in first.call("INFO", "replication"), "replicas")
        self.sentinels = [Sentinel(directory, first) for _ in range(3)]
        for sentinel in self.sentinels:
            stack.callback(sentinel.stop)
            sentinel.start()
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/{SERVICE}"

    @property
    def master(self) -> Valkey:
        """The server that says it is the master and takes writes."""
        return next(server for server in self.servers if self._is_master(server))

    def _is_master(self, server: Valkey) -> bool:
        return server.running and "role:master" in server.call("INFO", "replication")


def _is_replica(server: Valkey) -> bool:
    return "role:slave" in server.call("INFO", "replication")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    with ExitStack() as stack:
        yield Trio(stack, tmp_path_factory.mktemp("trio"))


@pytest.fixture(scope="module")
def module_site(trio: Trio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    redis = {"url": trio.url}
    with Site.start(tmp_path_factory.mktemp("site"), redis=redis) as running:
        yield running


@pytest.mark.covers("OPS-2", "APPR-4", "APPR-5")
async def test_a_failover_loses_and_doubles_nothing(site: Site, trio: Trio) -> None:
    site.up("one", "two")
    ledger = Ledger(site)
    failovers = amount(1, long=5)
    async with ledger.load(6):
        for _ in range(failovers):
            await ledger.until(15)
            old = trio.master
            old.kill()
            await ledger.until(20, seconds=60)
            old.start().ready()  # comes back as a replica of the new master
            old.until(partial(_is_replica, old), "demoted")
    counted = await ledger.check()
    gap = round(ledger.longest_gap(), 2)
    report("master killed, Sentinel failover", failovers=failovers, longest_gap=gap, **counted)
