"""Secrets that an upstream or an MCP server repeats are taken out of what goes back (MCP-3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from gateway.domain.documents import Raw, encode


class Scrubber:
    """Removes known secret values from bytes that go to a caller (MCP-3).

    A belt beside the braces of redaction: an MCP server may repeat the credential that it was
    sent in a tool's output or an error text.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        needles: set[bytes] = set()
        for secret in secrets:
            for form in (secret, secret.rpartition(" ")[2]):
                if len(form) >= 8:  # shorter ones are words, and replacing them breaks text
                    needles.update(_spellings(form))
        self._needles = sorted(needles, key=len, reverse=True)

    def __bool__(self) -> bool:
        return bool(self._needles)

    def scrub_raw(self, value: Raw) -> Raw:
        """Scrub a part of a document; one that holds no secret is returned itself."""
        data = bytes(value)
        scrubbed = self.scrub(data)
        return value if scrubbed is data else Raw(scrubbed)

    def scrub(self, data: bytes) -> bytes:
        """Replace every known secret value by `[redacted]`."""
        for needle in self._needles:
            if needle in data:
                data = data.replace(needle, b"[redacted]")
        return data


@lru_cache(maxsize=1024)
def scrubber_of(secrets: tuple[str, ...]) -> Scrubber:
    """Return the scrubber that knows the secrets; the same ones come with every turn."""
    return Scrubber(secrets)


@lru_cache(maxsize=1024)
def _spellings(secret: str) -> frozenset[bytes]:
    """Write a text as encoders do: plain, ASCII only, with `/` escaped, and inside JSON text."""
    plain = encode(secret)[1:-1]
    ascii_only = json.dumps(secret)[1:-1].encode()
    nested = encode(plain.decode())[1:-1]
    found = frozenset({plain, ascii_only, nested, secret.encode("utf-8", "replace")})
    return found | {form.replace(b"/", b"\\/") for form in found}
