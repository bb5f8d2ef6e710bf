"""Grants in Redis (APPR-8).

What a grant says is sealed; plain are states, counts, times, ids, and keyed tokens in place of
names. The transitions are in `grants.lua`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys, wire
from gateway.adapters.redis.approval_records import actor_tokens
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.grants import Grant, GrantStatus
from gateway.domain.ports import GrantAnswer, GrantStore, Question, TokenCipher

_PAGE = 100
_FURTHEST = 10_000
"""How many grants one filtered listing looks at."""

_ENCODER = msgspec.msgpack.Encoder()
_GRANT = msgspec.msgpack.Decoder(Grant)


class RedisGrantStore(GrantStore):
    """Grants in Redis, sealed by the cipher."""

    def __init__(self, client: Client, cipher: TokenCipher) -> None:
        self._cipher = cipher
        self._script = Script(client, "grants.lua")

    @override
    @store_errors
    async def issue(self, grant: Grant) -> Grant:
        tenant = grant.tenant
        voter = (
            actor_tokens(self._cipher, tenant, grant.approval_id, grant.made_by)
            if grant.waits_for
            else ()
        )
        shown = await self._call(
            "issue",
            tenant,
            grant.id,
            self._seal(_ENCODER.encode(grant), tenant, "grant", grant.id),
            self._tokens(tenant, "name", grant.name)[0],
            self._tokens(tenant, "pin", grant.pin)[0],
            self._tokens(tenant, "maker", grant.made_by)[0],
            self._tokens(tenant, "chain", grant.chain_id)[0] if grant.chain_id else "",
            wire.millis(grant.ttl),
            "" if grant.max_uses is None else grant.max_uses,
            grant.approval_id,
            grant.waits_for,
            " ".join(voter),
        )
        return self._grant(tenant, shown)

    @override
    @store_errors
    async def ask(self, question: Question) -> GrantAnswer:
        tenant = question.tenant
        excluded = [
            token
            for subject in question.excluded
            for token in self._tokens(tenant, "maker", subject)
        ]
        values: list[str | int] = []
        for candidate in question.candidates:
            values.append(candidate.policy)
            values += self._tokens(tenant, "name", candidate.name)
            values += self._tokens(tenant, "pin", candidate.pin)
        askers = self._tokens(tenant, "asker", question.asker)
        shown, dropped, tiring = await self._call(
            "ask",
            tenant,
            question.id,
            askers[0],
            "" if question.most is None else question.most,
            wire.millis(question.window),
            wire.millis(question.max_ttl),
            "" if question.max_uses is None else question.max_uses,
            len(excluded),
            *excluded,
            len(askers),
            *values,
        )
        return GrantAnswer(
            grant=self._grant(tenant, shown) if shown else None,
            dropped=[self._grant(tenant, one) for one in dropped],
            tiring=bool(tiring),
        )

    @override
    @store_errors
    async def stands(self, tenant: str, grant_id: str) -> bool:
        return bool(await self._call("stands", tenant, grant_id))

    @override
    @store_errors
    async def get(self, tenant: str, grant_id: str) -> Grant | None:
        shown = await self._call("get", tenant, grant_id)
        return self._grant(tenant, shown) if shown else None

    @override
    @store_errors
    async def list(
        self, tenant: str, *, active: bool, after: str | None, limit: int
    ) -> tuple[Sequence[Grant], bool]:
        """List grants, newest first, and tell whether there are more.

        Looks at the newest 10,000 after the cursor at most; after an unknown id is nothing.
        """
        kept: list[Grant] = []
        below: bytes | str = ""
        for _ in range(0, _FURTHEST, _PAGE):
            page, more = await self._call("list", tenant, after or "", below, _PAGE)
            for shown in page:
                grant = self._grant(tenant, shown)
                if active and grant.status not in ("active", "waiting"):
                    continue
                kept.append(grant)
                if len(kept) > limit:
                    return kept[:limit], True
            if not more:
                break
            below = more
        return kept, False

    @override
    @store_errors
    async def withdraw(self, tenant: str, grant_id: str) -> None:
        await self._call("withdraw", tenant, grant_id)

    @override
    @store_errors
    async def revoke(self, tenant: str, grant_id: str, *, actor: str) -> Grant | None:
        revoker = self._seal(wire.raw(actor), tenant, "grant.revoker", grant_id)
        shown = await self._call("revoke", tenant, grant_id, revoker)
        return self._grant(tenant, shown) if shown else None

    @override
    @store_errors
    async def end_chain(self, tenant: str, chain_id: str) -> Sequence[Grant]:
        found = await self._call("end_chain", tenant, *self._tokens(tenant, "chain", chain_id))
        return [self._grant(tenant, shown) for shown in found]

    def _grant(self, tenant: str, shown: tuple[bytes, Sequence[bytes]]) -> Grant:
        """Put the sealed part and the state together."""
        grant_id, flat = shown[0].decode(), shown[1]
        fields: Mapping[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
        revoker = fields.get(b"rv")
        return msgspec.structs.replace(
            _GRANT.decode(
                self._cipher.decrypt(fields[b"c"], tenant=tenant, kind="grant", id=grant_id)
            ),
            created_at=int(fields[b"ca"]) / 1000,
            expires_at=int(fields[b"ea"]) / 1000,
            uses=int(fields[b"u"]),
            status=cast("GrantStatus", fields[b"s"].decode()),
            ended=fields.get(b"d", b"").decode(),
            ended_by=""
            if revoker is None
            else self._cipher.decrypt(
                revoker, tenant=tenant, kind="grant.revoker", id=grant_id
            ).decode("utf-8", "surrogatepass"),
        )

    def _seal(self, plain: bytes, tenant: str, kind: str, grant_id: str) -> bytes:
        return self._cipher.encrypt(plain, tenant=tenant, kind=kind, id=grant_id)

    def _tokens(self, tenant: str, what: str, text: str) -> tuple[str, ...]:
        return self._cipher.tokens(text, tenant=tenant, kind="grant", id=what)

    async def _call(self, operation: str, tenant: str, *args: bytes | str | int) -> Any:
        encoded = (wire.raw(arg) if isinstance(arg, str) else arg for arg in args)
        return await self._script(keys.grants(tenant), operation, keys.prefix(tenant), *encoded)
