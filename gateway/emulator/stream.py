"""Events as bytes: SSE frames, obfuscation, and the faults that happen in mid-stream."""

import secrets
import string
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import msgspec

from gateway.emulator.emission import Event
from gateway.emulator.faults import Fault, FaultKind

_BLOCK = 16
_POOL = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(4096))
_DELTAS_BEFORE_FAULT = 3
_BROKEN = (
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequen\n\n'
)
_ENDINGS = ("response.completed", "response.incomplete", "response.failed")


class ConnectionReset(Exception):
    """The connection is to be torn down."""


def frame(event: Event) -> bytes:
    """Return one SSE frame."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))


def obfuscate(event: Event) -> Event:
    """Return a delta padded, so that its length on the wire says little about its text."""
    if not event["type"].endswith(".delta"):
        return event
    missing = -len(event["delta"]) % _BLOCK
    start = secrets.randbelow(len(_POOL) - _BLOCK)
    return {**event, "obfuscation": _POOL[start : start + missing]}


async def frames(
    events: AsyncIterator[Event], *, obfuscated: bool, fault: Fault | None = None
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a stream.

    Raises:
        ConnectionReset: where the fault `reset` strikes.
    """
    deltas = 0
    struck = fault is None
    async for event in events:
        is_delta = event["type"].endswith(".delta")
        deltas += is_delta
        if fault and not struck and (deltas > _DELTAS_BEFORE_FAULT or event["type"] in _ENDINGS):
            struck = True
            async for broken in _strike(fault):
                yield broken
        if fault and fault.kind is FaultKind.SLOW and is_delta:
            await anyio.sleep(fault.seconds)
        if fault and fault.kind is FaultKind.NO_TERMINAL and event["type"] in _ENDINGS:
            return
        yield frame(obfuscate(event) if obfuscated else event)


async def _strike(fault: Fault) -> AsyncGenerator[bytes, None]:
    match fault.kind:
        case FaultKind.RESET:
            raise ConnectionReset
        case FaultKind.STALL:
            await anyio.sleep(fault.seconds)
        case FaultKind.MALFORMED:
            yield _BROKEN
        case _:
            return


async def document(body: dict[str, Any], fault: Fault | None) -> tuple[bytes, bool]:
    """Return a JSON body under the same faults, and whether it is sent in one piece.

    Without a stream, a reset cuts the body in half, and a malformed or endless answer is cut JSON.
    """
    encoded = msgspec.json.encode(body)
    match fault.kind if fault else None:
        case FaultKind.RESET:
            return encoded[: len(encoded) // 2], False
        case FaultKind.MALFORMED | FaultKind.NO_TERMINAL:
            return encoded[: len(encoded) // 2], True
        case FaultKind.STALL | FaultKind.SLOW if fault:
            await anyio.sleep(fault.seconds)
    return encoded, True
