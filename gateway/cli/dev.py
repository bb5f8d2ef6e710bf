"""`gateway dev`: everything on this machine, and nothing left of it afterwards (RUN-1, RUN-2)."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.adapters.crypto import new_key as new_encryption_key
from gateway.adapters.redis.embedded import EmbeddedValkey, EmbeddedValkeyError
from gateway.cli import banner
from gateway.domain.identity import hash_key, new_key
from gateway.settings import Settings

HOST = "127.0.0.1"
_START_SECONDS = 120.0
_READY = re.compile(r"ready on (http://\S+)")
_MCP_AUTH = "GATEWAY_DEV_MCP_AUTH"
_EMULATOR_KEY = "GATEWAY_DEV_EMULATOR_KEY"


class DevError(Exception):
    """The development setup cannot start; the message says what to do."""


def run_dev(*, port: int, state_dir: Path | None) -> int:
    """Start everything, serve until Ctrl-C, stop everything; return a status."""
    try:
        with ExitStack() as stack:
            _run(stack, port, state_dir or default_state_dir())
    except (DevError, EmbeddedValkeyError) as exc:
        print(f"gateway dev: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    return 0


def default_state_dir() -> Path:
    """Return `mcp-gateway` in XDG_STATE_HOME, else in `~/.local/state`."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "mcp-gateway"


def _run(stack: ExitStack, port: int, directory: Path) -> None:
    listener = stack.enter_context(_listen(port))
    state = State(directory)
    redis = _start_redis(stack, state)
    mcp_token, emulator_key = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    upstream = real_upstream(os.environ)
    # Each child gets the one secret that is its own: that the emulator reaches the demo server
    # proves that the gateway gave it the header.
    children = [
        _Child.start(stack, state, "demo-mcp", [], {"DEMO_MCP_TOKEN": mcp_token}),
    ]
    if upstream is None:
        options = ["--api-key", f"env:{_EMULATOR_KEY}", "--chunk-delay", "0.02"]
        emulator = _Child.start(stack, state, "emulator", options, {_EMULATOR_KEY: emulator_key})
        children.append(emulator)
    from gateway.server.process import serve  # while the children start: it imports much

    mcp_url, *others = [child.url() for child in children]
    os.environ[_MCP_AUTH] = f"Bearer {mcp_token}"
    os.environ[_EMULATOR_KEY] = emulator_key
    settings = dev_settings(
        state,
        port=listener.getsockname()[1],
        redis_url=redis.url,
        upstream=upstream or _emulated(others[0]),
        mcp_url=f"{mcp_url}/mcp",
    )
    shown = banner.Shown(
        gateway=f"http://{HOST}:{settings.server.port}",
        provider=settings.upstreams[0].base_url,
        emulated=upstream is None,
        redis=redis.shown,
        mcp=settings.mcp_servers[0].url,
        state=str(directory),
        caller_key=state.api_key("caller"),
        approver_key=state.api_key("approver"),
        model=os.environ.get("OPENAI_MODEL", "gpt-4.1"),
    )
    serve(settings, listener, on_ready=lambda: banner.show(shown))


def _listen(port: int) -> socket.socket:
    from gateway.server.process import bind

    try:
        return bind(HOST, port)
    except OSError as exc:
        raise DevError(
            f"port {port} cannot be used ({exc.strerror}); is another gateway running? "
            "Choose one with --port"
        ) from None


