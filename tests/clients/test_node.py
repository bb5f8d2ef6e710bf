"""openai-node against the gateway: only base URL and key are changed (API-1)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Npm
from tests.conftest import require
from tests.support.stack import Gateway, Stack

SCRIPT = Path(__file__).with_name("openai_node.mjs")

Run = Callable[[str], dict[str, Any]]

pytestmark = pytest.mark.node


@pytest.fixture
def node(npm: Npm, gateway: Gateway) -> Run:
    modules = npm.locked("openai-node")

    def run(scenario: str) -> dict[str, Any]:
        done = subprocess.run(
            [require("node"), str(SCRIPT), scenario],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                "PATH": os.environ["PATH"],
                "CLIENT_MODULES": str(modules),
                "GATEWAY_URL": gateway.url,
                "GATEWAY_KEY": gateway.keys["caller"],
                "GATEWAY_APPROVER_KEY": gateway.keys["approver"],
            },
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.covers("API-1")
def test_a_response_is_created_and_retrieved(node: Run) -> None:
    assert node("plain") == {"text": "hello", "status": "completed", "same": True}


@pytest.mark.covers("API-1")
def test_a_stream_is_read_to_its_end(node: Run) -> None:
    seen = node("stream")
    assert seen["types"][0] == "response.created"
    assert seen["types"][-1] == "response.completed"
    assert seen["numbers"] == list(range(len(seen["numbers"])))


@pytest.mark.covers("API-1", "APPR-2", "APPR-3")
async def test_a_held_turn_is_one_response_on_one_stream(node: Run, stack: Stack) -> None:
    await stack.forget()
    seen = node("approval")
    assert seen["decided"] == "approved"
    assert seen["status"] == "completed"
    assert seen["types"].count("response.created") == 1
    assert seen["types"].count("response.completed") == 1
    assert seen["numbers"] == list(range(len(seen["numbers"])))
    assert seen["output"] == ["mcp_list_tools", "mcp_approval_request", "mcp_call", "message"]
    assert "Created issue" in seen["text"]
    assert [call["arguments"]["title"] for call in await stack.calls()] == ["From Node"]


@pytest.mark.covers("API-5", "CHAIN-1")
def test_an_error_is_the_class_that_the_client_has_for_it(node: Run) -> None:
    assert node("error") == {
        "name": "NotFoundError",
        "status": 404,
        "code": "previous_response_not_found",
    }
