"""Conversations that the gateway keeps, in Redis (CHAIN-5, STATE-4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys, wire
from gateway.adapters.redis.client import Client, Script, execute, store_errors
from gateway.domain.conversations import Conversation, Entry, Progress
from gateway.domain.errors import Conflict
from gateway.domain.ports import Cipher, ConversationStore

_ENCODER = msgspec.msgpack.Encoder()
_HEAD = msgspec.msgpack.Decoder(Conversation)
_PROGRESS = msgspec.msgpack.Decoder(Progress)


class RedisConversationStore(ConversationStore):
    """Conversations in Redis, sealed by the cipher."""

    def __init__(self, client: Client, cipher: Cipher) -> None:
        self._client = client
        self._cipher = cipher
        self._script = Script(client, "conversations.lua")

    @override
    @store_errors
    async def create(
        self, conversation: Conversation, entries: Sequence[Entry], *, ttl: int
    ) -> None:
        await self._call(
            "create",
            conversation.tenant,
            conversation.id,
            ttl,
            self._seal_head(conversation),
            *self._seal_all(conversation.tenant, conversation.id, entries),
        )

    @override
    @store_errors
    async def get(self, tenant: str, conversation_id: str) -> tuple[Conversation, Progress] | None:
        head, progress = await self._call("head", tenant, conversation_id, 0)
        if head is None:
            return None
        plain = self._open(head, tenant, "conversation", conversation_id)
        if progress is None:
            return _HEAD.decode(plain), Progress()
        told = self._open(progress, tenant, "conversation.facts", conversation_id)
        return _HEAD.decode(plain), _PROGRESS.decode(told)

    @override
    @store_errors
    async def items(self, tenant: str, conversation_id: str, *, ttl: int) -> Sequence[Entry] | None:
        found = await self._call("items", tenant, conversation_id, ttl)
        if found is None:
            return None
        entries = []
        for name, sealed in zip(found[::2], found[1::2], strict=True):
            item = name.decode("utf-8", "surrogatepass")
            bound = _bound(conversation_id, item)
            plain = self._open(sealed, tenant, "conversation.item", bound)
            entries.append(Entry(item, plain))
        return entries

    @override
    @store_errors
    async def change(self, conversation: Conversation, *, ttl: int) -> bool:
        sealed = self._seal_head(conversation)
        return bool(await self._call("change", conversation.tenant, conversation.id, ttl, sealed))

    @override
    @store_errors
    async def lock(
        self,
        tenant: str,
        conversation_id: str,
        token: str,
        *,
        seconds: float,
        ttl: int,
        instead: str = "",
    ) -> bool:
        millis = round(seconds * 1000)
        return _free(await self._call("lock", tenant, conversation_id, ttl, token, millis, instead))

    @override
    @store_errors
    async def unlock(self, tenant: str, conversation_id: str, token: str) -> None:
        await self._call("unlock", tenant, conversation_id, 0, token)

    @override
    @store_errors
    async def append(
        self,
        tenant: str,
        conversation_id: str,
        entries: Sequence[Entry],
        *,
        ttl: int,
        token: str = "",
        progress: Progress | None = None,
        claim: tuple[str, int] = ("", 0),
    ) -> bool:
        told: bytes = b""
        if progress is not None:
            plain = _ENCODER.encode(progress)
            told = self._cipher.encrypt(
                plain, tenant=tenant, kind="conversation.facts", id=conversation_id
            )
        sealed = self._seal_all(tenant, conversation_id, entries)
        batch, fence = claim
        return _free(
            await self._call(
                "append", tenant, conversation_id, ttl, token, told, wire.raw(batch), fence, *sealed
            )
        )

    @override
    @store_errors
    async def remove(self, tenant: str, conversation_id: str, item_id: str) -> bool:
        return _free(await self._call("remove", tenant, conversation_id, 0, "", wire.raw(item_id)))

    @override
    @store_errors
    async def delete(self, tenant: str, conversation_id: str) -> None:
        await self._call("delete", tenant, conversation_id, 0)

    @override
    @store_errors
    async def of_items(self, tenant: str, item_ids: Sequence[str]) -> Mapping[str, str]:
        if not item_ids:
            return {}
        names = [keys.conversation_item(tenant, item) for item in item_ids]
        found = await execute(self._client, "MGET", *names)
        return {
            item: conversation.decode("utf-8", "surrogatepass")
            for item, conversation in zip(item_ids, found, strict=True)
            if conversation is not None
        }

    async def _call(
        self, operation: str, tenant: str, conversation_id: str, ttl: int, *args: bytes | str | int
    ) -> Any:
        key = keys.conversation(tenant, conversation_id)
        named = keys.prefix(tenant), wire.raw(conversation_id)
        return await self._script(key, operation, *named, ttl * 1000, *args)

    def _seal_head(self, conversation: Conversation) -> bytes:
        return self._cipher.encrypt(
            _ENCODER.encode(conversation),
            tenant=conversation.tenant,
            kind="conversation",
            id=conversation.id,
        )

    def _seal_all(self, tenant: str, conversation_id: str, entries: Sequence[Entry]) -> list[bytes]:
        sealed: list[bytes] = []
        for entry in entries:
            bound = _bound(conversation_id, entry.id)
            sealed += (
                wire.raw(entry.id),
                self._cipher.encrypt(entry.data, tenant=tenant, kind="conversation.item", id=bound),
            )
        return sealed

    def _open(self, sealed: bytes, tenant: str, kind: str, bound: str) -> bytes:
        return self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=bound)


def _free(answer: int) -> bool:
    """Tell whether something was there to be changed.

    Raises:
        Conflict: Somebody else works on the conversation.
    """
    if answer == -1:
        raise Conflict(
            "Another process is currently operating on this conversation. Please retry in a few "
            "seconds.",
            code="conversation_locked",
            param="conversation",
        )
    return answer == 1


def _bound(conversation_id: str, item_id: str) -> str:
    return f"{conversation_id}:{item_id}"
