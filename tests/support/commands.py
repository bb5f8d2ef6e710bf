"""What a gateway asks of its Redis, command by command."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import redis


@contextmanager
def commands(url: str, *words: str) -> Iterator[list[str]]:
    """Note the commands that clients send and that hold one of some words.

    Each is a round trip, or part of one. What scripts call in the server is not among them.
    """
    seen: list[str] = []
    end = secrets.token_hex(8)

    def listen(monitor: Any) -> None:
        while True:
            noted = monitor.next_command()
            if end in noted["command"]:
                return
            if noted["client_type"] != "lua" and any(word in noted["command"] for word in words):
                seen.append(noted["command"])

    with redis.Redis.from_url(url) as watching, watching.monitor() as monitor:
        listener = Thread(target=listen, args=(monitor,), daemon=True)
        listener.start()
        try:
            yield seen
        finally:
            with redis.Redis.from_url(url) as other:
                other.echo(end)
            listener.join(timeout=30)
