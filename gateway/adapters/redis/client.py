"""Opens clients for Redis or Valkey from version 7, and translates their errors (OPS-2, OPS-4)."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    ClusterDownError,
    ConnectionError,
    InvalidResponse,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from gateway.domain.errors import StorageFull, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

Client = Redis
"""What the stores work with; a Cluster's or a Sentinel's client can take its place."""

_LOG = logging.getLogger(__name__)

_SENTINEL_PORT = 26379

_UNAVAILABLE = (
    ConnectionError,
    ReadOnlyError,
    TimeoutError,
    InvalidResponse,
    ClusterDownError,
    TryAgainError,
    NoPermissionError,
)
_FULL_CODES = ("MISCONF",)
_UNAVAILABLE_CODES = ("MASTERDOWN", "NOREPLICAS", "BUSY", "UNKILLABLE")


@dataclass(frozen=True, slots=True)
class Clients:
    """The clients of a process: one for commands, one for the connection that listens."""

    commands: Client
    pubsub: Client


@asynccontextmanager
async def open_clients(
    url: str,
    *,
    socket_timeout: float = 1.0,
    connect_timeout: float = 1.0,
    max_connections: int = 10_000,
) -> AsyncGenerator[Clients]:
    """Open the clients for a URL and close them at the end; nothing is sent yet.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or of Sentinels that name the server to use:
            `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/SERVICE[/DB]`, with
            `sentinel_username` and `sentinel_password` as parameters where they ask for them.
        max_connections: More than the turns promised at once: the pool raises beyond it.

    Raises:
        ValueError: The URL is not one of these; it may hold a password and is not repeated.
    """
    async with AsyncExitStack() as stack:
        where = _parse(url)
        common = {"socket_connect_timeout": connect_timeout}
        # Listening waits for as long as nothing happens, and reconnects by itself.
        quick = {"socket_timeout": socket_timeout, "max_connections": max_connections, **common}
        patient = {"socket_timeout": None, "max_connections": 16, **common}
        yield Clients(
            commands=_open(stack, where, retry=_retry(2), **quick),
            pubsub=_open(stack, where, retry=_retry(0), **patient),
        )


@dataclass(frozen=True, slots=True)
class _Where:
    """A server, or the Sentinels that know which of several is the master now."""

    url: str
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_auth: tuple[tuple[str, str], ...] = ()


def _parse(url: str) -> _Where:
    scheme, _, rest = url.partition("://")
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise ValueError(f"{scheme}:// is not supported yet: use redis:// or redis+sentinel://")
    if scheme in ("redis+sentinel", "rediss+sentinel"):
        return _parse_sentinel(scheme.partition("+")[0], rest)
    if scheme not in ("redis", "rediss", "unix"):
        raise ValueError(
            "a Redis URL begins with redis://, rediss://, redis+sentinel:// or unix://"
        )
    return _Where(url)


def _parse_sentinel(scheme: str, rest: str) -> _Where:
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    user, at, hosts = authority.rpartition("@")
    service, _, database = path.partition("/")
    try:
        sentinels = tuple(_host_and_port(host) for host in hosts.split(","))
    except ValueError:
        sentinels = ()
    if not service or not all(host for host, _ in sentinels) or not sentinels:
        raise ValueError(
            "a Sentinel URL is redis+sentinel://HOST[:PORT],HOST[:PORT],…/SERVICE[/DB]"
        )
    auth, other = [], []
    for name, value in parse_qsl(query):
        if name in ("sentinel_username", "sentinel_password"):
            auth.append((name.removeprefix("sentinel_"), value))
        else:
            other.append((name, value))
    server = f"{scheme}://{user}{at}sentinel/{database}?{urlencode(other)}"
    return _Where(server, sentinels, service, tuple(auth))


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or _SENTINEL_PORT


def _open(stack: AsyncExitStack, where: _Where, **options: Any) -> Client:
    if not where.url.startswith("unix:"):
        options["socket_keepalive"] = True
    if not where.sentinels:
        client = Redis.from_url(where.url, **options)
        stack.push_async_callback(client.aclose)
        return client
    server = dict(parse_url(where.url))
    tls = server.pop("connection_class", None) is not None
    server.pop("host")
    # A Sentinel that says nothing must not cost the whole time: the next one is asked.
    seconds = options["socket_connect_timeout"] / 2
    times = {"socket_timeout": seconds, "socket_connect_timeout": seconds, "retry": _retry(0)}
    asked = {name: value for name, value in server.items() if name.startswith("ssl_")}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        where.sentinels,
        sentinel_kwargs={**times, **asked, "ssl": tls, **dict(where.sentinel_auth)},
        **server,
        ssl=tls,
    )
    stack.push_async_callback(sentinel.aclose)
    master = cast("Client", sentinel.master_for(where.service, **options))
    stack.push_async_callback(master.aclose)
    return master


def _retry(times: int) -> Retry:
    """Try again after a lost connection, at a server that has become a replica, and only then.

    Retries must be asked for: the defaults differ by constructor, and with time-outs among the
    causes a paused server gets every write several times. The connection is made anew, so that
    after a failover it finds the new master. Every script bears being repeated.
    """
    return Retry(
        ExponentialWithJitterBackoff(cap=0.25, base=0.02),
        times,
        supported_errors=(ConnectionError, ReadOnlyError),
    )


def translate(error: RedisError) -> Exception:
    """Return the gateway's error for a client's; an error of our own making stays what it is."""
    if isinstance(error, OutOfMemoryError):
        return StorageFull()
    if isinstance(error, _UNAVAILABLE):
        return StoreUnavailable()
    if isinstance(error, ResponseError):
        text = str(error)
        if text.startswith(_FULL_CODES):
            return StorageFull()
        if text.startswith(_UNAVAILABLE_CODES):
            return StoreUnavailable()
    return error


def store_errors(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make a store method raise the gateway's errors: the one place where they are mapped."""

    @functools.wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except RedisError as error:
            mapped = translate(error)
            if mapped is error:
                raise
            raise mapped from error

    return call


