"""Tool pins in Redis (MCP-5).

One sealed record per server. A process keeps what it opened, so that a turn's look at pins that
have not changed moves a version number and no definitions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.pins import Pin, PinSet
from gateway.domain.ports import Cipher, PinnedServer, PinStore

_KEPT = 512
"""How many servers' pins a process keeps open."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(dict[str, Pin])


class RedisPinStore(PinStore):
    """Pins in Redis, sealed by the cipher and bound to server and version."""

    def __init__(self, client: Client, cipher: Cipher) -> None:
        self._cipher = cipher
        self._script = Script(client, "pins.lua")
        self._known: OrderedDict[bytes, tuple[int, Mapping[str, Pin]]] = OrderedDict()

    @override
    @store_errors
    async def read(self, tenant: str, servers: Sequence[PinnedServer]) -> Sequence[PinSet]:
        if not servers:
            return []
        names = [_name(server) for server in servers]
        asked = [(keys.pins(tenant, name), name) for name in names]
        known = {key: self._known.get(key, (0, {})) for key, _ in asked}
        args = [part for key, _ in asked for part in (key, known[key][0])]
        milliseconds, *found = await self._script(asked[0][0], "read", *args)
        read: list[PinSet] = []
        for (key, name), version, sealed in zip(asked, found[::2], found[1::2], strict=True):
            pins = known[key][1]
            if sealed is not None:
                pins = self._open(tenant, name, version, sealed)
            elif version == 0:
                pins = {}
            self._keep(key, version, pins)
            read.append(PinSet(pins=pins, version=version, read_at=milliseconds / 1000))
        return read

    @override
    @store_errors
    async def write(self, tenant: str, server: PinnedServer, pins: PinSet) -> bool:
        name = _name(server)
        bound = _bound(name, pins.version + 1)
        plain = _encoder.encode(pins.pins)
        sealed = self._cipher.encrypt(plain, tenant=tenant, kind="pins", id=bound)
        key = keys.pins(tenant, name)
        return bool(await self._script(key, "write", key, pins.version, sealed))

    def _open(self, tenant: str, name: str, version: int, sealed: bytes) -> Mapping[str, Pin]:
        bound = _bound(name, version)
        return _decoder.decode(self._cipher.decrypt(sealed, tenant=tenant, kind="pins", id=bound))

    def _keep(self, key: bytes, version: int, pins: Mapping[str, Pin]) -> None:
        self._known[key] = (version, pins)
        self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)


def _name(server: PinnedServer) -> str:
    # A digest: labels and addresses are not for the reader of a dump.
    text = _encoder.encode([server.label, server.identity])
    return hashlib.sha256(text).hexdigest()[:40]


def _bound(name: str, version: int) -> str:
    return f"{version}:{name}"
