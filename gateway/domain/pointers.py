"""JSON pointers (RFC 6901): `/to/0/address` names a place, `~1` is a `/` in a name, `~0` a `~`."""

from __future__ import annotations

from collections.abc import Iterable


def names_of(pointer: str) -> tuple[str, ...]:
    """Read the names on the way to a place; what stands before the first `/` is left out."""
    parts = pointer.split("/")[1:]
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def pointer_to(names: Iterable[str]) -> str:
    """Write the pointer to the place that the names lead to; "" is the whole document."""
    return "".join(f"/{name.replace('~', '~0').replace('/', '~1')}" for name in names)
