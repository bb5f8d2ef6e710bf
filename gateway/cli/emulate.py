"""`gateway emulator` and the demo MCP server, as programs of their own."""

from __future__ import annotations

import asyncio

from gateway.adapters.secrets import SecretResolver
from gateway.domain.errors import SecretUnavailable
from gateway.domain.secrets import SecretRef


def run_emulator(
    *,
    host: str,
    port: int,
    azure: bool,
    resource: str,
    store: bool,
    chunk_delay: float,
    keys: tuple[str, ...],
) -> None:
    """Serve the emulator until a signal.

    Raises:
        ValueError: A key's reference cannot be read.
    """
    from gateway.emulator.serve import run
    from gateway.emulator.settings import EmulatorSettings

    settings = EmulatorSettings(
        api_keys=frozenset(asyncio.run(_read(keys))),
        resource=resource,
        azure=azure,
        store=store,
        chunk_delay=chunk_delay,
    )
    run(settings, host, port)


async def _read(references: tuple[str, ...]) -> list[str]:
    resolver = SecretResolver()
    try:
        return [await resolver.resolve(SecretRef.parse(text)) for text in references]
    except SecretUnavailable as exc:
        raise ValueError(f"--api-key: {exc}") from None
    except ValueError as exc:
        raise ValueError(f"--api-key {exc}") from None


def run_demo_mcp(*, host: str, port: int) -> None:
    """Serve the demo MCP server until a signal; its token is in `DEMO_MCP_TOKEN`.

    Raises:
        ValueError: There is no token.
    """
    from gateway.emulator.demo_mcp import run

    run(None, host, port)
