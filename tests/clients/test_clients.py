"""Clients against the gateway: what the caller sees, and what the upstream received.

Base URL and key are all that differs from a program that talks to OpenAI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.clients.catalog import CLIENTS, Client, able
from tests.clients.conftest import Run
from tests.support.approvals import decide, executed, marker, pending, tenancy, vote
from tests.support.stack import Gateway, Stack

ASKING: list[dict[str, Any]] = [
    {
        "id": "self",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "approval": {"by": "caller"},
    }
]


@pytest.fixture(scope="module")
def native(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose rules let the caller decide."""
    with stack.gateway(rules=ASKING, **tenancy(stack)) as running:
        yield running


@pytest.fixture(scope="module")
def keeping(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose tenant is stateless, whatever its callers believe."""
    with stack.gateway(**tenancy(stack, stateless=True)) as running:
        yield running


@pytest.fixture(scope="module")
def attaching(stack: Stack) -> Iterator[Gateway]:
    """A gateway that attaches the MCP server to every turn."""
    with stack.gateway(mcp_servers=[stack.mcp_server(attach="always")]) as running:
        yield running


async def turns(stack: Stack) -> list[dict[str, Any]]:
    """The requests for a turn that the upstream received, oldest first."""
    return [one["body"] for one in await stack.requests() if one["path"].endswith("/responses")]


def shape(client: Client, body: dict[str, Any]) -> list[str]:
    """Name the items of an input: role or type, with a star where there is a ciphertext.

    What the client puts before its user's messages is left out. No item is there twice, none is only a reference, and each answer follows what it answers.
    """
    items = body["input"]
    if isinstance(items, str):
        return ["user"]
    ids = [item["id"] for item in items if item.get("id")]
    assert len(set(ids)) == len(ids), ids
    named = [item.get("role") or item["type"] for item in items]
    assert named[: len(client.preamble)] == list(client.preamble)
    assert "item_reference" not in named
    for request, answer in (
        ("mcp_approval_request", "mcp_approval_response"),
        ("function_call", "function_call_output"),
    ):
        key = "approval_request_id" if request.startswith("mcp") else "call_id"
        asked = [item.get("call_id") or item["id"] for item in items if item.get("type") == request]
        given = [item[key] for item in items if item.get("type") == answer]
        assert asked == given
    shown = [
        name + "*" * bool(item.get("encrypted_content"))
        for name, item in zip(named, items, strict=True)
    ]
    return shown[len(client.preamble) :]


def heard(client: Client, users: int) -> str:
    """What the scripted model says of how many messages of users it has seen."""
    users += client.preamble.count("user")
    return f"I see {users} user message{'s' * (users > 1)}:"


FIRST = ["user", "reasoning*", "assistant"]
WEATHER = ["user", "reasoning*", "function_call", "function_call_output"]


@pytest.mark.covers("API-1")
@able("plain")
async def test_a_response_is_created(
    run: Run, client: Client, gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    assert (await run(gateway))["text"] == "hello"
    assert [shape(client, body) for body in await turns(stack)] == [["user"]]


@pytest.mark.covers("API-1")
@able("stream")
async def test_a_stream_is_read_piece_by_piece(
    run: Run, client: Client, gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    pieces = [piece for piece in (await run(gateway))["pieces"] if piece]
    assert pieces == (["a", " b", " c"] if client.pieces else ["a b c"])
    assert [body["stream"] for body in await turns(stack)] == [True]


@pytest.mark.covers("API-1", "STATE-2")
@able("functions", "functions_stateless")
async def test_a_function_is_called_and_its_output_goes_back(
    run: Run, client: Client, scenario: str, gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    seen = await run(gateway)
    assert seen["cities"] == ["Paris"]
    assert re.match(r"\w+ returned: .*sunny", seen["text"], re.DOTALL)
    assert heard(client, 1) in seen["recalled"]
    assert "reasoning: 1" in seen["recalled"]
    if scenario == "functions_stateless":
        bodies = await turns(stack)
        assert [body["store"] for body in bodies] == [False] * 3
        assert [shape(client, body) for body in bodies] == [
            ["user"],
            WEATHER,
            [*WEATHER, "assistant", "user"],
        ]


@pytest.mark.covers("STATE-1", "STATE-2", "STATE-3")
@able("functions", "held", again=True)
async def test_a_client_that_believes_in_storing_works_where_nothing_is_stored(
    run: Run, client: Client, scenario: str, keeping: Gateway, stack: Stack
) -> None:
    await stack.forget()
    word = marker()
    async with anyio.create_task_group() as tasks:
        if scenario == "held":
            tasks.start_soon(decide, keeping, word)
        seen = await run(keeping, word)
    assert heard(client, 1) in seen["recalled"]
    bodies = await turns(stack)
    assert [body["store"] for body in bodies] == [False] * 3
    assert not any("previous_response_id" in body for body in bodies)
    if scenario == "functions":
        assert [shape(client, body) for body in bodies] == [
            ["user"],
            WEATHER,
            [*WEATHER, "assistant", "user"],
        ]
    else:
        assert "mcp calls: 1" in seen["recalled"]
        assert [shape(client, body)[0] for body in bodies] == ["user"] * 3


@pytest.mark.covers("APPR-2", "APPR-3", "MCP-1")
@able("held", "held_stateless")
async def test_a_call_is_held_on_the_stream_until_somebody_else_approves_it(
    run: Run,
    client: Client,
    scenario: str,
    gateway: Gateway,
    attaching: Gateway,
    stack: Stack,
) -> None:
    await stack.forget()
    gateway = attaching if client.attached else gateway
    word = marker()
    seen: dict[str, Any] = {}

    async def work() -> None:
        seen.update(await run(gateway, word))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        (approval,) = await pending(gateway, word)
        assert await executed(stack, word) == []
        assert (await vote(gateway, approval)).status_code == 200
    assert len(await executed(stack, word)) == 1
    assert "Created issue" in seen["text"]
    assert word in seen["text"]

    first, continued, later = await turns(stack)
    assert shape(client, first) == ["user"]
    assert continued["stream"] is True
    stateless = scenario == "held_stateless"
    if stateless:
        made = ["mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "mcp_call"]
        assert shape(client, continued) == ["user", *made[:3]]
        again = [kind for kind in made if kind.replace("response", "request") in client.repeats]
        assert shape(client, later) == ["user", *again, "assistant", "user"]
    kept = int(not stateless or "mcp_call" in client.repeats)
    assert heard(client, 1) in seen["recalled"]
    assert f"mcp calls: {kept}" in seen["recalled"]


@pytest.mark.covers("APPR-1", "MCP-1")
@able("native", "native_stateless")
async def test_the_caller_is_asked_and_answers(
    run: Run, client: Client, scenario: str, native: Gateway, stack: Stack
) -> None:
    await stack.forget()
    word = marker()
    seen = await run(native, word)
    assert seen["asked"] == [{"title": word}]
    assert word in seen["text"]
    assert len(await executed(stack, word)) == 1
    assert heard(client, 1) in seen["recalled"]
    assert "mcp calls: 1" in seen["recalled"]
    if scenario == "native_stateless":
        assert [shape(client, body)[-1] for body in await turns(stack)] == [
            "user",
            "mcp_approval_response",
            "user",
        ]


@pytest.mark.covers("STATE-1", "STATE-2", "CHAIN-1")
@able("replay", "chain", without=("codex-websocket-chain",))
async def test_three_turns_without_storing_are_one_history(
    run: Run, client: Client, gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    seen = await run(gateway)
    assert seen["texts"][:2] == ["first", "second"]
    assert heard(client, 2) in seen["texts"][2]
    assert "reasoning: 2" in seen["texts"][2]
    bodies = await turns(stack)
    assert [body["store"] for body in bodies] == [False] * 3
    assert not any("previous_response_id" in body for body in bodies)
    assert [shape(client, body) for body in bodies] == [
        ["user"],
        [*FIRST, "user"],
        [*FIRST, *FIRST, "user"],
    ]


@pytest.mark.covers("STATE-3")
@pytest.mark.parametrize(
    ("client", "scenario"),
    [pytest.param(client, "texts") for client in CLIENTS if client.id == "langchain-openai"],
    ids=["langchain-openai"],
)
async def test_reasoning_is_put_back_for_a_client_that_keeps_texts_alone(
    run: Run, client: Client, gateway: Gateway, stack: Stack
) -> None:
    await stack.forget()
    word = marker()
    seen = await run(gateway, word)
    assert seen["texts"][:2] == [f"one {word}", f"two {word}"]
    assert "reasoning: 2" in seen["texts"][2]
    assert [shape(client, body) for body in await turns(stack)] == [
        ["user"],
        [*FIRST, "user"],
        [*FIRST, *FIRST, "user"],
    ]
