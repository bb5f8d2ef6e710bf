"""The Codex CLI in the transport that it was told to use, and cut off from the network.

What it does is tried in `test_clients.py`, with the other clients.
"""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from gateway.domain.ports import TurnHead
from gateway.stores import open_stores
from tests.clients.catalog import Client, able
from tests.clients.conftest import OFFLINE, Run, all_required
from tests.clients.offline import IMPOSSIBLE
from tests.support.approvals import tenancy
from tests.support.stack import Gateway, Stack

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


async def heads(gateway: Gateway) -> list[TurnHead]:
    """The turns of the gateway's tenant, oldest first."""
    async with open_stores(gateway.settings) as stores:
        found, _ = await stores.turns.recent(gateway.settings.tenants[0].id)
        return list(found)[::-1]


@pytest.mark.covers("API-6", "STATE-1", "CHAIN-1")
@able("chain", only="codex-websocket")
async def test_over_a_websocket_turns_are_prewarmed_and_continue_by_id(
    run: Run, client: Client, stack: Stack
) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        assert "sunny in Paris" in (await run(gateway))["text"]
        warmed, called, ended = await heads(gateway)
    assert (warmed.legs, called.legs, ended.legs) == (0, 1, 1)  # the first one called no model
    assert (called.parent, ended.parent) == (warmed.id, called.id)
    assert not any(head.stored for head in (warmed, called, ended))


@pytest.mark.covers("API-1", "STATE-1")
@able("functions_stateless", only="codex-http", again=True)
async def test_over_http_each_turn_brings_its_whole_history(
    run: Run, client: Client, stack: Stack
) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        await stack.forget()
        assert (await run(gateway))["cities"] == ["Paris"]
        assert [head.parent for head in await heads(gateway)] == [None] * 3
    for request in await stack.requests():
        if request["path"].endswith("/responses"):
            # Fields that the gateway does not know pass (API-3).
            assert "client_metadata" in request["body"]


@pytest.mark.covers("API-6", "STATE-4")
@able("chain", only="codex-websocket", again=True)
async def test_over_a_websocket_it_goes_on_where_nothing_is_kept(
    run: Run, client: Client, stack: Stack
) -> None:
    """Prewarming is refused there (`generate_not_supported`), and so is a chain by id."""
    with stack.gateway(**tenancy(stack, stateless=True, cache="off")) as gateway:
        await stack.forget()
        assert "sunny in Paris" in (await run(gateway))["text"]
    bodies = [one["body"] for one in await stack.requests() if one["path"].endswith("/responses")]
    assert [body["input"][-1]["type"] for body in bodies] == ["message", "function_call_output"]


@pytest.mark.node
@pytest.mark.parametrize("other", [False, True], ids=["the gateway", "anything else"])
def test_a_client_without_network_reaches_the_gateway_alone(
    gateway: Gateway, stack: Stack, other: bool
) -> None:
    here, there = urlsplit(gateway.url), urlsplit(stack.emulator_url if other else gateway.url)
    wanted = [sys.executable, "-c", CONNECT, str(there.hostname), str(there.port)]
    done = subprocess.run(
        [sys.executable, str(OFFLINE), str(here.port), *wanted],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == IMPOSSIBLE and not all_required():
        pytest.skip(done.stderr)
    assert (done.returncode == 0) != other, done.stderr
    assert ("Connection refused" in done.stderr) == other
