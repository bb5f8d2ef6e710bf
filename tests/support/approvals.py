"""Short ways to ask for tools, to find what is pending, and to decide it."""

from __future__ import annotations

import json
import secrets
from typing import Any

import anyio
import httpx2

from tests.support.stack import Gateway, Stack

GITHUB: dict[str, Any] = {"type": "mcp", "server_label": "github"}
"""The demo server, named by label alone."""


def marker() -> str:
    """Make a word that only one test uses, so that it finds its own approvals."""
    return "m" + secrets.token_hex(6)


def issue(title: str) -> str:
    """Write the command that makes the scripted model create an issue."""
    return f'/call github.create_issue {{"title": "{title}"}}'


async def create(
    gateway: Gateway,
    input: Any,
    *,
    key: str = "caller",
    tools: Any = (GITHUB,),
    headers: dict[str, str] | None = None,
    **body: Any,
) -> httpx2.Response:
    """Create a response over plain HTTP."""
    async with gateway.http(key) as client:
        document = {"model": "gpt-4.1", "input": input, "tools": list(tools), **body}
        return await client.post("/v1/responses", json=document, headers=headers or {})


async def refused(gateway: Gateway, input: Any, **body: Any) -> tuple[int, dict[str, Any]]:
    """Create a response that must not be; return the status and the error."""
    answer = await create(gateway, input, **body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    return answer.status_code, error


async def pending(
    gateway: Gateway, word: str, *, key: str = "approver", count: int = 1
) -> list[dict[str, Any]]:
    """Wait until approvals whose arguments hold a word are pending; oldest first."""
    async with gateway.http(key) as client:
        with anyio.fail_after(60):  # it may be a program that has yet to start
            while True:
                listed = (await client.get("/v1/approvals", params={"limit": 100})).json()["data"]
                found = [one for one in listed if word in one["arguments"]]
                if len(found) >= count:
                    return found[::-1]
                await anyio.sleep(0.01)


async def vote(
    gateway: Gateway,
    approval: dict[str, Any],
    decision: str = "approve",
    *,
    key: str = "approver",
    headers: dict[str, str] | None = None,
    **changes: Any,
) -> httpx2.Response:
    """Decide an approval."""
    async with gateway.http(key) as client:
        return await client.post(
            f"/v1/approvals/{approval['id']}/decision",
            json={"decision": decision, "fingerprint": approval["fingerprint"], **changes},
            headers=headers or {},
        )


async def retrieved(gateway: Gateway, id_: str, *, key: str = "caller", wait: int = 0) -> Any:
    """Retrieve a response."""
    async with gateway.http(key) as client:
        headers = {"prefer": f"wait={wait}"} if wait else {}
        return (await client.get(f"/v1/responses/{id_}", headers=headers)).json()


async def decide(
    gateway: Gateway, word: str, decision: str = "approve", *, key: str = "approver"
) -> Any:
    """Wait for the one pending approval whose arguments hold a word, decide it, return it."""
    (approval,) = await pending(gateway, word, key=key)
    answer = await vote(gateway, approval, decision, key=key, reason="checked")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def settled(gateway: Gateway, id_: str, *, key: str = "caller") -> Any:
    """Poll a held response until it has ended."""
    with anyio.fail_after(30):
        while (found := await retrieved(gateway, id_, key=key, wait=5))["status"] == "in_progress":
            pass
    return found


async def executed(stack: Stack, word: str) -> list[dict[str, Any]]:
    """The tool calls that really ran with a word in their arguments."""
    return [call for call in await stack.calls() if word in json.dumps(call["arguments"])]


async def sent(stack: Stack, word: str) -> list[Any]:
    """The bodies that the upstream received with a word in them, oldest first."""
    return [
        one["body"]
        for one in await stack.requests()
        if one["path"].endswith("/responses") and word in json.dumps(one["body"])
    ]


def output_types(response: Any) -> list[str]:
    """The types of a response's output items."""
    return [item["type"] for item in response["output"]]


def text_of(response: Any) -> str:
    """The last message of a response."""
    message = [item for item in response["output"] if item["type"] == "message"][-1]
    return str(message["content"][0]["text"])


def frames(text: str) -> list[dict[str, Any]]:
    """The events of a stream."""
    blocks = (block.partition("data: ")[2] for block in text.split("\n\n"))
    return [json.loads(data) for data in blocks if data]


def tenancy(stack: Stack, **changes: Any) -> dict[str, Any]:
    """Sections of a gateway whose tenant no other gateway serves.

    Gateways on one Valkey take each other's jobs, as replicas do; a gateway that is configured
    differently must keep its turns to itself.
    """
    tenant = marker()
    keys = [
        stack.key("caller", tenant=tenant),
        stack.key("approver", tenant=tenant, subject="user:ann", roles=["approver"]),
        stack.key("second", tenant=tenant, subject="user:bob", roles=["caller", "approver"]),
        stack.key("admin", tenant=tenant, subject="user:root", roles=["admin"]),
        stack.key("auditor", tenant=tenant, subject="user:eve", roles=["auditor"]),
        stack.key("other", tenant="rival-" + tenant, roles=["caller", "approver"]),
    ]
    tenants = [{"id": tenant, **changes}, {"id": "rival-" + tenant}]
    return {"tenants": tenants, "api_keys": keys}
