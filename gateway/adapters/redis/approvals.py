"""Approvals and batches in Redis (APPR-1, APPR-4 to APPR-6).

The transitions are in `approvals.lua`, and what is kept in `approval_records.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from typing_extensions import override

from gateway.adapters.redis import keys, wire
from gateway.adapters.redis.approval_records import ApprovalRecords, Change, Vote
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.approvals import (
    REVALIDATION,
    Approval,
    ApprovalStatus,
    Batch,
    BatchStatus,
    Event,
    Verdict,
)
from gateway.domain.ports import (
    ApprovalStore,
    InboxEntry,
    InboxPage,
    Once,
    TokenCipher,
    VoteProblem,
    VoteResult,
)

_GRACE = 3600.0
"""Seconds that an approval's record outlives its retention, so that its expiry can be answered."""

_REMEMBERED = 24 * 3600.0
"""Seconds that a request with an `Idempotency-Key` is answered the same again."""

_ENDS = (BatchStatus.DONE, BatchStatus.FAILED, BatchStatus.INDETERMINATE, BatchStatus.READY)

_LASTING = frozenset({"vote", "extend", "withdraw", "dispatch", "abandon", "retry"})
"""What somebody was promised, or what must not happen twice: it is on disk before it is told."""

_PAGE = 100
_FURTHEST = 10_000
"""How many approvals one filtered listing looks at."""


