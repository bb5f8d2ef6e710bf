"""What the emulator's tests share: a provider to talk to, and a reader for its streams."""

import json
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import AsyncOpenAI

Json = dict[str, Any]

MODEL = "gpt-5.6-sol"
TOKEN = "demo-secret"
ENCRYPTED = ["reasoning.encrypted_content"]


def read_sse(text: str) -> list[Json]:
    """Return the events of a stream, checking that each frame's name is its type."""
    events = []
    for block in text.split("\n\n"):
        if not block.strip():
            continue
        name, data = block.split("\n", 1)
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


@dataclass(frozen=True)
class Provider:
    """One running emulator."""

    url: str

    @property
    def http(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            base_url=f"{self.url}/v1/",
            headers={"authorization": "Bearer key"},
            trust_env=False,
            verify=False,
            timeout=30,
        )

    @property
    def sdk(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key="key",
            max_retries=0,
            http_client=httpx2.AsyncClient(trust_env=False, verify=False, timeout=30),
        )

    async def post(self, input: Any = None, **body: Any) -> httpx2.Response:
        headers = body.pop("headers", None)
        given = {"model": MODEL, **({} if input is None else {"input": input}), **body}
        async with self.http as client:
            return await client.post("responses", json=given, headers=headers)

    async def create(self, input: Any = None, **body: Any) -> Json:
        response = await self.post(input, **body)
        assert response.status_code == 200, response.text
        created: Json = response.json()
        return created

    async def refused(self, input: Any = None, **body: Any) -> tuple[int, Json]:
        response = await self.post(input, **body)
        assert response.status_code >= 400, response.text
        return response.status_code, response.json()["error"]

    async def stream(self, input: Any = None, **body: Any) -> list[Json]:
        response = await self.post(input, stream=True, **body)
        assert response.status_code == 200, response.text
        events = read_sse(response.text)
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        return events

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        async with self.http as client:
            return await client.get(path, params=query)


@dataclass(frozen=True)
class DemoServer:
    """The running demo MCP server."""

    url: str

    def tool(self, label: str = "github", **changes: Any) -> Json:
        return {
            "type": "mcp",
            "server_label": label,
            "server_url": f"{self.url}/mcp",
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "require_approval": "always",
            **changes,
        }

    async def calls(self) -> list[Json]:
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
            calls: list[Json] = (await client.get(f"{self.url}/calls")).json()
            return calls

    async def forget(self) -> None:
        async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
            await client.delete(f"{self.url}/calls")


def text_of(response: Json) -> str:
    """Return all text of a response's messages."""
    return "\n".join(
        part.get("text", part.get("refusal", ""))
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def items_of(response: Json, kind: str) -> list[Json]:
    """Return the output items of one type."""
    return [item for item in response["output"] if item["type"] == kind]


def approve(request: Json, *, yes: bool = True, **more: Any) -> Json:
    """Return the answer to an approval request."""
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": yes,
        **more,
    }
