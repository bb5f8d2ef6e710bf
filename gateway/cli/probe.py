"""`gateway mcp probe`: what an MCP server offers, seen by the official client (RUN-5)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.adapters.secrets import SecretResolver
from gateway.cli.pins import PinsOf, PinsUnavailable, accept, compare
from gateway.domain.documents import encode
from gateway.domain.errors import SecretUnavailable
from gateway.domain.pins import Definition, define
from gateway.domain.registry import McpServer
from gateway.domain.secrets import SecretRef
from gateway.settings import Settings

_TIMEOUT = 30.0
_PAGES = 100


class ProbeError(Exception):
    """The server could not be asked; the message holds no header value."""


@dataclass(frozen=True, slots=True)
class ToolReport:
    """A tool as the server defines it.

    Attributes:
        pins: Tenant to what its pin says of this definition; empty where pins cannot be read.
    """

    name: str
    title: str | None
    description: str | None
    annotations: dict[str, Any] | None
    offered: bool
    effect: str
    rule: str
    definition_hash: str
    pins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a server answered."""

    label: str
    url: str
    server: str
    tools: tuple[ToolReport, ...]
    definitions: tuple[Definition, ...] = ()

    def to_json(self) -> str:
        """Write it for programs."""
        shown = {name: value for name, value in asdict(self).items() if name != "definitions"}
        return json.dumps(shown, indent=2) + "\n"

    def to_text(self) -> str:
        """Write it as a table."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"{self.label}: {escape(_visible(self.server))} at {escape(self.url)}")
        rows = [_row(tool) for tool in self.tools]
        # A column in which nothing stands would only make the others narrow.
        headings = [name for name in _COLUMNS if any(row[name] for row in rows)]
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(escape(row[heading]) for heading in headings))
        console = Console()
        with console.capture() as capture:
            console.print(table)
        return capture.get()


_COLUMNS = ("tool", "title", "claims", "rules say", "pin", "definition hash")


def _row(tool: ToolReport) -> dict[str, str]:
    cells = (
        _visible(tool.name) + ("" if tool.offered else " (not offered)"),
        _visible(tool.title or ""),
        _claims(tool.annotations),
        f"{tool.effect} ({tool.rule})",
        _pins(tool.pins),
        tool.definition_hash[:23],
    )
    return dict(zip(_COLUMNS, cells, strict=True))


def _visible(text: str) -> str:
    """Show control and hidden characters as escapes: a server's text is not to be trusted."""
    shown = "".join(ch if ch.isprintable() else f"\\u{ord(ch):04x}" for ch in text)
    return shown if len(shown) <= 200 else shown[:199] + "…"


def _pins(pins: dict[str, str]) -> str:
    said = set(pins.values())
    if len(said) < 2:
        return next(iter(said), "")
    return ", ".join(f"{tenant}: {status}" for tenant, status in pins.items())


def _claims(annotations: dict[str, Any] | None) -> str:
    hints = {name.removesuffix("Hint"): value for name, value in (annotations or {}).items()}
    shown = [name if value is True else f"{name}={value}" for name, value in hints.items()]
    return _visible(", ".join(shown))


def probe(settings: Settings, label: str, extra_headers: tuple[str, ...] = ()) -> ProbeReport:
    """Ask the server registered as `label` for its tools.

    Args:
        extra_headers: `NAME=REFERENCE` for headers that callers would send.

    Raises:
        ProbeError: There is no such server, a header is missing, or it does not answer.
    """
    servers = {server.label: server for server in settings.to_mcp_servers()}
    if label not in servers:
        known = ", ".join(sorted(servers)) or "none"
        raise ProbeError(f'no mcp_servers entry has the label "{label}"; there is {known}')
    return asyncio.run(_probe(settings, servers[label], extra_headers))


def accept_all(settings: Settings, report: ProbeReport) -> dict[str, int]:
    """Trust the definitions that were shown; return how many pins changed, by tenant.

    Raises:
        ProbeError: The pins cannot be written.
    """
    (server,) = [one for one in settings.to_mcp_servers() if one.label == report.label]
    try:
        return asyncio.run(accept(settings, server, report.definitions))
    except PinsUnavailable as exc:
        raise ProbeError(f"{report.label}: {exc}") from None


