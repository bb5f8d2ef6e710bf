"""Pinned tool definitions (MCP-5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.pins import PinSet


@dataclass(frozen=True, slots=True)
class PinnedServer:
    """A server whose pins are kept: its label, and which server that label stands for."""

    label: str
    identity: str


class PinStore(Protocol):
    """Tool pins, one record per tenant, server label and server identity (MCP-5)."""

    async def read(self, tenant: str, servers: Sequence[PinnedServer]) -> Sequence[PinSet]:
        """Read the pins of servers in one round trip, in their order; unknown ones are empty."""
        ...

    async def write(self, tenant: str, server: PinnedServer, pins: PinSet) -> bool:
        """Write pins back; false when another has written since they were read."""
        ...
