"""The pins of a probed server: how they compare with what it lists, and the operator's word."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.domain.pins import Definition, PinSet, pin_id
from gateway.domain.ports import PinnedServer
from gateway.domain.registry import McpServer
from gateway.domain.tools import identity_of, may_use

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.stores import Stores

_TRIES = 20

PinsOf = dict[str, dict[str, str]]
"""Tenant to tool to what its pin says of the definition that the server lists now."""


class PinsUnavailable(Exception):
    """The pins cannot be read or written; the message says why, in one line."""


def tenants_of(settings: Settings, server: McpServer) -> list[str]:
    """The tenants that may use a server: each has pins of its own."""
    return [one.id for one in settings.to_tenants() if may_use(one, server.label)]


async def compare(settings: Settings, server: McpServer, listed: Sequence[Definition]) -> PinsOf:
    """Compare what a server lists now with the pins of every tenant.

    Raises:
        PinsUnavailable: There is no Redis that runs, no key, or no answer.
    """
    key = PinnedServer(server.label, identity_of(server))
    found: PinsOf = {}
    async with _stores(settings) as stores:
        for tenant in tenants_of(settings, server):
            (pins,) = await stores.pins.read(tenant, [key])
            found[tenant] = {one.name: _said(pins, one, server) for one in listed}
    return found


def _said(pins: PinSet, listed: Definition, server: McpServer) -> str:
    status = pins.status(listed.name, server.pins)
    pin = pins.pins.get(listed.name)
    same = pin is not None and pin.trusted is not None and pin.trusted.same_as(listed)
    return "drifted" if status == "trusted" and not same else status


async def accept(
    settings: Settings, server: McpServer, listed: Sequence[Definition]
) -> dict[str, int]:
    """Trust what a server lists, on the operator's word; return how many pins changed.

    Raises:
        PinsUnavailable: There is no Redis that runs, no key, or no answer.
    """
    async with _stores(settings) as stores:
        return {
            tenant: await _accept(stores, tenant, server, listed)
            for tenant in tenants_of(settings, server)
        }


async def _accept(
    stores: Stores,
    tenant: str,
    server: McpServer,
    listed: Sequence[Definition],
) -> int:
    key = PinnedServer(server.label, identity_of(server))
    for _ in range(_TRIES):
        (pins,) = await stores.pins.read(tenant, [key])
        after = pins.accepted(listed, "operator")
        changed = [one for one in listed if after.pins[one.name] != pins.pins.get(one.name)]
        if not changed:
            return 0
        if await stores.pins.write(tenant, key, after):
            for one in changed:
                pin = pin_id(tenant, key.label, key.identity, one.name)
                await stores.audit.note(
                    tenant,
                    "pin.accepted",
                    actor="operator",
                    subject=f"{key.label}.{one.name}",
                    detail={"pin": pin, "definition_hash": one.hash},
                )
            return len(changed)
    raise PinsUnavailable("the pins change too often to be written; try again")


@asynccontextmanager
async def _stores(settings: Settings) -> AsyncGenerator[Stores, None]:
    from gateway.domain.errors import GatewayError
    from gateway.stores import open_stores

    if settings.redis.embedded or settings.redis.url is None or not settings.encryption.keys:
        raise PinsUnavailable("pins are in a Redis that runs: set redis.url and encryption.keys")
    try:
        async with open_stores(settings) as stores:
            yield stores
    except (GatewayError, ValueError) as exc:
        raise PinsUnavailable(str(exc)) from exc