class State:
    """What stays the same across restarts: keys and data, readable by this user alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise DevError(f"{directory}: {exc.strerror}; choose another --state-dir") from None

    def api_key(self, name: str) -> str:
        """Return the API key of that id, made on first use."""
        return self._keep(f"{name}.key", new_key(name))

    def encryption_key_file(self) -> Path:
        """Return the file of the encryption key, made on first use."""
        self._keep("encryption.key", new_encryption_key())
        return self.directory / "encryption.key"

    def _keep(self, name: str, fresh: str) -> str:
        path = self.directory / name
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return path.read_text(encoding="ascii").strip()
        with os.fdopen(handle, "w") as file:
            file.write(fresh + "\n")
        return fresh


@dataclass(frozen=True, slots=True)
class _Redis:
    url: str
    shown: str


def _start_redis(stack: ExitStack, state: State) -> _Redis:
    if os.environ.get("REDIS_URL"):
        return _Redis("env:REDIS_URL", "REDIS_URL")
    server = stack.enter_context(EmbeddedValkey(state.directory / "valkey"))
    return _Redis(server.url, "embedded Valkey")


class _Child:
    """A gateway command in a process that ends with this one."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    @classmethod
    def start(
        cls,
        stack: ExitStack,
        state: State,
        command: str,
        options: list[str],
        environment: Mapping[str, str],
    ) -> _Child:
        """Start a command on a free port of loopback; it is stopped with the stack."""
        log = state.directory / f"{command}.log"
        arguments = [command, "--host", HOST, "--port", "0", *options]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  # this program itself, no shell
                [sys.executable, "-m", "gateway.cli._child", str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                process_group=0,  # Ctrl-C is for the parent, which drains and then stops us
            )
        child = cls(command, process, log)
        stack.callback(child.stop)
        return child

    def url(self) -> str:
        """Wait until it is ready and return its address.

        Raises:
            DevError: It ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            found = _READY.search(self._written())
            if found:
                return found.group(1).rstrip("/")
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        tail = self._written().strip().splitlines()[-5:]
        raise DevError("\n  ".join([f"{self._name} did not start; see {self._log}", *tail]))

    def _written(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End it, by force if it takes more than two seconds."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
            return
        self._process.kill()
        self._process.wait()


def real_upstream(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the upstream that the environment names, if any (RUN-2)."""
    endpoint = environment.get("AZURE_OPENAI_ENDPOINT", "").rstrip("/")
    if endpoint:
        keyed = bool(environment.get("AZURE_OPENAI_API_KEY"))
        key_auth = {"type": "api_key", "value": "env:AZURE_OPENAI_API_KEY"}
        base = endpoint if endpoint.endswith("/openai/v1") else f"{endpoint}/openai/v1"
        auth = key_auth if keyed else {"type": "entra"}
        return {"name": "azure", "kind": "azure", "base_url": f"{base}/", "auth": auth}
    if environment.get("OPENAI_API_KEY"):
        base_url = environment.get("OPENAI_BASE_URL") or "https://api.openai.com/v1/"
        official = base_url.startswith("https://api.openai.com/")
        return {
            "name": "openai",
            "kind": "openai" if official else "compatible",
            "base_url": base_url,
            "auth": {"type": "api_key", "value": "env:OPENAI_API_KEY"},
        }
    return None


def _emulated(url: str) -> dict[str, Any]:
    return {
        "name": "emulator",
        "kind": "compatible",
        "base_url": f"{url}/v1/",
        "auth": {"type": "api_key", "value": f"env:{_EMULATOR_KEY}"},
    }


def dev_settings(
    state: State, *, port: int, redis_url: str, upstream: dict[str, Any], mcp_url: str
) -> Settings:
    """Make the settings: one of each kind of rule, a caller and an approver."""
    values: dict[str, Any] = {
        "server": {"host": HOST, "port": port, "lame_duck": 0, "grace_period": 2},
        "redis": {"url": redis_url, "allow_volatile": True},
        "encryption": {"keys": [{"id": "dev", "value": f"file:{state.encryption_key_file()}"}]},
        # A receiver to try webhooks with runs on this machine, too.
        "webhook_delivery": {"allow_networks": ["127.0.0.0/8", "::1/128"]},
        "upstreams": [upstream],
        "mcp_servers": [
            {
                "label": "github",
                "url": mcp_url,
                "description": "A demo issue tracker with a till.",
                "headers": {"Authorization": f"env:{_MCP_AUTH}"},
                "trust": "reviewed",
            }
        ],
        "rules": _RULES,
        "tenants": [{"id": "dev"}],
        "api_keys": [
            _key_entry(state, "caller", "svc:dev", "caller"),
            _key_entry(state, "approver", "user:you", "admin"),
        ],
        "console": {
            "playground": True,
            "suggestions": _EMULATED if upstream["name"] == "emulator" else _REAL,
        },
    }
    return Settings(**values)


_EMULATED = [
    {"title": "Search: a rule allows it", "text": '/call github.search_issues {"query": "login"}'},
    {
        "title": "Create an issue: you decide",
        "text": '/call github.create_issue {"title": "Say hello"}',
    },
    {"title": "What do you remember?", "text": "/recall"},
]
_REAL = [
    {"title": "Say hello", "text": "Say hello in three languages."},
    {"title": "Count", "text": "Count from one to twenty, a number a line."},
    {"title": "What do you remember?", "text": "What did I ask before this?"},
]
_ASK = {"approvers": ["role:approver"], "quorum": 1, "timeout": "30m", "allow_self": True}
"""Here one person tries both sides; elsewhere nobody decides their own requests."""
_RULES: list[dict[str, Any]] = [
    {"id": "reads", "match": {"server": "github", "tool": "search_*"}, "effect": "allow"},
    {
        "id": "writes",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "approval": _ASK,
        "reason": "It changes what others see.",
    },
    {
        "id": "payments",
        "match": {"server": "github", "tool": "send_payment"},
        "effect": "ask",
        "approval": _ASK,
        "reason": "It sends money.",
    },
    {
        "id": "no-deletes",
        "match": {"server": "github", "tool": "delete_*"},
        "effect": "deny",
        "reason": "Nothing is deleted here.",
    },
]


def _key_entry(state: State, name: str, subject: str, role: str) -> dict[str, Any]:
    return {
        "id": name,
        "tenant": "dev",
        "subject": subject,
        "roles": [role],
        "hash": hash_key(state.api_key(name)),
    }
