"""Approvals and batches in Redis (APPR-1, APPR-4 to APPR-6).

What never changes and says something about the call is sealed in one field; what the state
machine needs is plain: states, counts, times, ids, and keyed tokens in place of names. The
transitions are in `approvals.lua`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, cast

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.approvals import (
    REVALIDATION,
    Abandonment,
    Approval,
    ApprovalStatus,
    Batch,
    BatchStatus,
    Event,
    Transition,
    Verdict,
)
from gateway.domain.ports import (
    ApprovalStore,
    Cipher,
    InboxEntry,
    InboxPage,
    Once,
    VoteProblem,
    VoteResult,
)
from gateway.domain.terms import widened

_GRACE = 3600.0
"""Seconds that an approval's record outlives its retention, so that its expiry can be answered."""

_REMEMBERED = 24 * 3600.0
"""Seconds that a request with an `Idempotency-Key` is answered the same again."""

_GIVEN_UP = "Another call of the same response was not decided in time, so the turn was given up."

_ENDS = (BatchStatus.DONE, BatchStatus.FAILED, BatchStatus.INDETERMINATE, BatchStatus.READY)

_LASTING = frozenset({"vote", "extend", "withdraw", "dispatch", "abandon", "retry"})
"""What somebody was promised, or what must not happen twice: it is on disk before it is told."""

_PAGE = 100
_FURTHEST = 10_000
"""How many approvals one filtered listing looks at."""


class TokenCipher(Cipher, Protocol):
    """A cipher that also names texts by keyed tokens."""

    def tokens(self, text: str, *, tenant: str, kind: str, id: str) -> tuple[str, ...]:
        """Name a text, once per key, the first key's name first."""
        ...


class _Core(msgspec.Struct, array_like=True):
    """The sealed part. The raw arguments apart: they may hold what is no valid text."""

    approval: Approval
    arguments: bytes


class _Vote(msgspec.Struct, array_like=True):
    """One sealed vote."""

    actor: str
    reason: str | None
    revision: str | None = None


class _Change(msgspec.Struct, array_like=True):
    """Who changed an approval or its batch otherwise than by a vote, and why; sealed."""

    by: str | None
    reason: str | None = None


_ENCODER = msgspec.msgpack.Encoder()
_CORE = msgspec.msgpack.Decoder(_Core)
_VOTE = msgspec.msgpack.Decoder(_Vote)
_CHANGE = msgspec.msgpack.Decoder(_Change)

_Fields = Mapping[bytes, bytes]


