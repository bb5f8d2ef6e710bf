"""The embedded Valkey (RUN-1, RUN-3)."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from gateway.adapters.redis import embedded
from gateway.adapters.redis.embedded import EmbeddedValkey, EmbeddedValkeyError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.covers("RUN-3")
def test_it_is_a_real_server_that_forgets_without_a_directory() -> None:
    with EmbeddedValkey() as server, Redis.from_url(server.url) as client:
        assert client.set("a", "1")
        assert client.info("memory")["maxmemory_policy"] == "noeviction"
        directory = Path(server.url.removeprefix("unix://")).parent
    assert not directory.exists()


def test_only_this_user_can_open_its_socket() -> None:
    with EmbeddedValkey() as server:
        path = Path(server.url.removeprefix("unix://"))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.covers("RUN-1")
def test_data_survives_a_restart(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with EmbeddedValkey(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"
        assert client.info("persistence")["aof_enabled"] == 1


def test_a_long_directory_gets_a_short_socket(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / ("d" * 120)) as server, Redis.from_url(server.url) as client:
        assert client.ping()


def test_many_run_side_by_side() -> None:
    with EmbeddedValkey() as one, EmbeddedValkey() as two:
        assert one.url != two.url


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path), pytest.raises(EmbeddedValkeyError, match="in use"):
        EmbeddedValkey(tmp_path).__enter__()


@linux_only
@pytest.mark.parametrize("binding", ["kernel", "watch"])
def test_it_ends_when_its_parent_is_killed(
    tmp_path: Path,
    program: Callable[..., "subprocess.Popen[str]"],
    eventually: Callable[..., None],
    is_running: Callable[[int], bool],
    binding: str,
) -> None:
    owner = program("valkey_owner.py", str(tmp_path), binding)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert is_running(pid)
    owner.send_signal(signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    with EmbeddedValkey(tmp_path):  # the lock is free again
        pass


@linux_only
def test_where_the_kernel_binds_no_child_it_still_stops(
    monkeypatch: pytest.MonkeyPatch, is_running: Callable[[int], bool]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with EmbeddedValkey() as server:
        pid = server.pid
        assert pid is not None
        assert is_running(pid)
    assert not is_running(pid)


def test_without_any_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EmbeddedValkeyError, match="install one, or give the URL"):
        EmbeddedValkey().__enter__()


def test_an_old_server_on_path_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.9 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setattr(embedded, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    with pytest.raises(EmbeddedValkeyError, match="version 7"):
        embedded.find_server()
    old.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'\n")
    assert embedded.find_server() == old


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedValkeyError, match="did not start"):
        EmbeddedValkey(tmp_path).__enter__()
