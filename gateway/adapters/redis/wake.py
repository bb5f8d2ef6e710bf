"""Hints between replicas over one pub/sub channel (APPR-4, STREAM-3).

A hint carries an id and no content. It may be lost: whoever waits also looks now and then, so
that a broken connection costs a little time and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client
from gateway.domain.hints import HOOKS, JOBS
from gateway.domain.ports import Hint, Wake

_LOG = logging.getLogger(__name__)
_SILENCE = 5.0
"""Seconds without a message after which the connection is asked whether it lives."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


class _Event(Hint):
    """One listener's memory of a hint between two waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    @override
    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class RedisWake(Wake):
    """Waits for hints; one connection per process, however many wait.

    Args:
        client: A client of its own, whose reads have no time-out.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._heard = False
        self._listeners: defaultdict[str, set[_Event]] = defaultdict(set)

    @override
    @contextmanager
    def listen(self, key: str) -> Generator[Hint]:
        hint = _Event()
        self._listeners[key].add(hint)
        try:
            yield hint
        finally:
            self._forget(key, hint)

    async def run(self) -> None:
        """Listen until canceled, connecting again whenever the connection is lost."""
        pause = _FIRST_PAUSE
        while True:
            self._heard = False
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(keys.WAKE_CHANNEL)
                    # Whoever waits since before may have missed its hint.
                    self._wake_all()
                    await self._listen(pubsub)
            except (RedisError, OSError) as error:
                pause = _FIRST_PAUSE if self._heard else min(pause * 2, _LONGEST_PAUSE)
                # Once per outage, not once per attempt.
                level = logging.WARNING if self._heard else logging.DEBUG
                _LOG.log(level, "the connection for hints is lost: %s", type(error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    async def _listen(self, pubsub: PubSub) -> None:
        asked = False
        while True:
            message = await pubsub.get_message(timeout=_SILENCE)
            if message is None:
                # A dead peer is silent as well: it must answer once before the next silence.
                if asked:
                    raise ConnectionError("no answer")
                await pubsub.ping()
                asked = True
                continue
            asked, self._heard = False, True
            if message["type"] == "message":
                self._wake(message["data"].decode(errors="replace"))

    def _wake(self, key: str) -> None:
        self._tell(key)
        kind = key.partition(":")[0]
        if kind in (JOBS, HOOKS):
            self._tell(kind)

    def _wake_all(self) -> None:
        for key in self._listeners:
            self._tell(key)

    def _tell(self, key: str) -> None:
        for hint in self._listeners.get(key, ()):
            hint.set()

    def _forget(self, key: str, hint: _Event) -> None:
        hints = self._listeners[key]
        hints.discard(hint)
        if not hints:
            del self._listeners[key]
