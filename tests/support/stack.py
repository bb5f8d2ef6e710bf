"""The whole product for a test: real Valkey, provider emulator, MCP server and gateway on loopback.

with Stack.start() as stack:
    with stack.gateway(tenants=[...]) as gateway:
        client = gateway.client("caller")      # the official SDK
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
from pydantic import SecretStr

from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.app import create_app
from gateway.domain.identity import hash_key, new_key
from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.demo_mcp import create_demo_mcp
from gateway.emulator.serve import serving
from gateway.server.process import websocket_options
from gateway.settings import Settings

CANARY = "canary-7f3a9c51e2d84b60"
"""A secret header's token; it must be found nowhere but at the MCP server."""

UPSTREAM_KEY = "sk-upstream-canary-51c0"

OPEN_CLIENTS: list[openai.AsyncOpenAI] = []
"""SDK clients of the running test; they are closed after it."""

RULES: list[dict[str, Any]] = [
    {"id": "reads", "match": {"server": "github", "tool": "search_*"}, "effect": "allow"},
    {
        "id": "writes",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "approval": {"approvers": ["role:approver"], "timeout": "30m"},
        "reason": "It changes what others see.",
    },
    {
        "id": "no-payments",
        "match": {"server": "github", "tool": "send_payment"},
        "effect": "deny",
        "reason": "Payments are switched off.",
    },
]


@dataclass
class Gateway:
    """A running gateway."""

    url: str
    settings: Settings
    keys: dict[str, str]

    def client(self, key: str = "caller", **options: Any) -> openai.AsyncOpenAI:
        """The official SDK, with one of the gateway's keys, and no retries of its own."""
        client = openai.AsyncOpenAI(
            base_url=self.url + "/v1", api_key=self.keys[key], max_retries=0, **options
        )
        OPEN_CLIENTS.append(client)
        return client

    def http(self, key: str | None = "caller", **options: Any) -> httpx2.AsyncClient:
        """A plain HTTP client with one of the gateway's keys."""
        headers = {"authorization": f"Bearer {self.keys[key]}"} if key else {}
        return httpx2.AsyncClient(
            base_url=self.url, headers=headers, timeout=30, trust_env=False, **options
        )


def upstream_entry(base_url: str, **changes: Any) -> dict[str, Any]:
    """The entry of an upstream that takes the stack's key."""
    return {
        "name": "emulator",
        "kind": "openai",
        "base_url": base_url,
        "auth": {"type": "api_key", "value": "env:TEST_UPSTREAM_KEY"},
        **changes,
    }


@dataclass
class Stack:
    """The servers around a gateway, for a whole test session."""

    redis_url: str
    emulator_url: str
    mcp_url: str
    keys: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def start(cls, **emulator: Any) -> Iterator[Stack]:
        """Start Valkey, the emulator and the demo MCP server."""
        os.environ["TEST_ENCRYPTION_KEY"] = base64.b64encode(b"k" * 32).decode()
        os.environ["TEST_MCP_AUTH"] = f"Bearer {CANARY}"
        os.environ["TEST_UPSTREAM_KEY"] = UPSTREAM_KEY
        emulator.setdefault("api_keys", frozenset({UPSTREAM_KEY}))
        with ExitStack() as stack:
            valkey = stack.enter_context(EmbeddedValkey())
            upstream = stack.enter_context(serving(create_emulator(EmulatorSettings(**emulator))))
            mcp = stack.enter_context(serving(create_demo_mcp(CANARY)))
            names = ("caller", "approver", "second", "other", "admin", "auditor", "trusted")
            yield cls(
                redis_url=valkey.url,
                emulator_url=upstream,
                mcp_url=mcp + "/mcp",
                keys={name: new_key(name) for name in names},
            )

    def settings(self, **changes: Any) -> Settings:
        """Settings of a complete gateway; whole sections can be replaced."""
        values: dict[str, Any] = {
            "server": {"lame_duck": 0, "grace_period": 1},
            "redis": self.redis(),
            "encryption": {"keys": [{"id": "k1", "value": "env:TEST_ENCRYPTION_KEY"}]},
            "upstreams": [upstream_entry(self.emulator_url + "/v1/")],
            "mcp_servers": [self.mcp_server()],
            "rules": RULES,
            "tenants": [{"id": "acme"}, {"id": "rival"}],
            "api_keys": [
                self.key("caller", roles=["caller"]),
                self.key("approver", subject="user:ann", roles=["approver"]),
                self.key("second", subject="user:bob", roles=["caller", "approver"]),
                self.key("other", tenant="rival", roles=["caller", "approver"]),
                self.key("admin", subject="user:root", roles=["admin"]),
                self.key("auditor", subject="user:eve", roles=["auditor"]),
            ],
        }
        return Settings(**{**values, **changes})

    def redis(self, url: str = "") -> dict[str, Any]:
        """The section of the store: patient, for a stall of the machine is no outage."""
        return {
            "url": SecretStr(url or self.redis_url),
            "allow_volatile": True,
            "timeout": 30,
            "connect_timeout": 30,
        }

    def mcp_server(self, **changes: Any) -> dict[str, Any]:
        """The entry of the demo MCP server, with its secret header."""
        return {
            "label": "github",
            "url": self.mcp_url,
            "headers": {"Authorization": "env:TEST_MCP_AUTH"},
            "trust": "reviewed",
            **changes,
        }

    def key(self, name: str, **changes: Any) -> dict[str, Any]:
        """The entry of one of the API keys."""
        return {
            "id": name,
            "tenant": "acme",
            "subject": f"svc:{name}",
            "roles": ["caller"],
            "hash": hash_key(self.keys[name]),
            **changes,
        }

    @contextmanager
    def gateway(self, **changes: Any) -> Iterator[Gateway]:
        """Run a gateway in this process, on its own port."""
        settings = self.settings(**changes)
        sockets = websocket_options(settings.server)
        with serving(create_app(settings), **sockets) as url:
            yield Gateway(url=url, settings=settings, keys=self.keys)

    async def requests(self) -> list[dict[str, Any]]:
        """What the upstream was sent, oldest first."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.emulator_url + "/_emulator/requests")
            found = answer.json()
            return list(found["requests"] if isinstance(found, dict) else found)

    async def forget(self) -> None:
        """Empty the lists of what the upstream and the MCP server were sent."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            await client.delete(self.emulator_url + "/_emulator/requests")
            await client.delete(self.mcp_url.removesuffix("/mcp") + "/calls")

    async def calls(self) -> list[dict[str, Any]]:
        """The tools that were really executed."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.mcp_url.removesuffix("/mcp") + "/calls")
            return list(answer.json())

    async def active(self) -> int:
        """How many upstream exchanges are open."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(self.emulator_url + "/_emulator/active")
            return int(answer.json()["active"])