async def execute(client: Client, *command: bytes | str | int) -> Any:
    """Run one command on the shortest way."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


class Script:
    """A Lua script of this package, called by its hash and loaded when the server forgot it.

    Scripts get every argument as bytes, str or int, take the time from the server alone, and do
    nothing a second time when the client repeats them after a lost connection.

    Args:
        fsync: Seconds that `on_disk` may wait for the disk; 0 for not at all.
    """

    def __init__(self, client: Client, name: str, *, fsync: float = 0.0) -> None:
        self._client = client
        self._fsync = round(fsync * 1000)
        source = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        self._script = client.register_script(source)
        self.sha: str = self._script.sha

    async def __call__(self, key: bytes, *args: bytes | str | int) -> Any:
        """Run the script; `key` is the one that routes it."""
        # Straight to the command: the registered script's own call costs as much as its work.
        try:
            return await execute(self._client, "EVALSHA", self.sha, 1, key, *args)
        except NoScriptError:
            await self.load()
            return await execute(self._client, "EVALSHA", self.sha, 1, key, *args)

    async def on_disk(self, key: bytes, *args: bytes | str | int) -> Any:
        """Run the script, and answer once what it wrote is on the server's disk.

        A server without WAITAOF (before Redis 7.2), or without an append-only file where that is
        accepted, keeps what it was told as well as it can.

        Raises:
            StoreUnavailable: The disk took too long. The write may last or not: repeat the call.
        """
        if not self._fsync:
            return await self(key, *args)
        try:
            result, kept = await self._and_wait(key, *args)
        except NoScriptError:
            await self.load()
            result, kept = await self._and_wait(key, *args)
        if isinstance(kept, ResponseError):
            _LOG.warning("the server cannot tell what is on its disk: %s", kept)
            self._fsync = 0
        elif isinstance(kept, Exception):
            raise kept
        elif not kept[0]:
            raise StoreUnavailable
        return result

    async def _and_wait(self, key: bytes, *args: bytes | str | int) -> tuple[Any, Any]:
        # One round trip, and one connection: WAITAOF is about what its own connection wrote.
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.execute_command("EVALSHA", self.sha, 1, key, *args)
            pipe.execute_command("WAITAOF", 1, 0, self._fsync)
            result, kept = await pipe.execute(raise_on_error=False)
        if isinstance(result, Exception):
            raise result
        return result, kept

    async def load(self) -> None:
        """Load the script into the server."""
        source = cast("str", self._script.script)
        await self._client.script_load(source)
