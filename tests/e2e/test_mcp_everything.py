"""The gateway with a real MCP server of other people: `server-everything` from npm."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.approvals import (
    create,
    marker,
    output_types,
    pending,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import Gateway, Stack

PACKAGE = "@modelcontextprotocol/server-everything"
VERSION = "2026.8.31"
TOOL = {"type": "mcp", "server_label": "everything"}


def _installed() -> Path:
    """Install the package into a cache outside the checkout, once per machine."""
    npm = require("npm")
    cache = Path.home() / ".cache" / "gateway-tests" / f"everything-{VERSION}"
    main = cache / "node_modules" / PACKAGE / "dist" / "index.js"
    if main.exists():
        return main
    cache.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(cache)]
    done = subprocess.run(
        [*command, f"{PACKAGE}@{VERSION}"], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        reason = f"npm cannot install {PACKAGE}"
        if os.environ.get("GATEWAY_TEST_REQUIRE") == "all":
            pytest.fail(reason + ": " + done.stderr[-500:])
        pytest.skip(reason)
    return main


@pytest.fixture(scope="module")
def everything() -> Iterator[str]:
    """The running server's address."""
    node, main = require("node"), _installed()
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [node, str(main), "streamableHttp"],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:  # it says where it listens, or ends
            if str(port) in line:
                break
        assert process.poll() is None, "the server did not start"
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(10)
        if process.stderr is not None:
            process.stderr.close()


@pytest.fixture(scope="module")
def gateway(stack: Stack, everything: str) -> Iterator[Gateway]:
    """A gateway with that server registered, where `echo` needs a person."""
    server = {"label": "everything", "url": everything}
    rules = [
        {"id": "ask", "match": {"server": "everything", "tool": "echo"}, "effect": "ask"},
        {"id": "sum", "match": {"server": "everything", "tool": "get-sum"}, "effect": "allow"},
    ]
    with stack.gateway(mcp_servers=[server], rules=rules, **tenancy(stack)) as running:
        yield running


@pytest.mark.node
@pytest.mark.covers("MCP-1", "MCP-4")
async def test_its_tools_are_listed_and_what_rules_allow_runs(gateway: Gateway) -> None:
    answer = await create(gateway, '/call everything.get-sum {"a": 19, "b": 23}', tools=[TOOL])
    listing = answer.json()["output"][0]
    assert listing["type"] == "mcp_list_tools"
    assert {"echo", "get-sum"} <= {tool["name"] for tool in listing["tools"]}
    assert "42" in text_of(answer.json())


@pytest.mark.node
@pytest.mark.covers("APPR-1", "APPR-3")
async def test_a_call_is_held_and_runs_when_it_is_approved(gateway: Gateway) -> None:
    word = marker()
    text = f'/call everything.echo {{"message": "{word}"}}'
    held = (await create(gateway, text, tools=[TOOL])).json()
    assert held["status"] == "in_progress"
    (approval,) = await pending(gateway, word)
    await vote(gateway, approval)
    done = await settled(gateway, held["id"])
    assert output_types(done)[-2:] == ["mcp_call", "message"]
    assert word in text_of(done)
