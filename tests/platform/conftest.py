"""What the tests of the platform share."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HASH = "sha256:" + "0" * 64

COMPLETE = f"""
[redis]
url = "embedded"
directory = "state"

[encryption]
keys = [{{ id = "k1", value = "env:KEY_1" }}]

[[upstreams]]
name = "sweden"
kind = "azure"
base_url = "https://name.openai.azure.com/openai/v1/"
auth = {{ type = "api_key", value = "env:PROVIDER_KEY" }}

[[mcp_servers]]
label = "github"
url = "https://mcp.example.com/github"
headers = {{ Authorization = "env:GITHUB_AUTH" }}

[[rules]]
id = "reads"
match = {{ server = "github", tool = "search_*" }}
effect = "allow"

[[rules]]
id = "writes"
match = {{ server = "github", tool = "create_*" }}
effect = "ask"
reason = "It changes what others see."
approval = {{ approvers = ["role:approver"], quorum = 1, timeout = "30m" }}

[[api_keys]]
id = "web"
tenant = "acme"
subject = "svc:web"
roles = ["caller"]
hash = "{HASH}"

[[api_keys]]
id = "ann"
tenant = "acme"
subject = "user:ann"
roles = ["approver"]
groups = ["security"]
hash = "{HASH}"
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the complete configuration with texts replaced and appended; return its file."""

    def write(*changes: tuple[str, str], more: str = "") -> Path:
        text = COMPLETE
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "gateway.toml"
        path.write_text(text + more)
        return path

    return write


PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the developer's shell has set."""
    for name in list(os.environ):
        if name.startswith(("GATEWAY_", "OPENAI_", "AZURE_", "PROMETHEUS_", "REDIS_URL")):
            monkeypatch.delenv(name)


@pytest.fixture
def program() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start programs of this directory; whatever is left of them is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / name), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    return eventually


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def is_running() -> Callable[[int], bool]:
    def running(pid: int) -> bool:
        """A zombie without a reaping init does not count."""
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] != "Z"

    return running
