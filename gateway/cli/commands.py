"""All commands (RUN-4, RUN-5). What a command needs is imported when it runs: help is quick."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import rich_click as click

from gateway import __version__

if TYPE_CHECKING:
    from gateway.settings import Settings

click.rich_click.TEXT_MARKUP = "markdown"
click.rich_click.SHOW_ARGUMENTS = True
click.rich_click.COMMAND_GROUPS = {
    "gateway": [
        {"name": "Run", "commands": ["dev", "serve", "emulator"]},
        {"name": "Configure", "commands": ["check", "keys", "policy", "mcp"]},
        {"name": "Look after", "commands": ["audit"]},
    ]
}

config_option = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="GATEWAY_CONFIG",
    show_envvar=True,
    help="The configuration file; without it, `gateway.toml` here if there is one.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def fail(lines: list[str]) -> NoReturn:
    """Print one line per fault to stderr and end with status 1."""
    for line in lines:
        click.echo(line, err=True)
    sys.exit(1)


@contextmanager
def _readable_errors() -> Iterator[None]:
    from gateway.settings import ConfigError

    try:
        yield
    except ConfigError as exc:
        fail(exc.faults)


def read_settings(config: Path | None) -> Settings:
    """Load the settings, or print their faults and end with status 1."""
    from gateway.settings import load_settings

    with _readable_errors():
        return load_settings(config)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gateway")
def cli() -> None:
    """A gateway for the OpenAI Responses API.

    It adds remote MCP tools whose secrets callers never see, approvals by people that hold the
    stream, and chains over upstreams that store nothing.

    Try it with `gateway dev`: nothing else is needed.
    """


@cli.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where keys and data are kept; by default `mcp-gateway` in XDG_STATE_HOME or "
    "`~/.local/state`.",
)
def dev(port: int, state_dir: Path | None) -> None:
    """Start everything on this machine, to try it and to develop against it.

    On loopback: the gateway, an embedded Valkey, an emulated provider and a demo MCP server, with
    a caller key and an approver key that stay the same. Ctrl-C stops all of it.

    - `AZURE_OPENAI_ENDPOINT` (with `AZURE_OPENAI_API_KEY`, else Entra ID) or `OPENAI_API_KEY`
      (with `OPENAI_BASE_URL`): that provider is used instead of the emulated one.
    - `OPENAI_MODEL` names the model of the printed example.
    - `REDIS_URL`: that Redis is used instead of the embedded Valkey.
    """
    from gateway.cli.dev import run_dev

    sys.exit(run_dev(port=port, state_dir=state_dir))


@cli.command()
@config_option
@click.option("--host", help="Listen here instead of `server.host`.")
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of `server.port`.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True)
def serve(config: Path | None, host: str | None, port: int | None, workers: int) -> None:
    """Serve in production.

    Refuses to start on an unsafe or incomplete configuration, with one line per fault; `gateway
    check` tells the same without starting. Settings come from `GATEWAY_*` variables (nested by
    `__`: `GATEWAY_SERVER__PORT`), over the file, over defaults.

    On SIGTERM readiness turns to 503 and, after `server.lame_duck`, the listener closes; running
    streams then have `server.grace_period`. A second signal ends it at once.
    """
    settings = read_settings(config)
    changed = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.replace(server=changed)
    found = _verdict(settings)
    if found:
        fail(found)
    _serve(settings, workers)


def _serve(settings: Settings, workers: int) -> NoReturn:
    from gateway.adapters.redis.embedded import EmbeddedValkeyError
    from gateway.server import run

    try:
        sys.exit(run(settings, workers=workers))
    except EmbeddedValkeyError as exc:
        fail([f"redis.url: {exc}"])
    except OSError as exc:
        server = settings.server
        fail([f"server.port: cannot listen on {server.host}:{server.port}: {exc.strerror or exc}"])


def _verdict(settings: Settings) -> list[str]:
    import asyncio

    from gateway.checks import faults, live_faults

    return faults(settings) + asyncio.run(live_faults(settings))


@cli.command()
@config_option
@click.option("--offline", is_flag=True, help="Judge the file alone: read no secret, ask no Redis.")
def check(config: Path | None, offline: bool) -> None:
    """Tell whether `gateway serve` would start, without starting.

    Prints one line per fault, which names the setting, and ends with status 1; or a summary and
    status 0.
    """
    from gateway.checks import faults

    settings = read_settings(config)
    found = faults(settings) if offline else _verdict(settings)
    if found:
        fail(found)
    click.echo(
        f"OK: {len(settings.upstreams)} upstream(s), {len(settings.mcp_servers)} MCP server(s), "
        f"{len(settings.rules)} rule(s), {len(settings.api_keys)} API key(s)."
    )


@cli.group()
def keys() -> None:
    """Make API keys."""


@keys.command("new")
@click.option("--id", "key_id", required=True, help="A name for the key, shown in logs and audit.")
@click.option("--tenant", required=True, help="The tenant that it belongs to.")
@click.option("--subject", required=True, help="Who uses it, such as `svc:web` or `user:ann`.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    default=("caller",),
    show_default=True,
    type=click.Choice(["caller", "approver", "auditor", "admin"]),
    help="What it may do; may be repeated.",
)
@click.option("--group", "groups", multiple=True, help="A group that it is in; may be repeated.")
@json_option
def keys_new(
    key_id: str,
    tenant: str,
    subject: str,
    roles: tuple[str, ...],
    groups: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an API key and print it, once, with its entry for `gateway.toml`.

    The entry holds a hash only; the key itself is kept nowhere.
    """
    from gateway.cli.keys import new_entry, render

    try:
        key, entry = new_entry(key_id, tenant, subject, roles, groups)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None
    click.echo(render(key, entry, as_json=as_json))


