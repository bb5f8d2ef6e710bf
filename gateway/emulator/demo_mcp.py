"""A demo MCP server: a small issue tracker and a till, behind a secret header.

It is a real server on the official SDK, streamable HTTP at `/mcp`, state in memory. Without
`Authorization: Bearer <token>` it answers 401. `GET /calls` lists the calls that were executed,
with the names of the request headers and the SHA-256 of the `Authorization` value, for tests that
prove what ran and with which secret; `DELETE /calls` forgets them.

`PUT /tools/NAME` with `{"description": …, "input_schema": …, "annotations": …, "hidden": true}`
changes what the server lists from then on, as a server that is taken over would; an unknown name
is listed as a new tool. `DELETE /tools` restores all. Both want the token.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import Tool, ToolAnnotations
from typing_extensions import override

TOKEN_VARIABLE = "DEMO_MCP_TOKEN"  # noqa: S105
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
_DESTROYS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)


class Demo:
    """The state behind the tools, and the book of executed calls."""

    def __init__(self) -> None:
        self.issues = [
            {"number": 1, "title": "Login page is slow", "state": "open"},
            {"number": 2, "title": "Dark mode", "state": "open"},
            {"number": 3, "title": "Typo in the README", "state": "closed"},
        ]
        self.balance = 1000.0
        self.calls: list[dict[str, Any]] = []

    def note(self, name: str, arguments: Mapping[str, Any], context: Context) -> None:
        """Write a call into the book."""
        headers = {k.lower(): v for k, v in (context.headers or {}).items()}
        secret = headers.get("authorization", "")
        self.calls.append(
            {
                "name": name,
                "arguments": dict(arguments),
                "header_names": sorted(headers),
                "authorization_sha256": hashlib.sha256(secret.encode()).hexdigest(),
            }
        )

    def search_issues(self, query: str, context: Context) -> str:
        """Search the issues by words of their title."""
        self.note("search_issues", {"query": query}, context)
        found = [i for i in self.issues if query.lower() in str(i["title"]).lower()]
        return json.dumps(found)

    def create_issue(self, title: str, context: Context, body: str = "") -> str:
        """Create an issue and return its number and address."""
        self.note("create_issue", {"title": title, "body": body}, context)
        number = len(self.issues) + 1
        self.issues.append({"number": number, "title": title, "state": "open"})
        return f"Created issue #{number}: {title} (https://github.example/demo/issues/{number})"

    def send_payment(self, to: str, amount: float, context: Context, currency: str = "EUR") -> str:
        """Send money. It cannot be called back."""
        self.note("send_payment", {"to": to, "amount": amount, "currency": currency}, context)
        if amount > self.balance:
            raise ToolError(f"Insufficient funds: the balance is {self.balance:.2f} {currency}.")
        self.balance -= amount
        return f"Sent {amount:.2f} {currency} to {to}. Balance: {self.balance:.2f} {currency}."


class Changeable(MCPServer):
    """A server whose listing can be changed while it runs."""

    def __init__(self) -> None:
        super().__init__("demo", version="1.0.0", log_level="WARNING")
        self.changes: dict[str, dict[str, Any]] = {}

    @override
    async def list_tools(self) -> list[Tool]:
        listed = {tool.name: tool for tool in await super().list_tools()}
        for name, change in self.changes.items():
            known = listed.pop(name, None) or Tool(name=name, input_schema={"type": "object"})
            if not change.get("hidden"):
                listed[name] = Tool.model_validate({**known.model_dump(), **change})
        return list(listed.values())


def create_demo_mcp(token: str) -> ASGIApp:
    """Return the demo MCP server as an ASGI application with lifespan."""
    demo = Demo()
    server = Changeable()
    server.tool(annotations=_READS, structured_output=False)(demo.search_issues)
    server.tool(annotations=_WRITES, structured_output=False)(demo.create_issue)
    server.tool(annotations=_DESTROYS, structured_output=False)(demo.send_payment)
    inner: Any = server.streamable_http_app(stateless_http=True, json_response=True)

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/calls":
            if scope["method"] == "DELETE":
                demo.calls.clear()
            await _answer(send, 200, demo.calls)
        elif scope["type"] == "http" and not _is_authorized(scope, token):
            await _answer(send, 401, {"error": "unauthorized"})
        elif scope["type"] == "http" and scope["path"].startswith("/tools"):
            await _change(server, scope, receive)
            await _answer(send, 200, server.changes)
        else:
            await inner(scope, receive, send)

    return app


async def _change(server: Changeable, scope: Any, receive: Receive) -> None:
    body = b""
    more = True
    while more:
        message: Any = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["method"] == "DELETE":
        server.changes.clear()
    elif scope["method"] == "PUT":
        server.changes[scope["path"].removeprefix("/tools/")] = json.loads(body)


def _is_authorized(scope: Scope, token: str) -> bool:
    given = dict(scope["headers"]).get(b"authorization", b"")
    return hmac.compare_digest(given, f"Bearer {token}".encode())


async def _answer(send: Send, status: int, body: Any) -> None:
    encoded = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(encoded)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": encoded, "more_body": False})


def run(token: str | None = None, host: str = "127.0.0.1", port: int = 8098) -> None:
    """Serve the demo until a signal; the token comes from `DEMO_MCP_TOKEN` if not given.

    Raises:
        ValueError: without a token.
    """
    from gateway.emulator.serve import serve

    token = token or os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise ValueError(f"set {TOKEN_VARIABLE} to the token that clients must send")
    serve(create_demo_mcp(token), host, port, "demo MCP server")