async def _known_pins(
    settings: Settings, server: McpServer, definitions: tuple[Definition, ...]
) -> PinsOf:
    try:
        return await compare(settings, server, definitions)
    except PinsUnavailable:
        return {}  # looking at a server needs no Redis


async def _probe(settings: Settings, server: McpServer, extra: tuple[str, ...]) -> ProbeReport:
    headers = await _headers(server, extra)
    statuses: list[int] = []
    try:
        async with asyncio.timeout(_TIMEOUT):
            name, tools = await _ask(server.url, headers, statuses)
    except Exception as exc:  # noqa: BLE001  # the client raises groups of many kinds
        refused = f"HTTP {statuses[-1]}" if statuses and statuses[-1] >= 400 else None
        raise ProbeError(f"{server.label}: {server.url}: {refused or _reason(exc)}") from None
    rules = settings.to_rule_set()
    definitions = tuple(define(encode(tool), complete=True) for tool in tools)
    pins = await _known_pins(settings, server, definitions)
    reports = []
    for tool, definition in zip(tools, definitions, strict=True):
        ruling = rules.decide(server.label, tool["name"])
        reports.append(
            ToolReport(
                name=tool["name"],
                title=tool["title"],
                description=tool["description"],
                annotations=tool["annotations"],
                offered=server.allowed_tools is None or tool["name"] in server.allowed_tools,
                effect=ruling.effect.value,
                rule=ruling.rule,
                definition_hash=definition.hash,
                pins={tenant: said[tool["name"]] for tenant, said in pins.items()},
            )
        )
    return ProbeReport(server.label, server.url, name, tuple(reports), definitions)


async def _headers(server: McpServer, extra: tuple[str, ...]) -> dict[str, str]:
    resolver = SecretResolver()
    try:
        given = {}
        for text in extra:
            name, _, written = text.partition("=")
            given[name.strip().lower()] = await resolver.resolve(SecretRef.parse(written))
        headers = {name: await resolver.resolve(ref) for name, ref in server.headers.items()}
    except SecretUnavailable as exc:
        raise ProbeError(f"{server.label}: {exc}") from None
    except ValueError as exc:
        raise ProbeError(f"--header: the value {exc}") from None
    finally:
        await resolver.aclose()
    for source, target in server.forward_headers.items():
        if source.lower() not in given:
            raise ProbeError(
                f"{server.label}: callers send {source} (forward_headers); "
                f"give it by --header {source}=env:NAME"
            )
        headers[target] = given[source.lower()]
    return headers


async def _ask(
    url: str, headers: dict[str, str], statuses: list[int]
) -> tuple[str, list[dict[str, Any]]]:
    """List all tools; the client's errors do not tell the HTTP status, so it is noted."""
    from mcp.client import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    async def note(response: Any) -> None:
        statuses.append(response.status_code)

    tools: list[dict[str, Any]] = []
    async with create_mcp_http_client(headers=headers) as http:
        http.event_hooks = {"response": [note]}
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport) as client:
            cursor: str | None = None
            for _ in range(_PAGES):
                page = await client.list_tools(cursor=cursor)
                tools += [_definition(tool) for tool in page.tools]
                cursor = page.next_cursor
                if cursor is None:
                    break
            info = client.server_info
    return f"{info.name} {info.version}" if info else "unnamed", tools


def _definition(tool: Any) -> dict[str, Any]:
    annotations = tool.annotations
    if annotations is not None:
        annotations = annotations.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "name": tool.name,
        "title": tool.title,
        "description": tool.description,
        "input_schema": tool.input_schema,
        "output_schema": tool.output_schema,
        "annotations": annotations,
    }


def _reason(error: BaseException) -> str:
    """Say what went wrong without an error's own text, which may quote a header."""
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    if isinstance(leaf, TimeoutError):
        return f"no answer within {_TIMEOUT:.0f} s"
    return type(leaf).__name__