@cli.group()
def policy() -> None:
    """Look at the rules."""


@policy.command("simulate")
@click.option("--server", required=True, help="The MCP server's label.")
@click.option("--tool", required=True, help="The tool's name.")
@click.option("--args", "arguments", default="{}", help="The arguments, as JSON.")
@click.option("--tenant", default="", help="The caller's tenant.")
@click.option("--subject", default="", help="The caller's subject.")
@click.option("--role", "roles", multiple=True, help="A role of the caller; may be repeated.")
@click.option("--group", "groups", multiple=True, help="A group of the caller; may be repeated.")
@click.option("--end-user", default="", help="The end user that the caller names.")
@click.option(
    "--annotation",
    "annotations",
    multiple=True,
    metavar="NAME=BOOL",
    help="What the tool says of itself, such as `read_only=true`; may be repeated.",
)
@click.option("--saw-untrusted", is_flag=True, help="An untrusted tool ran in the chain before.")
@click.option("--saw-private", is_flag=True, help="A private tool ran in the chain before.")
@click.option("--explain", is_flag=True, help="Also tell what became of every rule, and why.")
@config_option
@json_option
def policy_simulate(config: Path | None, as_json: bool, explain: bool, **call: Any) -> None:
    """Tell what the rules say of a call: effect, rule, reason, and who may approve.

    The most restrictive match wins. A known server without a match: ask; an unknown one: deny.
    """
    from gateway.cli.policy import make_call, simulate

    settings = read_settings(config)
    try:
        made = make_call(settings, **call)
    except ValueError as exc:
        raise click.UsageError(f"--annotation {exc}") from None
    click.echo(simulate(settings, made, as_json=as_json, explain=explain))


@cli.group()
def mcp() -> None:
    """Look at registered MCP servers."""


