"""Conversations that the gateway keeps: who may add to them (CHAIN-5)."""

from __future__ import annotations

import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.conversations import RedisConversationStore
from gateway.domain.conversations import Conversation, entry_of
from gateway.domain.documents import raw
from gateway.domain.history import Kept

from .conftest import Stores
from .make import TENANT


@pytest.mark.covers("CHAIN-5", "STREAM-3", "STATE-4")
async def test_a_background_turn_that_was_given_up_adds_nothing(
    stores: Stores, ring: KeyRing
) -> None:
    conversations = RedisConversationStore(stores.client, ring)
    talk = Conversation(
        id="conv_1", tenant=TENANT, upstream="sweden", subject="svc:web", end_user="", created_at=1
    )
    await conversations.create(talk, [], ttl=600)
    for given_up in (False, True):
        batch_id = f"run_{given_up}"
        await stores.approvals.open_batch(
            tenant=TENANT, batch_id=batch_id, turn_id="resp_1", approvals=(), held=b"x", ttl=600
        )
        claimed = await stores.approvals.claim(TENANT, batch_id, lease=60)
        assert claimed is not None
        if given_up:
            await stores.approvals.abandon(TENANT, batch_id, reason="deleted", running=True)
        said = entry_of(Kept("out", raw({"type": "message", "id": f"msg_{given_up}"})))
        added = await conversations.append(
            TENANT, talk.id, [said], ttl=600, token="resp_1", claim=(batch_id, claimed.fence)
        )
        assert added is not given_up
    kept = await conversations.items(TENANT, talk.id, ttl=600)
    assert [entry.id for entry in kept or ()] == ["msg_False"]