class RedisApprovalStore(ApprovalStore):
    """Approvals in Redis, sealed by the cipher.

    Args:
        fsync: Seconds to wait for the server's disk where somebody relies on what was written;
            0 for not at all (`redis.durability`).
    """

    def __init__(self, client: Client, cipher: TokenCipher, *, fsync: float = 0.0) -> None:
        self._script = Script(client, "approvals.lua", fsync=fsync)
        self._records = ApprovalRecords(cipher)

    @override
    @store_errors
    async def open_batch(
        self,
        *,
        tenant: str,
        batch_id: str,
        turn_id: str,
        approvals: Sequence[Approval],
        held: bytes,
        ttl: int,
        claim_lease: float | None = None,
    ) -> Batch:
        """Create a batch with its approvals.

        They wait for at most `ttl` seconds, or the longest time-out where that is longer, and all
        records, the turn's included, outlive that by an hour.
        """
        retention = max([float(ttl), *(approval.timeout for approval in approvals)])
        values: list[bytes | str | int] = []
        for approval in approvals:
            values += self._records.values(approval)
        found = await self._call(
            "open",
            tenant,
            batch_id,
            turn_id,
            wire.millis(retention),
            wire.millis(retention + _GRACE),
            self._records.seal_held(tenant, batch_id, held),
            "" if claim_lease is None else wire.millis(claim_lease),
            *values,
        )
        return self._records.batch(tenant, batch_id, found)

    @override
    @store_errors
    async def get(self, tenant: str, approval_id: str) -> Approval | None:
        found = await self._call("get", tenant, approval_id)
        return self._records.approval(tenant, found) if found else None

    @override
    @store_errors
    async def list(
        self,
        tenant: str,
        *,
        status: str | None,
        server: str | None = None,
        tool: str | None = None,
        chain: str | None = None,
        turn_id: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> tuple[Sequence[Approval], bool]:
        """List approvals, newest first, and tell whether there are more.

        Server, tool and chain are sealed: filtering by them opens one record after the other,
        at most the newest 10,000 after the cursor. After an unknown id there is nothing.
        """
        wanted = _Filter(status, server, tool, chain)
        index = _index(status, turn_id)
        kept: list[Approval] = []
        below = b""
        size = _PAGE if wanted.narrow else min(limit + 1, _PAGE)
        for _ in range(0, _FURTHEST, size):
            page, more = await self._call("list", tenant, index, after or "", below, size)
            for found in page:
                approval = self._records.approval(tenant, found)
                if wanted.admits(approval):
                    kept.append(approval)
                    if len(kept) > limit:
                        return kept[:limit], True
            if not more:
                break
            below = more
        return kept, False

    @override
    @store_errors
    async def counts(self, tenant: str) -> Mapping[str, int]:
        found = await self._call("counts", tenant, *(status.value for status in ApprovalStatus))
        return {status.value: count for status, count in zip(ApprovalStatus, found, strict=True)}

    @override
    @store_errors
    async def by_request(self, tenant: str, request_ids: Sequence[str]) -> Mapping[str, Approval]:
        if not request_ids:
            return {}
        found = await self._call("by_request", tenant, *(wire.raw(name) for name in request_ids))
        return {
            request_id: self._records.approval(tenant, shown)
            for request_id, shown in zip(request_ids, found, strict=True)
            if shown
        }

    @override
    @store_errors
    async def vote(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        verdict: Verdict,
        fingerprint: str,
        reason: str | None,
        version: int | None = None,
        revision: str | None = None,
        once: Once | None = None,
    ) -> VoteResult:
        records = self._records
        actors = records.actor_tokens(tenant, approval_id, actor)
        vote = Vote(actor, reason, revision)
        return await self._change(
            "vote",
            tenant,
            approval_id,
            verdict.value,
            records.seal_vote(tenant, approval_id, actors[0], vote),
            "" if version is None else version,
            len(actors),
            wire.millis(_REMEMBERED),
            *records.print_tokens(tenant, approval_id, fingerprint),
            *actors,
            *(() if once is None else records.once_tokens(tenant, approval_id, actor, once)),
        )

    @override
    @store_errors
    async def extend(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        seconds: float,
        version: int | None = None,
    ) -> VoteResult:
        by = Change(f"subject:{actor}")
        return await self._person("extend", tenant, approval_id, version, by, wire.millis(seconds))

    @override
    @store_errors
    async def escalate(
        self, tenant: str, approval_id: str, *, actor: str, version: int | None = None
    ) -> VoteResult:
        by = Change(f"subject:{actor}")
        return await self._person("escalate", tenant, approval_id, version, by)

    @override
    @store_errors
    async def cancel(
        self,
        tenant: str,
        approval_id: str,
        *,
        actor: str,
        reason: str,
        version: int | None = None,
    ) -> VoteResult:
        by = Change(f"subject:{actor}", reason)
        return await self._person("withdraw", tenant, approval_id, version, by, "canceled")

    @override
    @store_errors
    async def supersede(
        self, tenant: str, approval_id: str, *, cause: str, by: str = REVALIDATION
    ) -> VoteResult:
        change = Change(by, cause)
        return await self._person("withdraw", tenant, approval_id, None, change, "superseded")

    async def _person(
        self,
        operation: str,
        tenant: str,
        approval_id: str,
        version: int | None,
        change: Change,
        *args: bytes | str | int,
    ) -> VoteResult:
        return await self._change(
            operation,
            tenant,
            approval_id,
            "" if version is None else version,
            _nonce(),
            self._records.seal_change(tenant, approval_id, change),
            *args,
        )

    async def _change(self, operation: str, tenant: str, *args: bytes | str | int) -> VoteResult:
        problem, shown, counted = await self._call(operation, tenant, *args)
        return VoteResult(
            approval=self._records.approval(tenant, shown) if shown else None,
            problem=cast("VoteProblem", problem.decode()) or None,
            counted=bool(counted),
        )

    @override
    @store_errors
    async def inbox(self, tenant: str, *, after: str = "", limit: int = 100) -> InboxPage:
        found, cursor, lost = await self._call("inbox", tenant, after, limit)
        entries = [_entry(place.decode(), wire.fields(flat)) for place, flat in found]
        return InboxPage(entries, cursor.decode(), bool(lost))

    @override
    @store_errors
    async def expire_due(self, tenant: str) -> Sequence[str]:
        """Do what time has brought, and settle batches whose lease lapsed.

        A batch that was claimed by a worker goes back to `ready` with a new job; one that was
        dispatched becomes `indeterminate` (APPR-5).
        """
        expired: list[str] = []
        more: object = True
        while more:
            found, more = await self._call("sweep", tenant, _PAGE)
            expired += (approval_id.decode() for approval_id in found)
        return expired

    @override
    @store_errors
    async def batch(self, tenant: str, batch_id: str) -> Batch | None:
        found = await self._call("batch", tenant, batch_id)
        return self._records.batch(tenant, batch_id, found) if found else None

    @override
    @store_errors
    async def claim(self, tenant: str, batch_id: str, *, lease: float) -> Batch | None:
        found = await self._call("claim", tenant, batch_id, wire.millis(lease), _nonce())
        return self._records.batch(tenant, batch_id, found) if found else None

    @override
    @store_errors
    async def renew(self, tenant: str, batch_id: str, *, fence: int, lease: float) -> bool:
        return bool(await self._call("renew", tenant, batch_id, fence, wire.millis(lease)))

    @override
    @store_errors
    async def dispatch(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        superseded: Mapping[str, str] = MappingProxyType({}),
    ) -> bool:
        """Write `dispatched`, before the request is sent; false when it must not be sent.

        True once per claim: false for another fence, after the lease, and for a second call.
        """
        causes: list[bytes | str] = []
        for approval_id, cause in superseded.items():
            change = Change(REVALIDATION, cause)
            causes += [approval_id, self._records.seal_change(tenant, approval_id, change)]
        return bool(await self._call("dispatch", tenant, batch_id, fence, _nonce(), *causes))

    @override
    @store_errors
    async def forget(self, tenant: str, batch_id: str) -> None:
        await self._call("forget", tenant, batch_id)

    @override
    @store_errors
    async def finish(
        self,
        tenant: str,
        batch_id: str,
        *,
        fence: int,
        status: BatchStatus,
        next_response_id: str | None = None,
        upstream_request: str = "",
        delay: float = 0.0,
    ) -> bool:
        if status not in _ENDS:
            raise ValueError(f"a batch does not end as {status.value}")
        following = wire.raw(next_response_id or "")
        return bool(
            await self._call(
                "finish",
                tenant,
                batch_id,
                fence,
                status.value,
                following,
                upstream_request,
                wire.millis(delay),
            )
        )

    @override
    @store_errors
    async def abandon(
        self, tenant: str, batch_id: str, *, reason: str, running: bool = False
    ) -> bool:
        note = self._records.seal_note(tenant, batch_id, reason)
        return bool(
            await self._call(
                "abandon", tenant, batch_id, _nonce(), "caller", note, str(int(running))
            )
        )

    @override
    @store_errors
    async def rewind(
        self, tenant: str, batch_id: str, *, by: str, reason: str, once: str = ""
    ) -> bool:
        sealed = self._records.seal_change(tenant, batch_id, Change(by, reason))
        return bool(
            await self._call("abandon", tenant, batch_id, _named(by, once), "rewind", sealed)
        )

    @override
    @store_errors
    async def retry(self, tenant: str, batch_id: str, *, by: str, once: str = "") -> bool:
        sealed = self._records.seal_change(tenant, batch_id, Change(by))
        return bool(await self._call("retry", tenant, batch_id, _named(by, once), sealed))

    async def _call(self, operation: str, tenant: str, *args: bytes | str | int) -> Any:
        encoded = (wire.raw(arg) if isinstance(arg, str) else arg for arg in args)
        routing = keys.approvals(tenant)
        run = self._script.on_disk if operation in _LASTING else self._script
        return await run(routing, operation, keys.prefix(tenant), tenant, *encoded)


@dataclass(frozen=True, slots=True)
class _Filter:
    """What a listing wants; `None` admits everything."""

    status: str | None
    server: str | None
    tool: str | None
    chain: str | None

    @property
    def narrow(self) -> bool:
        """Whether most of what is looked at may be left out."""
        return (self.server, self.tool, self.chain) != (None, None, None)

    def admits(self, approval: Approval) -> bool:
        return (
            self.status in (None, approval.status.value)
            and self.server in (None, approval.server)
            and self.tool in (None, approval.tool)
            and self.chain in (None, approval.chain_id)
        )


def _index(status: str | None, turn_id: str | None) -> bytes:
    if turn_id is not None:
        return b"aprs:turn:" + wire.raw(turn_id)
    return b"aprs" if status is None else b"aprs:status:" + wire.raw(status)


def _entry(cursor: str, fields: wire.Fields) -> InboxEntry:
    return InboxEntry(cursor, cast("Event", fields[b"e"].decode()), fields[b"a"].decode())


def _named(by: str, once: str) -> str:
    """Mark a call by its `Idempotency-Key`, so that a repetition is known as such; else anew."""
    return hashlib.sha256(f"{by}\0{once}".encode()).hexdigest()[:32] if once else _nonce()


def _nonce() -> str:
    """Mark one call, so that its repetition after a lost connection is known as such."""
    return secrets.token_hex(8)