class RedisApprovalStore(ApprovalStore):
    """Approvals in Redis, sealed by the cipher.

    Args:
        fsync: Seconds to wait for the server's disk where somebody relies on what was written;
            0 for not at all (`redis.durability`).
    """

    def __init__(self, client: Client, cipher: TokenCipher, *, fsync: float = 0.0) -> None:
        self._script = Script(client, "approvals.lua", fsync=fsync)
        self._records = _Records(cipher)

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
            _millis(retention),
            _millis(retention + _GRACE),
            self._records.seal_held(tenant, batch_id, held),
            "" if claim_lease is None else _millis(claim_lease),
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
        found = await self._call("by_request", tenant, *(_raw(name) for name in request_ids))
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
        vote = _Vote(actor, reason, revision)
        return await self._change(
            "vote",
            tenant,
            approval_id,
            verdict.value,
            records.seal_vote(tenant, approval_id, actors[0], vote),
            "" if version is None else version,
            len(actors),
            _millis(_REMEMBERED),
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
        by = _Change(f"subject:{actor}")
        return await self._person("extend", tenant, approval_id, version, by, _millis(seconds))

    @override
    @store_errors
    async def escalate(
        self, tenant: str, approval_id: str, *, actor: str, version: int | None = None
    ) -> VoteResult:
        by = _Change(f"subject:{actor}")
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
        by = _Change(f"subject:{actor}", reason)
        return await self._person("withdraw", tenant, approval_id, version, by, "canceled")

    @override
    @store_errors
    async def supersede(
        self, tenant: str, approval_id: str, *, cause: str, by: str = REVALIDATION
    ) -> VoteResult:
        change = _Change(by, cause)
        return await self._person("withdraw", tenant, approval_id, None, change, "superseded")

    async def _person(
        self,
        operation: str,
        tenant: str,
        approval_id: str,
        version: int | None,
        change: _Change,
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
        entries = [_entry(place.decode(), _fields(flat)) for place, flat in found]
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
        found = await self._call("claim", tenant, batch_id, _millis(lease), _nonce())
        return self._records.batch(tenant, batch_id, found) if found else None

    @override
    @store_errors
    async def renew(self, tenant: str, batch_id: str, *, fence: int, lease: float) -> bool:
        return bool(await self._call("renew", tenant, batch_id, fence, _millis(lease)))

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
            change = _Change(REVALIDATION, cause)
            causes += [approval_id, self._records.seal_change(tenant, approval_id, change)]
        return bool(await self._call("dispatch", tenant, batch_id, fence, _nonce(), *causes))

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
        following = _raw(next_response_id or "")
        return bool(
            await self._call(
                "finish",
                tenant,
                batch_id,
                fence,
                status.value,
                following,
                upstream_request,
                _millis(delay),
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
        sealed = self._records.seal_change(tenant, batch_id, _Change(by, reason))
        return bool(
            await self._call("abandon", tenant, batch_id, _named(by, once), "rewind", sealed)
        )

    @override
    @store_errors
    async def retry(self, tenant: str, batch_id: str, *, by: str, once: str = "") -> bool:
        sealed = self._records.seal_change(tenant, batch_id, _Change(by))
        return bool(await self._call("retry", tenant, batch_id, _named(by, once), sealed))

    async def _call(self, operation: str, tenant: str, *args: bytes | str | int) -> Any:
        encoded = (_raw(arg) if isinstance(arg, str) else arg for arg in args)
        routing = keys.approvals(tenant)
        run = self._script.on_disk if operation in _LASTING else self._script
        return await run(routing, operation, keys.prefix(tenant), tenant, *encoded)


class _Records:
    """Turns approvals and batches into what is stored, and back."""

    def __init__(self, cipher: TokenCipher) -> None:
        self._cipher = cipher

    def values(self, approval: Approval) -> Sequence[bytes | str | int]:
        """Return the eleven values that `approvals.lua` takes for a new approval."""
        tenant = approval.tenant
        core = _Core(
            replace(approval, arguments=""), approval.arguments.encode("utf-8", "surrogatepass")
        )
        return (
            approval.id,
            self._cipher.encrypt(
                _ENCODER.encode(core), tenant=tenant, kind="approval", id=approval.id
            ),
            approval.status.value,
            self.print_tokens(tenant, approval.id, approval.fingerprint)[0],
            approval.quorum,
            approval.on_timeout,
            approval.by,
            _millis(approval.timeout),
            approval.request_id,
            " ".join(str(_millis(level.after)) for level in approval.escalate),
            approval.max_extensions,
        )

    def approval(self, tenant: str, shown: tuple[bytes, Sequence[bytes]]) -> Approval:
        """Put the sealed part and the state together."""
        approval_id, fields = shown[0].decode(), _fields(shown[1])
        core = self._core(tenant, approval_id, fields[b"c"])
        votes = self._votes(tenant, approval_id, fields)
        history = tuple(self._history(core, votes, fields))
        ends = [line for line in history if line.event == "resolved"]
        decided = fields.get(b"da")
        level = int(fields[b"el"])
        revisions = [vote.revision for _, vote in votes.values() if vote.revision is not None]
        return replace(
            core,
            approvers=widened(core.approvers, core.escalate[:level]),
            level=level,
            extensions=int(fields[b"xs"]),
            revision=revisions[0] if revisions else None,
            history=history,
            created_at=int(fields[b"ca"]) / 1000,
            expires_at=int(fields[b"ea"]) / 1000,
            status=ApprovalStatus(fields[b"s"].decode()),
            decided_by=ends[-1].actor if ends else None,
            decided_at=int(decided) / 1000 if decided else None,
            reason=ends[-1].reason if ends else None,
            votes=tuple(vote.actor for verdict, vote in votes.values() if verdict == "approve"),
            version=int(fields[b"v"]),
        )

    def batch(self, tenant: str, batch_id: str, shown: tuple[Any, Any]) -> Batch:
        """Put a batch together with its approvals."""
        fields = _fields(shown[0])
        return Batch(
            id=batch_id,
            tenant=tenant,
            turn_id=_text(fields[b"t"]),
            status=BatchStatus(fields[b"s"].decode()),
            open=int(fields[b"o"]),
            fence=int(fields[b"f"]),
            approvals=tuple(self.approval(tenant, found) for found in shown[1]),
            held=self._cipher.decrypt(fields[b"h"], tenant=tenant, kind="batch.held", id=batch_id),
            next_response_id=_text(fields.get(b"nx", b"")) or None,
            cause=cast("Abandonment", fields.get(b"w", b"").decode()),
        )

    def seal_held(self, tenant: str, batch_id: str, held: bytes) -> bytes:
        return self._cipher.encrypt(held, tenant=tenant, kind="batch.held", id=batch_id)

    def seal_note(self, tenant: str, batch_id: str, reason: str) -> bytes:
        plain = _raw(reason)
        return self._cipher.encrypt(plain, tenant=tenant, kind="batch.note", id=batch_id)

    def seal_change(self, tenant: str, id: str, change: _Change) -> bytes:
        plain = _ENCODER.encode(change)
        return self._cipher.encrypt(plain, tenant=tenant, kind="approval.change", id=id)

    def once_tokens(self, tenant: str, approval_id: str, actor: str, once: Once) -> tuple[str, ...]:
        # Bound to the actor: another one's key is another key.
        named = json.dumps([actor, once.key])
        kind, body = "approval.once", once.body.decode("latin-1")
        keys_ = self._cipher.tokens(named, tenant=tenant, kind=kind, id=approval_id)
        return (*keys_, *self._cipher.tokens(body, tenant=tenant, kind=kind, id=approval_id))

    def seal_vote(self, tenant: str, approval_id: str, token: str, vote: _Vote) -> bytes:
        # Bound to its voter: votes cannot change places.
        plain = _ENCODER.encode(vote)
        bound = f"{approval_id}:{token}"
        return self._cipher.encrypt(plain, tenant=tenant, kind="approval.vote", id=bound)

    def print_tokens(self, tenant: str, approval_id: str, fingerprint: str) -> tuple[str, ...]:
        # The fingerprint itself would let the reader of a dump test guesses at the arguments.
        kind = "approval.fingerprint"
        return self._cipher.tokens(fingerprint, tenant=tenant, kind=kind, id=approval_id)

    def actor_tokens(self, tenant: str, approval_id: str, actor: str) -> tuple[str, ...]:
        return actor_tokens(self._cipher, tenant, approval_id, actor)

    def _core(self, tenant: str, approval_id: str, sealed: bytes) -> Approval:
        plain = self._cipher.decrypt(sealed, tenant=tenant, kind="approval", id=approval_id)
        core = _CORE.decode(plain)
        return replace(core.approval, arguments=core.arguments.decode("utf-8", "surrogatepass"))

    def _votes(
        self, tenant: str, approval_id: str, fields: _Fields
    ) -> dict[str, tuple[str, _Vote]]:
        votes = {}
        for token in fields.get(b"vo", b"").decode().split():
            verdict, _, sealed = fields[f"v:{token}".encode()].partition(b":")
            bound = f"{approval_id}:{token}"
            plain = self._cipher.decrypt(sealed, tenant=tenant, kind="approval.vote", id=bound)
            votes[token] = (verdict.decode(), _VOTE.decode(plain))
        return votes

    def _history(
        self, core: Approval, votes: Mapping[str, tuple[str, _Vote]], fields: _Fields
    ) -> Iterator[Transition]:
        for n in range(1, int(fields[b"en"]) + 1):
            at, event, status, what, sealed = fields[f"e:{n}".encode()].split(b" ", 4)
            who = self._who(core, votes, what.decode(), sealed, event)
            yield Transition(
                event=cast("Event", event.decode()),
                at=int(at) / 1000,
                status=ApprovalStatus(status.decode()),
                actor=who.by,
                reason=who.reason,
            )

    def _who(
        self,
        core: Approval,
        votes: Mapping[str, tuple[str, _Vote]],
        what: str,
        sealed: bytes,
        event: bytes,
    ) -> _Change:
        """Tell who did what a line of the history says, and why."""
        if what == "core" and event == b"requested":
            return _Change(f"subject:{core.requester}")
        if what in votes:
            vote = votes[what][1]
            return _Change(f"subject:{vote.actor}", vote.reason)
        match what:
            case "core":
                return _Change(core.decided_by, core.reason)
            case "rewind":
                return _Change("timeout", _GIVEN_UP)
            case "note":
                plain = self._open("batch.note", core.tenant, core.batch_id, sealed)
                return _Change(None, _text(plain))
            case "change" | "batch":
                id_ = core.id if what == "change" else core.batch_id
                return _CHANGE.decode(self._open("approval.change", core.tenant, id_, sealed))
            case _:
                return _Change("timeout")

    def _open(self, kind: str, tenant: str, id: str, sealed: bytes) -> bytes:
        return self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=id)


def actor_tokens(cipher: TokenCipher, tenant: str, approval_id: str, actor: str) -> tuple[str, ...]:
    """Name who votes on an approval, as its record does."""
    return cipher.tokens(actor, tenant=tenant, kind="approval.actor", id=approval_id)


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
        return b"aprs:turn:" + _raw(turn_id)
    return b"aprs" if status is None else b"aprs:status:" + _raw(status)


def _fields(flat: Sequence[bytes]) -> _Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _entry(cursor: str, fields: _Fields) -> InboxEntry:
    return InboxEntry(cursor, cast("Event", fields[b"e"].decode()), fields[b"a"].decode())


def _millis(seconds: float) -> int:
    return round(seconds * 1000)


def _named(by: str, once: str) -> str:
    """Mark a call by its `Idempotency-Key`, so that a repetition is known as such; else anew."""
    return hashlib.sha256(f"{by}\0{once}".encode()).hexdigest()[:32] if once else _nonce()


def _nonce() -> str:
    """Mark one call, so that its repetition after a lost connection is known as such."""
    return secrets.token_hex(8)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
