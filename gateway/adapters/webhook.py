"""Sends webhooks over HTTP, and nowhere that they must not go (APPR-9)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override
from yarl import URL

from gateway.domain.addresses import Reach, numeric
from gateway.services.webhooks import Answer, WebhookSender

TIMEOUT = 15.0
"""Seconds that a receiver may take, connecting included."""

_LOOKUPS = 32

_PLAIN = "is plain http, which is for loopback addresses alone, where they are allowed"

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds the numeric addresses of a name."""


class _AddressRefused(OSError):
    """A name or address leads where messages must not go; the text says what is there."""


class HttpWebhookSender(WebhookSender):
    """Posts messages; redirects are not followed and answers are not read.

    A connection goes to the very addresses that were checked, and serves one message: the name is
    looked up and checked anew for each. Proxies of the environment are not used: they would look
    names up by themselves. Opened as a context manager.
    """

    def __init__(self, *, timeout: float = TIMEOUT, lookup: Lookup | None = None) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        # Name servers may hang, and their threads with them: nobody else waits for those.
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-names")
        self._lookup = lookup or self._look_up
        self._sessions: dict[tuple[Reach, bool], aiohttp.ClientSession] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sessions.clear()
        await self._stack.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @override
    async def refusal(self, url: str, reach: Reach) -> str | None:
        plain = not url.lower().startswith("https:")
        try:
            host = URL(url).host or ""
            _check_literal(host, reach, plain)
            if not numeric(host):
                resolver = _CheckedResolver(reach, self._lookup, plain=plain)
                async with asyncio.timeout(self._timeout.total):
                    await resolver.resolve(host)
        except _AddressRefused as error:
            return str(error)
        except (OSError, ValueError):
            # The name may be known later, and every message is checked again.
            return _PLAIN if plain else None
        return None

    @override
    async def post(self, url: str, body: bytes, headers: dict[str, str], reach: Reach) -> Answer:
        try:
            target = URL(url)
            plain = target.scheme != "https"
            _check_literal(target.host or "", reach, plain)  # the connector resolves only names
            session = self._session(reach, plain)
            async with session.post(
                target, data=body, headers=headers, allow_redirects=False
            ) as response:
                # Its body is nothing to us; closing drops what was not read.
                response.close()
                return Answer(status=response.status)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(error=_class_of(error))

    async def _look_up(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._threads, ask)
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def _session(self, reach: Reach, plain: bool) -> aiohttp.ClientSession:
        """Find the session of a reach, made on first use."""
        session = self._sessions.get((reach, plain))
        if session is None:
            resolver = _CheckedResolver(reach, self._lookup, plain=plain)
            session = self._sessions[reach, plain] = _open(resolver, self._timeout)
            self._stack.push_async_callback(session.close)
        return session


def _open(resolver: AbstractResolver, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            resolver=resolver,
            use_dns_cache=False,
            force_close=True,
            limit=0,  # what runs at once is bounded by the service, for each receiver by itself
        ),
        timeout=timeout,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"user-agent": "mcp-conversation-gateway"},
    )


class _CheckedResolver(AbstractResolver):
    """Gives the connector only addresses that may be connected to.

    One refused address refuses the name: who mixes them waits for the other to be taken.
    """

    def __init__(self, reach: Reach, lookup: Lookup, *, plain: bool) -> None:
        self._reach = reach
        self._lookup = lookup
        self._plain = plain

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._lookup(host, port)
        for address in found:
            _check(address, self._reach, self._plain)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    @override
    async def close(self) -> None:
        """Nothing is open."""


def _check_literal(host: str, reach: Reach, plain: bool) -> None:
    if numeric(host):
        _check(host, reach, plain)


def _check(address: str, reach: Reach, plain: bool) -> None:
    reason = reach.refusal(address)
    if reason is not None:
        raise _AddressRefused(f"leads to {reason}")
    if plain and not reach.allows_plain_http(address):
        raise _AddressRefused(_PLAIN)


def _class_of(error: Exception) -> str:
    """Name a failure by its class: its text may hold the URL, which may hold a secret."""
    match error:
        case aiohttp.ClientConnectorDNSError(os_error=_AddressRefused()) | _AddressRefused():
            return "refused_address"
        case aiohttp.ClientConnectorDNSError():
            return "dns"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "tls"
        case aiohttp.ClientConnectionError() | OSError():
            return "connection"
        case _:
            return "protocol"
