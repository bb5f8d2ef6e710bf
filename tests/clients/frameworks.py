"""Agent frameworks that are run against the gateway, and what each can do of itself.

Each has a script in `scripts/`, written as its users write, and a lock in `locks/`. The tables of
docs/compatibility.md are held against this list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
class Framework:
    """A client that nobody here wrote.

    Attributes:
        name: As its users know it.
        packages: Package to version, as the lock has them.
        lock: Name of the lock, and of the cached installation.
        script: File in `scripts/`.
        cannot: Scenario to the reason why the client itself cannot do it.
        repeats: Types of the MCP items that it sends again with `store: false`.
    """

    name: str
    packages: dict[str, str]
    lock: str
    script: str
    language: Literal["node", "python"] = "python"
    cannot: dict[str, str] = field(default_factory=dict)
    repeats: tuple[str, ...] = ("mcp_list_tools", "mcp_approval_request", "mcp_call")


FRAMEWORKS = [
    Framework(
        name="Vercel AI SDK",
        packages={"ai": "6.0.326", "@ai-sdk/openai": "3.0.141"},
        lock="vercel-ai",
        script="vercel_ai.mjs",
        language="node",
        repeats=(),
    ),
    Framework(
        name="OpenAI Agents SDK",
        packages={"openai-agents": "0.24.0"},
        lock="openai-agents",
        script="openai_agents.py",
    ),
    Framework(
        name="LangChain",
        packages={"langchain-openai": "1.7.3"},
        lock="langchain-openai",
        script="langchain_chat.py",
    ),
    Framework(
        name="Pydantic AI",
        packages={"pydantic-ai-slim": "2.68.0"},
        lock="pydantic-ai",
        script="pydantic_agent.py",
        cannot={
            "native": "it drops requests for an approval",
            "native_stateless": "it drops requests for an approval",
        },
        repeats=("mcp_list_tools", "mcp_call"),
    ),
    Framework(
        name="Microsoft Agent Framework",
        packages={"agent-framework-openai": "1.17.0", "agent-framework-core": "1.23.0"},
        lock="agent-framework",
        script="agent_framework_chat.py",
        repeats=("mcp_call",),
    ),
]
