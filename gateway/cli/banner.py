"""What `gateway dev` prints: what is running, the keys, and lines to paste."""

from __future__ import annotations

import json
from dataclasses import dataclass

CONSOLE_PATH = "/console"


@dataclass(frozen=True, slots=True)
class Shown:
    """All that the banner tells; URLs hold no passwords."""

    gateway: str
    provider: str
    emulated: bool
    redis: str
    mcp: str
    state: str
    caller_key: str
    approver_key: str
    model: str


def show(shown: Shown) -> None:
    """Print it to the terminal."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(shown):
        table.add_row(name, value)
    console = Console(highlight=False)
    console.print(
        Panel(table, title="gateway dev", subtitle="Ctrl-C stops all of it", expand=False)
    )
    for heading, command in commands(shown):
        console.print(f"\n[bold]{heading}[/bold]")
        # Outside the panel and never wrapped, so that it can be pasted.
        console.print(command, markup=False, soft_wrap=True)
    console.print()


def _rows(shown: Shown) -> list[tuple[str, str]]:
    provider = f"{shown.provider} (emulated)" if shown.emulated else shown.provider
    rows = [
        ("gateway", f"{shown.gateway}/v1"),
        ("console", f"{shown.gateway}{CONSOLE_PATH} (sign in with the approver key)"),
        ("playground", f"{shown.gateway}{CONSOLE_PATH}/playground (try three things that work)"),
        ("provider", provider),
        ("MCP server", f"{shown.mcp} (demo, label github)"),
        ("Redis", shown.redis),
        ("state", shown.state),
        ("caller key", shown.caller_key),
        ("approver key", shown.approver_key),
    ]
    if not shown.emulated:
        rows.append(("note", "the provider cannot reach the demo MCP server on this machine"))
    return rows


def commands(shown: Shown) -> list[tuple[str, str]]:
    """Return headings and commands to paste."""
    if not shown.emulated:
        return [("Ask something:", _turn(shown, "Say hello.", tools=False))]
    call = '/call github.create_issue {"title": "Hello from the gateway"}'
    return [
        ("Stream a turn; its tool call waits for an approval:", _turn(shown, call, tools=True)),
        ("In a second terminal, see what waits:", _pending(shown)),
        ("Approve it, and the stream goes on:", _approve(shown)),
    ]


def _turn(shown: Shown, text: str, *, tools: bool) -> str:
    body: dict[str, object] = {"model": shown.model, "stream": True, "input": text}
    if tools:
        body["tools"] = [{"type": "mcp", "server_label": "github"}]
    return (
        f'curl -N {shown.gateway}/v1/responses -H "Authorization: Bearer {shown.caller_key}" '
        f"-H \"Content-Type: application/json\" -d '{json.dumps(body)}'"
    )


def _pending(shown: Shown) -> str:
    return (
        f'curl -s "{shown.gateway}/v1/approvals?status=pending" '
        f'-H "Authorization: Bearer {shown.approver_key}"'
    )


def _approve(shown: Shown) -> str:
    """Write a pipeline: the fingerprint of what is approved comes from the list."""
    read = (
        "import json,sys; "
        'waiting=json.load(sys.stdin)["data"][:1]; '
        '[print(a["id"], json.dumps({"decision":"approve","fingerprint":a["fingerprint"]})) '
        "for a in waiting]"
    )
    decide = (
        f'curl -s "{shown.gateway}/v1/approvals/$id/decision" '
        f'-H "Authorization: Bearer {shown.approver_key}" '
        '-H "Content-Type: application/json" -H "Idempotency-Key: approve-$id" -d "$body"'
    )
    return f"{_pending(shown)} | python3 -c '{read}' | while read -r id body; do {decide}; done"
