"""The Codex CLI through the gateway, over HTTP and WebSocket: it never stores.

Over HTTP it replays its own items; over a WebSocket it prewarms, and then continues by id.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Npm
from tests.docs.markdown import DOCS, blocks, section
from tests.support.stack import Gateway, Stack

VERSION = "0.169.0"

AS_DOCUMENTED = next(
    block.text
    for block in blocks(section((DOCS / "api.md").read_text(), "## Addresses and credentials"))
    if block.language == "toml"
)

QUIET = """
request_max_retries = 0
stream_max_retries = 0

[analytics]
enabled = false

[feedback]
enabled = false

[otel]
exporter = "none"
"""

Run = Callable[..., str]

pytestmark = pytest.mark.node


@pytest.fixture(params=["http", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def codex(npm: Npm, gateway: Gateway, tmp_path: Path, transport: str) -> Run:
    program = npm.install("@openai/codex", VERSION, megabytes=404) / ".bin" / "codex"
    home = tmp_path / "home"
    (home / ".codex").mkdir(parents=True)
    settings = AS_DOCUMENTED.replace("https://gateway.example.com", gateway.url)
    settings += "supports_websockets = true\n" if transport == "websocket" else ""
    first = 'model = "gpt-5.5"\ncheck_for_update_on_startup = false\n'
    (home / ".codex" / "config.toml").write_text(first + settings + QUIET)
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [str(program), "exec", *arguments],
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "CODEX_HOME": str(home / ".codex"),
                "GATEWAY_KEY": gateway.keys["caller"],
                "NO_PROXY": "127.0.0.1",
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def _turns(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["body"] for one in requests if one["path"].endswith("/responses")]


async def _most_sockets(gateway: Gateway, done: asyncio.Event) -> float:
    """Watch how many sockets are open; over HTTP there is never one."""
    most = 0.0
    async with gateway.http() as client:
        while not done.is_set():
            lines = (await client.get("/metrics")).text.splitlines()
            counts = [one for one in lines if one.startswith("gateway_websockets_open{")]
            most = max([most, *(float(one.split(" ")[1]) for one in counts)])
            await asyncio.sleep(0.02)
    return most


@pytest.mark.covers("API-1", "API-6", "STATE-1")
async def test_a_session_runs_and_is_resumed(
    codex: Run, stack: Stack, gateway: Gateway, transport: str
) -> None:
    await stack.forget()
    done = asyncio.Event()
    opened = asyncio.ensure_future(_most_sockets(gateway, done))

    async def run(*arguments: str) -> str:
        return await asyncio.to_thread(codex, *arguments)

    first = await run("--skip-git-repo-check", "-s", "read-only", "/echo the first answer")
    assert "the first answer" in first
    again = await run("resume", "--last", "--skip-git-repo-check", "/echo the second answer")
    assert "the second answer" in again

    done.set()
    assert (await opened > 0) == (transport == "websocket")

    first_turn, *_, last_turn = _turns(await stack.requests())
    for turn in (first_turn, last_turn):
        assert turn["store"] is False
        assert turn["stream"] is True
        assert turn["include"] == ["reasoning.encrypted_content"]
        assert "client_metadata" in turn  # fields that the gateway does not know pass (API-3)
    said = [item for item in last_turn["input"] if item.get("role") == "assistant"]
    assert "the first answer" in str(said)
