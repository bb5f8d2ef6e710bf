"""A replica dies in a turn of a conversation that the gateway keeps (CHAIN-5)."""

from __future__ import annotations

import time

import openai
import pytest

from tests.reliability.support import Site, eventually, report

pytestmark = pytest.mark.timeout(180)


@pytest.mark.covers("CHAIN-5", "STREAM-4")
async def test_a_conversation_is_soon_free_again_when_its_replica_died(site: Site) -> None:
    tenants = [{"id": "acme", "stateless": True}]
    steady, frail = (site.prepare(name, tenants=tenants) for name in ("steady", "frail"))
    site.up("steady", "frail")
    client = steady.client()
    conversation = (await client.conversations.create()).id
    stream = await frail.client().responses.create(
        model="gpt-4.1", input="/fault stall:600", conversation=conversation, stream=True
    )
    await anext(aiter(stream))
    with pytest.raises(openai.ConflictError) as caught:
        await client.responses.create(model="gpt-4.1", input="x", conversation=conversation)
    assert caught.value.code == "conversation_locked"
    frail.kill()
    begun = time.monotonic()

    async def free() -> bool:
        try:
            await client.responses.create(
                model="gpt-4.1", input="/echo on", conversation=conversation
            )
        except openai.ConflictError as error:
            return error.code != "conversation_locked"
        return True

    await eventually(free, "the conversation goes on", seconds=30)
    report("conversation of a dead replica", seconds=round(time.monotonic() - begun, 1))
    items = (await client.conversations.items.list(conversation, order="asc")).data
    assert [getattr(item, "role", "") for item in items] == ["user", "assistant"]
