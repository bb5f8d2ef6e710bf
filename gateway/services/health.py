"""Whether the store takes writes, known before a turn costs anything (OPS-1, OPS-4)."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from gateway.domain.errors import GatewayError, StoreUnavailable

logger = logging.getLogger("gateway.health")

PROBE_EVERY = 1.0
"""Seconds between probes."""


class Probe(Protocol):
    """Writes and reads one small value."""

    async def probe(self) -> None:
        """Raises `StoreUnavailable` or `StorageFull`."""
        ...


class Health:
    """The last word of the probe; reading it costs nothing."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.problem: StoreUnavailable | None = None

    def require_store(self) -> None:
        """Refuse a turn whose state could not be written, before anything is sent upstream.

        Raises:
            StoreUnavailable: The store does not take writes.
        """
        if self.problem is not None:
            raise self.problem

    async def check(self) -> None:
        """Probe once."""
        try:
            await self._probe.probe()
        except StoreUnavailable as exc:
            if self.problem is None:
                logger.warning("the store takes no writes", extra={"code": exc.code})
            self.problem = exc
        except GatewayError:
            logger.exception("the store probe failed")
        else:
            if self.problem is not None:
                logger.info("the store takes writes again")
            self.problem = None

    async def run(self) -> None:
        """Probe for ever."""
        while True:
            await self.check()
            await asyncio.sleep(PROBE_EVERY)
