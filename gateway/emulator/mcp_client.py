"""Real calls to real MCP servers, with the headers the request was given.

Each operation opens its own session, as a stateless provider does, and maps what goes wrong to
the shapes the API shows.
"""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, TextContent, Tool

from gateway.emulator.errors import ApiError, mcp_listing_failed
from gateway.emulator.items import Item
from gateway.emulator.plan import is_allowed

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_STAND_INS = frozenset({"Server returned an error response", "Not Found", "Session terminated"})
_FAILURES = (MCPError, httpx2.HTTPError, OSError, RuntimeError, ValueError, ExceptionGroup)
_UNREACHABLE = 424


@dataclass(kw_only=True)
class McpServer:
    """One MCP server of one request."""

    label: str
    url: str
    headers: dict[str, str]
    timeout: float
    status: int = field(default=200, init=False)
    """HTTP status of the last answer to a POST; 0 when there was none."""

    @classmethod
    def from_tool(cls, tool: Item, *, timeout: float) -> "McpServer":
        """Return the server that an MCP tool names."""
        headers = {str(k): str(v) for k, v in (tool.get("headers") or {}).items()}
        if tool.get("authorization"):
            headers["Authorization"] = f"Bearer {tool['authorization']}"
        return cls(
            label=str(tool["server_label"]),
            url=str(tool.get("server_url") or ""),
            headers=headers,
            timeout=timeout,
        )

    async def list_tools(self, tool: Item) -> list[Item]:
        """Return the tools that `tool` allows, as an `mcp_list_tools` item shows them.

        Raises:
            ApiError: 424, when the server does not answer the listing.
        """
        try:
            with anyio.fail_after(self.timeout):
                async with self._session() as client:
                    found = await _all_tools(client)
        except _FAILURES as exc:
            raise self._listing_error() from exc
        shown = [_show(entry) for entry in found]
        return [
            entry
            for entry in shown
            if is_allowed(tool, entry["name"], read_only=entry["annotations"]["read_only"])
        ]

    async def call_tool(self, name: str, arguments: str) -> Item:
        """Run a tool and return `output` and `error` of its `mcp_call` item."""
        try:
            with anyio.fail_after(self.timeout):
                async with self._session() as client:
                    result = await client.call_tool(name, json.loads(arguments))
        except _FAILURES as exc:
            return {"output": None, "error": self._call_error(exc)}
        return _outcome(result)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Client]:
        if not self.url:
            self.status = HTTPStatus.NOT_FOUND
            raise ValueError("connectors and tunnels are not emulated")
        self.status = 0
        async with (
            httpx2.AsyncClient(
                headers=self.headers,
                timeout=self.timeout,
                trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
                verify=_tls(),
                event_hooks={"response": [self._note]},
            ) as http,
            Client(streamable_http_client(self.url, http_client=http)) as client,
        ):
            yield client

    async def _note(self, response: httpx2.Response) -> None:
        if response.request.method == "POST":
            self.status = response.status_code

    def _listing_error(self) -> ApiError:
        status = self.status if self.status >= HTTPStatus.BAD_REQUEST else _UNREACHABLE
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Unknown"
        return mcp_listing_failed(self.label, status, reason)

    def _call_error(self, exc: BaseException) -> Item:
        while isinstance(exc, BaseExceptionGroup):  # the session's task groups wrap it
            exc = exc.exceptions[0]
        if isinstance(exc, MCPError) and not (
            self.status >= HTTPStatus.BAD_REQUEST and exc.error.message in _STAND_INS
        ):
            return {
                "type": "mcp_protocol_error",
                "code": exc.error.code,
                "message": exc.error.message,
            }
        return {
            "type": "http_error",
            "code": self.status if self.status >= HTTPStatus.BAD_REQUEST else 500,
            "message": "An unknown error occurred while executing the tool.",
        }


@cache
def _tls() -> ssl.SSLContext:
    """Return the trusted certificates, read once."""
    return ssl.create_default_context()


async def _all_tools(client: Client) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


def _show(tool: Tool) -> Item:
    hint = tool.annotations.read_only_hint if tool.annotations else None
    return {
        "annotations": {"read_only": bool(hint)},
        "description": tool.description,
        "input_schema": tool.input_schema,
        "name": tool.name,
    }


def _outcome(result: CallToolResult) -> Item:
    texts = [part.text for part in result.content if isinstance(part, TextContent)]
    if result.is_error:
        content: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
        return {
            "output": None,
            "error": {"type": "mcp_tool_execution_error", "content": content},
        }
    return {"output": "\n".join(texts), "error": None}
