"""`gateway dev` from outside: what it prints works, and nothing is left of it (RUN-1, RUN-2)."""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from gateway.cli.dev import State, dev_settings, real_upstream
from gateway.domain.registry import ApiKeyAuth, EntraAuth
from gateway.domain.rules import Effect

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).parents[2]


class Dev:
    """A running `gateway dev`: what it printed, and the processes that belong to it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[str] = []
        self._all_printed = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "while read -r id body" in line:
                self._all_printed.set()
        self._all_printed.set()

    def await_banner(self) -> None:
        assert self._all_printed.wait(150)
        assert self.process.poll() is None, "\n".join(self.lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def key(self, name: str) -> str:
        found = re.search(rf"{name} key\s+(gw_\S+)", self.text)
        assert found, self.text
        return found.group(1)

    @property
    def commands(self) -> list[str]:
        return [line for line in self.lines if line.startswith("curl ")]

    @property
    def descendants(self) -> set[int]:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    status = (entry / "stat").read_text()
                except OSError:
                    continue
                parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
        found = {self.process.pid}
        while True:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            if not more:
                return found - {self.process.pid}
            found |= more


@contextmanager
def running(state: Path, port: int = 0) -> Iterator[Dev]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "dev", "--port", str(port), "--state-dir", str(state)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ},
    )
    dev = Dev(process)
    try:
        yield dev
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        dev._reader.join(60)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.covers("RUN-1", "APPR-3")
@linux_only
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.skipif(shutil.which("python3") is None, reason="needs python3 on PATH")
def test_the_printed_lines_work_when_pasted(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    def paste(line: str) -> str:
        return subprocess.run(
            ["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    with running(tmp_path / "state") as dev:
        dev.await_banner()
        turn, pending, approve = dev.commands
        with subprocess.Popen(["sh", "-c", turn], stdout=subprocess.PIPE, text=True) as caller:
            eventually(lambda: '"create_issue"' in paste(pending))
            paste(approve)
            try:
                streamed, _ = caller.communicate(timeout=60)
            finally:
                caller.kill()
    assert streamed.count("event: response.created") == 1
    assert streamed.count("event: response.completed") == 1
    assert "Created issue" in streamed


@pytest.mark.covers("RUN-1", "APPR-10")
@linux_only
def test_the_printed_console_lets_the_printed_approver_in(tmp_path: Path) -> None:
    with running(tmp_path / "state") as dev:
        dev.await_banner()
        address = re.search(r"console\s+(http://127\.0\.0\.1:\d+/console) ", dev.text)
        assert address, dev.text
        assert "sign in with the approver key" in dev.text
        with httpx2.Client(trust_env=False, follow_redirects=True) as browser:
            page = browser.get(address.group(1))
            assert "Sign in" in page.text
            answer = browser.post(
                str(page.url),
                data={"key": dev.key("approver")},
                headers={"sec-fetch-site": "same-origin"},
                follow_redirects=False,
            )
    assert answer.status_code == 303
    assert "__Host-gateway=" in answer.headers["set-cookie"]


@linux_only
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_ctrl_c_with_a_held_stream_is_quick_and_quiet(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    with running(tmp_path / "state") as dev:
        dev.await_banner()
        turn = ["sh", "-c", "exec " + dev.commands[0]]
        with subprocess.Popen(turn, stdout=subprocess.PIPE, text=True) as caller:
            stream = caller.stdout
            assert stream is not None
            eventually(lambda: "mcp_approval_request" in stream.readline())
            dev.process.send_signal(signal.SIGINT)
            assert dev.process.wait(60) == 0
            caller.kill()
    assert "Traceback" not in dev.text


@pytest.mark.covers("RUN-1")
@linux_only
def test_ctrl_c_stops_everything_quickly_and_quietly(
    tmp_path: Path,
    eventually: Callable[..., None],
    is_running: Callable[[int], bool],
) -> None:
    with running(tmp_path / "state") as dev:
        dev.await_banner()
        children = dev.descendants
        assert len(children) >= 3
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(60) == 0
        eventually(lambda: not any(map(is_running, children)))
    assert "Traceback" not in dev.text


@pytest.mark.covers("RUN-1")
@linux_only
def test_nothing_is_left_when_it_is_killed(
    tmp_path: Path,
    eventually: Callable[..., None],
    is_running: Callable[[int], bool],
) -> None:
    with running(tmp_path / "state") as dev:
        dev.await_banner()
        children = dev.descendants
        dev.process.kill()
        eventually(lambda: not any(map(is_running, children)))


@linux_only
def test_ctrl_c_while_it_starts_leaves_nothing(
    tmp_path: Path,
    eventually: Callable[..., None],
    is_running: Callable[[int], bool],
) -> None:
    with running(tmp_path / "state") as dev:
        eventually(lambda: len(dev.descendants) >= 2)
        children = dev.descendants
        dev.process.send_signal(signal.SIGINT)
        assert dev.process.wait(60) == 0
        eventually(lambda: not any(map(is_running, children)))
    assert "Traceback" not in dev.text


def test_keys_stay_the_same_and_only_this_user_can_read_them(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        with running(tmp_path / "state") as dev:
            dev.await_banner()
            seen.append((dev.key("caller"), dev.key("approver")))
            dev.process.send_signal(signal.SIGINT)
            dev.process.wait(60)
    assert seen[0] == seen[1]
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for name in ("caller.key", "approver.key", "encryption.key"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600


def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running(tmp_path / "state", port) as dev:
            assert dev.process.wait(60) == 1
            dev._reader.join(60)
    assert dev.lines[0].startswith(f"gateway dev: port {port} cannot be used")
    assert len(dev.lines) == 1


@pytest.mark.covers("RUN-2")
@pytest.mark.parametrize(
    ("environment", "name", "kind", "base_url", "auth"),
    [
        (
            {"AZURE_OPENAI_ENDPOINT": "https://n.openai.azure.com/", "AZURE_OPENAI_API_KEY": "k"},
            "azure",
            "azure",
            "https://n.openai.azure.com/openai/v1/",
            ApiKeyAuth,
        ),
        (
            {"AZURE_OPENAI_ENDPOINT": "https://n/openai/v1", "OPENAI_API_KEY": "k"},
            "azure",
            "azure",
            "https://n/openai/v1/",
            EntraAuth,
        ),
        ({"OPENAI_API_KEY": "k"}, "openai", "openai", "https://api.openai.com/v1/", ApiKeyAuth),
        (
            {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1"},
            "openai",
            "compatible",
            "http://127.0.0.1:1/v1",
            ApiKeyAuth,
        ),
    ],
)
def test_a_real_provider_takes_the_emulators_place(
    tmp_path: Path, environment: dict[str, str], name: str, kind: str, base_url: str, auth: type
) -> None:
    found = real_upstream(environment)
    assert found is not None
    state = State(tmp_path)
    settings = dev_settings(
        state, port=1, redis_url="env:REDIS_URL", upstream=found, mcp_url="http://127.0.0.1:1/mcp"
    )
    (upstream,) = settings.to_upstreams()
    assert (upstream.name, upstream.kind, upstream.base_url) == (name, kind, base_url)
    assert isinstance(upstream.auth, auth)


@pytest.mark.covers("RUN-2")
def test_without_a_provider_in_the_environment_it_is_emulated() -> None:
    assert real_upstream({"OPENAI_BASE_URL": "http://x"}) is None


@pytest.mark.parametrize(
    ("tool", "effect"),
    [
        ("search_issues", Effect.ALLOW),
        ("create_issue", Effect.ASK),
        ("send_payment", Effect.ASK),
        ("delete_issue", Effect.DENY),
    ],
)
def test_its_rules_show_every_effect(tmp_path: Path, tool: str, effect: Effect) -> None:
    settings = dev_settings(
        State(tmp_path),
        port=1,
        redis_url="embedded",
        upstream=real_upstream({"OPENAI_API_KEY": "k"}) or {},
        mcp_url="http://127.0.0.1:1/mcp",
    )
    assert settings.to_rule_set().decide("github", tool).effect is effect
