"""Upstreams and the secrets sent to them (API-1, MCP-3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.secrets import SecretRef


class SecretSource(Protocol):
    """Secrets by reference, read when they are needed."""

    async def resolve(self, ref: SecretRef) -> str:
        """Return the secret's value.

        Raises:
            SecretUnavailable: It is not there; the message names the reference only.
        """
        ...


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """An upstream's whole answer: status, headers (lower-case names) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ByteStream(Protocol):
    """An open upstream stream of bytes; `aclose` may be called twice."""

    headers: Mapping[str, str]

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None:
        """Close the connection to the upstream."""
        ...


class UpstreamClient(Protocol):
    """Upstreams by name. Bodies and answers are bytes; nothing is retried here but a token.

    Every method raises `errors.UpstreamRefused` for an HTTP error of the upstream (with its
    status, headers and body), `errors.UpstreamUnreachable` when provably nothing was sent,
    `errors.UpstreamTimeout` and `errors.UpstreamDisconnected` when it may have been.
    """

    async def send(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> UpstreamAnswer:
        """Send a request and read the whole answer."""
        ...

    async def open(
        self,
        upstream: str,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ByteStream:
        """Send a request and return its open stream, once the status is known to be 2xx."""
        ...
