"""How values are written for the server, and read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Fields = Mapping[bytes, bytes]


def raw(text: str) -> bytes:
    """Write a text; a lone surrogate in an id of a caller must be a miss, not an error."""
    return text.encode("utf-8", "surrogatepass")


def text(raw: bytes) -> str:
    """Read what `raw` wrote."""
    return raw.decode("utf-8", "surrogatepass")


def millis(seconds: float) -> int:
    """Write a time, or a length of time, as scripts count it."""
    return round(seconds * 1000)


def fields(flat: Sequence[bytes]) -> Fields:
    """Read a hash as a script returns it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
