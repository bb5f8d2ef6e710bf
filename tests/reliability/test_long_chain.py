"""A chain of a thousand turns, each made through the gateway by the official SDK (STATE-6)."""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import openai
import pytest
import redis

from gateway.adapters.redis import keys
from tests.reliability.support import Site, amount, report
from tests.support.commands import commands

pytestmark = pytest.mark.timeout(600)


def stored(admin: redis.Redis, turn_id: str) -> int:
    """Bytes of a turn in Redis: its hash, and the index entries that name it."""
    key = keys.turn("acme", turn_id)
    used = int(admin.memory_usage(key) or 0)
    for name in admin.scan_iter(keys.prefix("acme") + b"item:*", count=5000):
        if admin.get(name) == turn_id.encode():
            used += int(admin.memory_usage(name) or 0)
    return used


@pytest.mark.covers("STATE-6")
async def test_a_turn_costs_the_same_however_long_its_chain_is(site: Site) -> None:
    (replica,) = site.up("one")
    client = replica.client()
    turns = amount(150, long=1000)
    marks = [mark for mark in (10, 100, 1000) if mark <= turns]
    previous: Any = openai.omit
    seconds: list[float] = []
    sizes: list[int] = []
    round_trips: list[int] = []
    with redis.Redis.from_url(site.valkey.url) as admin:
        for number in range(1, turns + 1):
            measured = number in marks
            begun = time.monotonic()
            # Watching slows a turn down: those that are timed are not watched.
            with ExitStack() as watched:
                seen: list[str] = []
                if measured:
                    seen = watched.enter_context(commands(site.valkey.url, str(previous)))
                made = await client.responses.create(
                    model="gpt-4.1",
                    input=f"/think of number {number:04}\n/echo this is turn {number:04}",
                    store=False,
                    previous_response_id=previous,
                )
            previous = made.id
            if not measured:
                seconds.append(time.monotonic() - begun)
            else:
                sizes.append(stored(admin, made.id))
                round_trips.append(len(seen))
                report(
                    "a turn of a long chain",
                    turn=number,
                    bytes=sizes[-1],
                    round_trips=round_trips[-1],
                    seconds=round(median(seconds[-9:]), 3),
                )
    said = await client.responses.create(
        model="gpt-4.1", input="/recall", store=False, previous_response_id=previous
    )
    assert said.output_text.startswith(f"I see {turns} user messages")
    assert f"reasoning: {turns};" in said.output_text
    assert set(round_trips) == {3}  # the parent's head, the chain, and the new turn
    assert max(sizes) - min(sizes) <= 256  # of some 4,000: numbers grow, too
