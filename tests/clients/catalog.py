"""Clients that are run against the gateway, and what each can do of itself.

Each has a script in `scripts/`, written as its users write, and a lock in `locks/`. The tables of
docs/compatibility.md are held against this list, and this list against the tests that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import pytest

SCENARIOS = {
    "plain": "Plain",
    "stream": "Stream",
    "functions": "Functions",
    "functions_stateless": "Functions, stateless",
    "held": "Held approval",
    "held_stateless": "Held approval, stateless",
    "native": "Own approval",
    "native_stateless": "Own approval, stateless",
    "replay": "Replayed chain",
    "chain": "Chain by id",
}
"""What a client is asked to do, and the column that shows whether it does."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client that nobody here wrote.

    Attributes:
        name: As its users know it.
        id: In the names of tests.
        packages: Package to version, as the lock has them.
        script: File in `scripts/`.
        arguments: What the script is given besides the scenario.
        lock: Name of the lock, and of the cached installation; "" for the project's own `uv.lock`.
        cannot: Scenario to the reason why the client itself cannot do it.
        repeats: Types of the MCP items that it sends again with `store: false`.
        preamble: Roles of the messages that it sends of itself before those of its user.
        pieces: Whether it shows an answer piece by piece.
        attached: Whether it cannot name a server, so that the gateway must attach it always.
        offline: Whether it is run without any network but loopback.
    """

    name: str
    id: str
    packages: dict[str, str]
    script: str
    arguments: tuple[str, ...] = ()
    lock: str = ""
    language: Literal["node", "python"] = "python"
    cannot: dict[str, str] = field(default_factory=dict)
    repeats: tuple[str, ...] = ("mcp_list_tools", "mcp_approval_request", "mcp_call")
    preamble: tuple[str, ...] = ()
    pieces: bool = True
    attached: bool = False
    offline: bool = False

    @property
    def needs_node(self) -> bool:
        """Whether it comes from npm."""
        return self.language == "node" or self.offline


NEVER_STORES: dict[str, str] = dict.fromkeys(["functions", "held"], "it never stores")
NEVER_ANSWERS: dict[str, str] = dict.fromkeys(
    ["native", "native_stateless"], "it has no way to answer a request for an approval"
)


def _codex(
    *,
    name: str,
    id: str,
    arguments: tuple[str, ...] = (),
    cannot: Mapping[str, str] = MappingProxyType({}),
) -> Client:
    return Client(
        name=name,
        id=id,
        packages={"@openai/codex": "0.169.0"},
        script="codex_cli.py",
        arguments=arguments,
        cannot={**NEVER_STORES, **NEVER_ANSWERS, **cannot},
        repeats=(),
        preamble=("developer", "developer", "user"),
        pieces=False,
        attached=True,
        offline=True,
    )


CLIENTS = [
    Client(
        name="openai-python",
        id="openai-python",
        packages={"openai": "3.52.0"},
        script="openai_python.py",
    ),
    Client(
        name="openai-python, asynchronous",
        id="openai-python-async",
        packages={"openai": "3.52.0"},
        script="openai_python_async.py",
    ),
    Client(
        name="openai-python, WebSocket",
        id="openai-python-socket",
        packages={"openai": "3.52.0"},
        script="openai_python_socket.py",
    ),
    Client(
        name="openai-node",
        id="openai-node",
        packages={"openai": "6.49.0"},
        lock="openai-node",
        script="openai_node.mjs",
        language="node",
    ),
    Client(
        name="Vercel AI SDK",
        id="vercel-ai",
        packages={"ai": "6.0.326", "@ai-sdk/openai": "3.0.141"},
        lock="vercel-ai",
        script="vercel_ai.mjs",
        language="node",
        repeats=(),
    ),
    Client(
        name="OpenAI Agents SDK",
        id="openai-agents",
        packages={"openai-agents": "0.24.0"},
        lock="openai-agents",
        script="openai_agents.py",
    ),
    Client(
        name="LangChain",
        id="langchain-openai",
        packages={"langchain-openai": "1.7.3"},
        lock="langchain-openai",
        script="langchain_chat.py",
    ),
    Client(
        name="Pydantic AI",
        id="pydantic-ai",
        packages={"pydantic-ai-slim": "2.68.0"},
        lock="pydantic-ai",
        script="pydantic_agent.py",
        cannot={
            "native": "it drops requests for an approval",
            "native_stateless": "it drops requests for an approval",
        },
        repeats=("mcp_list_tools", "mcp_call"),
    ),
    Client(
        name="Microsoft Agent Framework",
        id="agent-framework",
        packages={"agent-framework-openai": "1.17.0", "agent-framework-core": "1.23.0"},
        lock="agent-framework",
        script="agent_framework_chat.py",
        repeats=("mcp_call",),
    ),
    _codex(
        name="Codex CLI, HTTP",
        id="codex-http",
        cannot={"chain": "over HTTP it sends its items again, and continues nothing by id"},
    ),
    _codex(name="Codex CLI, WebSocket", id="codex-websocket", arguments=("websocket",)),
]

PROVED: set[tuple[str, str]] = set()
"""Ids of clients and scenarios for which there is a test; complete when the tests are imported."""


def able(
    *scenarios: str, only: str = "", without: tuple[str, ...] = (), again: bool = False
) -> pytest.MarkDecorator:
    """Run a test for each scenario and each client that can do it.

    Args:
        only: Id of the one client that is meant.
        without: "CLIENT-SCENARIO" of what has a test of its own.
        again: Another test has proved it already.
    """
    found = [
        (client, scenario)
        for client in CLIENTS
        for scenario in scenarios
        if scenario not in client.cannot
        and only in ("", client.id)
        and f"{client.id}-{scenario}" not in without
    ]
    if not again:
        PROVED.update((client.id, scenario) for client, scenario in found)
    return pytest.mark.parametrize(
        ("client", "scenario"),
        [
            pytest.param(
                client,
                scenario,
                id=f"{client.id}-{scenario}",
                marks=[pytest.mark.node] if client.needs_node else [],
            )
            for client, scenario in found
        ],
    )