@mcp.command("probe")
@click.argument("label")
@config_option
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=REFERENCE",
    help="A header that callers would send (`forward_headers`), with a reference to its value, "
    "such as `X-User-Token=env:TOKEN`; may be repeated.",
)
@click.option(
    "--accept", is_flag=True, help="Trust these definitions from now on, in every tenant."
)
@click.option("--yes", is_flag=True, help="Do not ask before accepting.")
@json_option
def mcp_probe(
    label: str,
    config: Path | None,
    headers: tuple[str, ...],
    accept: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """List the tools of the MCP server LABEL, with its configured headers.

    Shows each tool's annotations, which are what the server claims, the hash of its definition,
    which changes when name, title, description, schemas or annotations do, and what its pin says:
    `trusted`, `drifted` (the server lists another definition), `quarantined` or `unseen`.
    """
    from gateway.cli.probe import ProbeError, accept_all, probe

    settings = read_settings(config)
    try:
        report = probe(settings, label, headers)
    except ProbeError as exc:
        fail([str(exc)])
    click.echo(report.to_json() if as_json else report.to_text(), nl=False)
    if not accept:
        return
    if not yes:
        click.confirm("Trust these definitions?", abort=True, err=True)
    try:
        changed = accept_all(settings, report)
    except ProbeError as exc:
        fail([str(exc)])
    for tenant, count in changed.items():
        click.echo(f"{tenant}: {count} pin(s) changed", err=True)


@cli.group()
def audit() -> None:
    """Verify the audit."""


_existing = click.Path(exists=True, dir_okay=False, path_type=Path)


@audit.command("verify")
@config_option
@click.option("--tenant", help="This tenant's chain alone; by default every configured one's.")
@click.option("--file", "export", type=_existing, help="An export (`GET /v1/audit/export`).")
@click.option(
    "--checkpoints",
    "log",
    type=_existing,
    help="A gateway's log: the chain must agree with every `audit checkpoint` line in it.",
)
@click.option(
    "--expect-head",
    "expected",
    metavar="HASH",
    help="A hash that you noted before: an entry must have it.",
)
def audit_verify(
    config: Path | None,
    tenant: str | None,
    export: Path | None,
    log: Path | None,
    expected: str | None,
) -> None:
    """Follow the audit's hash chain, in Redis or in an export.

    Prints one line per tenant and ends with status 0 if everything holds; else it names the first
    entry that is altered, missing or moved, and ends with status 1. An export needs neither
    configuration nor keys. What was cut off at the end, or rewritten as a whole, shows only
    against something that was kept elsewhere: `--checkpoints` or `--expect-head`.
    """
    from gateway.cli.audit import AuditError, line, read_log, verify_file, verify_store

    if export is not None and (log is not None or tenant is not None):
        raise click.UsageError("--file is verified by itself: no --tenant, no --checkpoints")
    try:
        if export is not None:
            found = [(str(export), verify_file(export, expected))]
        else:
            settings = read_settings(config)
            tenants = [tenant] if tenant else [one.id for one in settings.to_tenants()]
            found = verify_store(settings, tenants, read_log(log) if log else [], expected)
    except AuditError as exc:
        fail([str(exc)])
    for name, verdict in found:
        click.echo(line(name, verdict), err=not verdict.ok)
    sys.exit(0 if all(verdict.ok for _, verdict in found) else 1)


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8099, show_default=True)
@click.option("--azure", is_flag=True, help="Errors, headers and content filters as Azure's.")
@click.option(
    "--resource", default="emulator", show_default=True, help="Whose key seals reasoning."
)
@click.option("--no-store", is_flag=True, help="Store nothing, as a zero-data-retention account.")
@click.option("--chunk-delay", type=click.FloatRange(min=0), default=0.02, show_default=True)
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    metavar="REFERENCE",
    help="Accept only this key, given as env:NAME or file:PATH; without it, any key.",
)
def emulator(
    host: str,
    port: int,
    azure: bool,
    resource: str,
    no_store: bool,
    chunk_delay: float,
    api_keys: tuple[str, ...],
) -> None:
    """Run the provider emulator alone: the Responses API without a model.

    Its answers follow commands in the user's text, such as `/call github.search_issues {}` or
    `/think`; it calls real MCP servers and refuses what the real API refuses.
    """
    from gateway.cli.emulate import run_emulator

    try:
        run_emulator(
            host=host,
            port=port,
            azure=azure,
            resource=resource,
            store=not no_store,
            chunk_delay=chunk_delay,
            keys=api_keys,
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from None


@cli.command("demo-mcp", hidden=True)
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=click.IntRange(0, 65535), default=8098)
def demo_mcp(host: str, port: int) -> None:
    """Run the demo MCP server; DEMO_MCP_TOKEN is the bearer token it asks for."""
    from gateway.cli.emulate import run_demo_mcp

    run_demo_mcp(host=host, port=port)
