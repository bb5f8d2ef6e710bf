"""A chain of a thousand turns goes on like a new one; all of it is made in tests/reliability."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio
from pydantic import SecretStr

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis import keys
from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.adapters.redis.turns import RedisTurnStore
from tests.support.commands import commands
from tests.support.stack import Gateway, Stack

MODEL = "gpt-4.1"
TURNS = 1000


@pytest.fixture(scope="module")
def own(stack: Stack) -> Iterator[tuple[EmbeddedValkey, Gateway]]:
    """A gateway with a Valkey of its own, where nobody else's commands are."""
    with EmbeddedValkey() as valkey:
        section = {"url": SecretStr(valkey.url), "allow_volatile": True}
        tenants = [{"id": "acme", "stateless": True}, {"id": "rival"}]
        with stack.gateway(redis=section, tenants=tenants) as gateway:
            yield valkey, gateway


async def lay(url: str, first: str, count: int) -> str:
    """Lay turns like the first one behind it, as the gateway writes them; return the last id."""
    async with aclosing(redis.asyncio.Redis.from_url(url)) as client:
        store = RedisTurnStore(client, KeyRing([("k1", b"k" * 32)]))
        begun = await store.read("acme", first)
        assert begun is not None
        names = [first, *(f"resp_{n:048}" for n in range(1, count))]

        async def record(n: int) -> None:
            items = begun.items.replace(b"word 0000", f"word {n:04}".encode())
            ids = tuple(f"{one[:-4]}{n:04}" for one in begun.item_ids)
            for old, new in zip(begun.item_ids, ids, strict=True):
                items = items.replace(old.encode(), new.encode())
            head = replace(begun.head, id=names[n], parent=names[n - 1], last_leg=names[n])
            await store.record(replace(begun, head=head, items=items, item_ids=ids), ttl=600)

        for at in range(1, count, 100):
            await asyncio.gather(*(record(n) for n in range(at, min(at + 100, count))))
    return names[-1]


async def size(url: str, turn_id: str) -> int:
    async with aclosing(redis.asyncio.Redis.from_url(url)) as client:
        return int(await client.memory_usage(keys.turn("acme", turn_id)) or 0)


@pytest.mark.covers("STATE-6")
async def test_turns_on_a_chain_of_a_thousand_cost_what_turns_on_a_new_one_do(
    own: tuple[EmbeddedValkey, Gateway],
) -> None:
    valkey, gateway = own
    client = gateway.client()
    first = await client.responses.create(model=MODEL, input="/echo word 0000")
    long = await lay(valkey.url, first.id, TURNS)
    figures: list[tuple[list[str], int]] = []
    for parent in (first.id, long):
        # The second of two turns: scripts are loaded, and both are like the other.
        before = await client.responses.create(
            model=MODEL, input="/echo one", previous_response_id=parent
        )
        with commands(valkey.url, before.id) as seen:
            made = await client.responses.create(
                model=MODEL, input="/echo two", previous_response_id=before.id
            )
        figures.append(([one.split()[0] for one in seen], await size(valkey.url, made.id)))
    (short_commands, short_size), (long_commands, long_size) = figures
    # The parent's head, the whole chain, and the new turn on record.
    assert long_commands == short_commands == ["HGET", "EVALSHA", "EVALSHA"]
    assert abs(long_size - short_size) <= 256  # of some 3,000


@pytest.mark.covers("STATE-6")
async def test_a_chain_of_a_thousand_turns_is_whole(
    own: tuple[EmbeddedValkey, Gateway], stack: Stack
) -> None:
    valkey, gateway = own
    client = gateway.client()
    first = await client.responses.create(model=MODEL, input="/echo word 0000")
    last: Any = await lay(valkey.url, first.id, TURNS)
    await stack.forget()
    async with client.responses.stream(
        model=MODEL, input="/recall", previous_response_id=last
    ) as events:
        final = await events.get_final_response()
    assert final.output_text.startswith(f"I see {TURNS} user messages")
    (asked,) = await stack.requests()
    items = asked["body"]["input"]
    assert len(items) == 2 * TURNS + 1
    said = [item["content"] for item in items[:-1:2]]
    assert said == [f"/echo word {n:04}" for n in range(TURNS)]
