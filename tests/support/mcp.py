"""An MCP server of one test, which changes what it lists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from gateway.emulator.demo_mcp import create_demo_mcp
from gateway.emulator.serve import serving
from tests.support.stack import CANARY


class Server:
    """The demo server, with the means to change its listing."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def _request(self, method: str, path: str, body: Any = None) -> None:
        headers = {"authorization": f"Bearer {CANARY}"}
        async with httpx2.AsyncClient(trust_env=False, headers=headers) as client:
            answer = await client.request(method, self.url + path, json=body)
            assert answer.status_code == 200, answer.text

    async def change(self, tool: str, **change: Any) -> None:
        await self._request("PUT", f"/tools/{tool}", change)

    async def restore(self) -> None:
        await self._request("DELETE", "/tools")

    async def calls(self) -> list[dict[str, Any]]:
        async with httpx2.AsyncClient(trust_env=False) as client:
            return list((await client.get(self.url + "/calls")).json())


@contextmanager
def mcp_server() -> Iterator[Server]:
    """Run one on a port of its own."""
    with serving(create_demo_mcp(CANARY)) as url:
        yield Server(url)
