"""Opens clients for Redis or Valkey from version 7, and translates their errors (OPS-2, OPS-4)."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
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

_FULL = (OutOfMemoryError, ReadOnlyError)
_UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    InvalidResponse,
    ClusterDownError,
    TryAgainError,
    NoPermissionError,
)
_FULL_CODES = ("MISCONF", "NOREPLICAS")
_UNAVAILABLE_CODES = ("MASTERDOWN", "BUSY", "UNKILLABLE")


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
        url: `redis://`, `rediss://` or `unix://`.
        max_connections: More than the turns promised at once: the pool raises beyond it.

    Raises:
        ValueError: The scheme is not supported.
    """
    _check(url)
    commands = _client(url, socket_timeout, connect_timeout, max_connections, retries=2)
    # Listening waits for as long as nothing happens, and reconnects by itself.
    pubsub = _client(url, None, connect_timeout, 16, retries=0)
    try:
        yield Clients(commands, pubsub)
    finally:
        await pubsub.aclose()
        await commands.aclose()


def _check(url: str) -> None:
    scheme = urlsplit(url).scheme
    if scheme in ("redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel"):
        raise ValueError(f"{scheme}:// is not supported yet: use redis://, rediss:// or unix://")
    if scheme not in ("redis", "rediss", "unix"):
        # The URL itself may hold a password and is not repeated.
        raise ValueError("a Redis URL begins with redis://, rediss:// or unix://")


def _client(
    url: str,
    socket_timeout: float | None,
    connect_timeout: float,
    max_connections: int,
    *,
    retries: int,
) -> Client:
    # Retries must be asked for: the defaults differ by constructor, and with time-outs among
    # the causes a paused server gets every write several times. Only lost connections are tried
    # again, and every script bears being repeated.
    retry = Retry(
        ExponentialWithJitterBackoff(cap=0.25, base=0.02),
        retries,
        supported_errors=(ConnectionError,),
    )
    tcp = {} if url.startswith("unix:") else {"socket_keepalive": True}
    return Redis.from_url(
        url,
        retry=retry,
        socket_timeout=socket_timeout,
        socket_connect_timeout=connect_timeout,
        max_connections=max_connections,
        **tcp,
    )


def translate(error: RedisError) -> Exception:
    """Return the gateway's error for a client's; an error of our own making stays what it is."""
    if isinstance(error, _FULL):
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
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
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

    async def load(self) -> None:
        """Load the script into the server."""
        source = cast("str", self._script.script)
        await self._client.script_load(source)
