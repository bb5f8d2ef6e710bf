"""Turns and their chains in Redis (CHAIN-1, CHAIN-4, STATE-4, STATE-6).

A turn is one hash: `h` its head, `c` its items and `r` its response, all three sealed; in plain
only what the server itself needs, ids: `p` its parent and `i` its item ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys, wire
from gateway.adapters.redis.client import Client, Script, execute, store_errors
from gateway.domain.errors import ResponseDeleted, Undecipherable, Unprocessable
from gateway.domain.hints import turn_hint
from gateway.domain.ports import Chain, TokenCipher, Turn, TurnHead, TurnStore, Window

_LONGEST_CHAIN = 10_000
_ENCODER = msgspec.msgpack.Encoder()
_IDS = msgspec.msgpack.Decoder(tuple[str, ...])
_HEAD = msgspec.msgpack.Decoder(TurnHead)
_WINDOW = msgspec.msgpack.Decoder(Window)


_STREAM_ID = re.compile(r"\d{1,20}-\d{1,20}")


class RedisTurnStore(TurnStore):
    """Turns in Redis, sealed by the cipher."""

    def __init__(self, client: Client, cipher: TokenCipher) -> None:
        self._client = client
        self._cipher = cipher
        self._record = Script(client, "turn_record.lua")
        self._chain = Script(client, "turn_chain.lua")
        self._delete = Script(client, "turn_delete.lua")
        self._keep_window = Script(client, "window_keep.lua")

    @override
    @store_errors
    async def record(
        self, turn: Turn, *, ttl: int, new: bool = False, claim: tuple[str, int] | None = None
    ) -> bool:
        if await self._write(turn, ttl, new=new, claim=claim):
            return True
        if claim is not None:
            return False
        taken = await self.head(turn.head.tenant, turn.head.id)
        owner = (turn.head.subject, turn.head.end_user)
        if taken is not None and (taken.subject, taken.end_user) != owner:
            return False
        return await self._write(turn, ttl, new=False)

    async def _write(
        self, turn: Turn, ttl: int, *, new: bool, claim: tuple[str, int] | None = None
    ) -> bool:
        head = turn.head
        tenant, turn_id = head.tenant, head.id
        written = await self._record(
            keys.turn(tenant, turn_id),
            keys.prefix(tenant),
            wire.raw(turn_id),
            ttl * 1000,
            wire.raw(head.parent or ""),
            self._cipher.encrypt(
                _ENCODER.encode(head), tenant=tenant, kind="turn.head", id=turn_id
            ),
            self._seal(turn.items, tenant, "turn.items", turn_id),
            self._seal(turn.response, tenant, "turn.response", turn_id),
            wire.raw(turn_hint(tenant, turn_id)),
            _ENCODER.encode(self._indexed(turn)),
            int(new),
            *((wire.raw(claim[0]), claim[1]) if claim else ()),
        )
        if written == -1:
            raise ResponseDeleted("The response was deleted.")
        return bool(written)

    @override
    @store_errors
    async def head(self, tenant: str, turn_id: str) -> TurnHead | None:
        sealed = await execute(self._client, "HGET", keys.turn(tenant, turn_id), "h")
        return None if sealed is None else self._open_head(sealed, tenant, turn_id)

    @override
    @store_errors
    async def read(self, tenant: str, turn_id: str) -> Turn | None:
        head, items, response, ids = await execute(
            self._client, "HMGET", keys.turn(tenant, turn_id), "h", "c", "r", "i"
        )
        if head is None:
            return None
        return Turn(
            head=self._open_head(head, tenant, turn_id),
            items=self._open(items, tenant, "turn.items", turn_id),
            response=self._open(response, tenant, "turn.response", turn_id),
            item_ids=_IDS.decode(ids),
        )

    @override
    @store_errors
    async def chain(
        self, tenant: str, turn_id: str, *, ttl: int, chain_id: str = "", model: str = ""
    ) -> Chain | None:
        """Read a turn and all before it in one round trip (STATE-6).

        The turns come without `response` and `item_ids`, which would double the bytes and which
        going on with a chain does not need; `read` has them.

        Raises:
            Unprocessable: The chain has more than 10,000 turns.
            Undecipherable: A link of the chain was altered.
        """
        found = await self._chain(
            keys.turn(tenant, turn_id),
            keys.prefix(tenant),
            wire.raw(turn_id),
            ttl * 1000,
            _LONGEST_CHAIN,
            wire.raw(chain_id),
            _token(model),
        )
        if found is None:
            return None
        if found == -1:
            raise Unprocessable(
                f"The chain has more than {_LONGEST_CHAIN} turns.", code="chain_too_long"
            )
        turns = [
            self._link(tenant, wire.text(found[at]), found[at + 1], found[at + 2])
            for at in range(len(found) - 3, 1, -3)
        ]
        window = (
            self._open_window(tenant, wire.text(found[0]), model, found[1]) if found[0] else None
        )
        _verify(turns, window)
        return Chain(turns=turns, window=window)

    @override
    @store_errors
    async def keep_window(
        self, tenant: str, window: Window, *, ttl: int, chain_id: str, drop: str = ""
    ) -> Window | None:
        turn_id = window.turn_id
        kept = await self._keep_window(
            keys.turn(tenant, turn_id),
            keys.prefix(tenant),
            wire.raw(turn_id),
            ttl * 1000,
            wire.raw(chain_id),
            _token(window.model),
            self._seal(_ENCODER.encode(window), tenant, "turn.window", turn_id),
            wire.raw(drop),
        )
        return None if kept is None else self._open_window(tenant, turn_id, window.model, kept)

    @override
    @store_errors
    async def drop_window(self, tenant: str, window: Window) -> None:
        name = keys.window(tenant, window.turn_id, _token(window.model))
        await execute(self._client, "DEL", name)

    def _open_window(self, tenant: str, turn_id: str, model: str, sealed: bytes) -> Window:
        window = _WINDOW.decode(self._open(sealed, tenant, "turn.window", turn_id))
        if (window.turn_id, window.model) != (turn_id, model):
            raise Undecipherable("A stored window was exchanged for another.")
        return window

    def _link(self, tenant: str, turn_id: str, head: bytes, items: bytes) -> Turn:
        return Turn(
            head=self._open_head(head, tenant, turn_id),
            items=self._open(items, tenant, "turn.items", turn_id),
        )

    @override
    @store_errors
    async def turns_of_items(self, tenant: str, item_ids: Sequence[str]) -> Mapping[str, str]:
        if not item_ids:
            return {}
        names = [keys.item(tenant, item) for item in item_ids]
        found = await execute(self._client, "MGET", *names)
        return {
            item: wire.text(turn_id)
            for item, turn_id in zip(item_ids, found, strict=True)
            if turn_id is not None
        }

    def _indexed(self, turn: Turn) -> tuple[str, ...]:
        """Name the index entries of a turn: ids of items, and tokens of what they say."""
        head = turn.head
        said = ("=" + self._said(head.tenant, head.end_user, text)[0] for text in turn.contents)
        return tuple(dict.fromkeys((*turn.item_ids, *said)))

    def _said(self, tenant: str, end_user: str, content: str) -> tuple[str, ...]:
        return self._cipher.tokens(content, tenant=tenant, kind="turn.content", id=end_user)

    @override
    @store_errors
    async def turns_of_contents(
        self, tenant: str, end_user: str, contents: Sequence[str]
    ) -> Mapping[str, str]:
        entries = [
            (content, "=" + token)
            for content in contents
            for token in self._said(tenant, end_user, content)
        ]
        if not entries:
            return {}
        names = [keys.item(tenant, entry) for _, entry in entries]
        found: dict[str, set[str]] = {}
        for (content, _), turn in zip(
            entries, await execute(self._client, "MGET", *names), strict=True
        ):
            if turn is not None:
                found.setdefault(content, set()).add(wire.text(turn))
        # After a rotation of keys two turns may have said the same under different ones.
        return {
            content: min(turns)
            for content, turns in found.items()
            if len(turns) == 1 and "" not in turns
        }

    @override
    @store_errors
    async def recent(
        self, tenant: str, *, before: str = "", limit: int = 25
    ) -> tuple[Sequence[TurnHead], str]:
        """Read the heads of the newest turns; those deleted or expired are left out."""
        newest = f"({before}" if _STREAM_ID.fullmatch(before) else "+"
        found = await execute(
            self._client, "XREVRANGE", keys.turns(tenant), newest, "-", "COUNT", limit
        )
        heads = []
        for _, fields in found:
            head = await self.head(tenant, wire.text(fields[b"i"]))
            if head is not None:
                heads.append(head)
        return heads, found[-1][0].decode() if len(found) == limit else ""

    @override
    @store_errors
    async def kept_until(self, tenant: str, turn_id: str) -> float | None:
        until = await execute(self._client, "PEXPIRETIME", keys.turn(tenant, turn_id))
        return until / 1000 if until > 0 else None

    @override
    @store_errors
    async def delete(self, tenant: str, turn_id: str, *, chain_id: str = "") -> bool:
        key = keys.turn(tenant, turn_id)
        return bool(
            await self._delete(key, keys.prefix(tenant), wire.raw(turn_id), wire.raw(chain_id))
        )

    def _seal(self, plain: bytes, tenant: str, kind: str, turn_id: str) -> bytes:
        # Empty means that nothing is kept, which is no secret and need not be sealed.
        if not plain:
            return b""
        return self._cipher.encrypt(plain, tenant=tenant, kind=kind, id=turn_id)

    def _open(self, sealed: bytes, tenant: str, kind: str, turn_id: str) -> bytes:
        if not sealed:
            return b""
        return self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=turn_id)

    def _open_head(self, sealed: bytes, tenant: str, turn_id: str) -> TurnHead:
        plain = self._cipher.decrypt(sealed, tenant=tenant, kind="turn.head", id=turn_id)
        return _HEAD.decode(plain)


def _verify(turns: Sequence[Turn], window: Window | None) -> None:
    """Compare the plain parents, which the server followed, with the sealed ones."""
    parent = None if window is None else window.turn_id
    for turn in turns:
        if (turn.head.parent or None) != parent:
            raise Undecipherable("The order of a stored chain was altered.")
        parent = turn.head.id


def _token(model: str) -> str:
    return hashlib.sha256(wire.raw(model)).hexdigest()[:16]
