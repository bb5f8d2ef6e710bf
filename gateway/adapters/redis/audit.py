"""The audit in Redis: outbox and chain, sealed by the cipher (APPR-11).

Plain are sequence numbers, times, names of events and ids; all else is sealed, hashes included,
since they let the reader of a dump test guesses.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from typing_extensions import override

from gateway.adapters.redis import keys
from gateway.adapters.redis.client import Client, Script, store_errors
from gateway.domain.audit import (
    START,
    BrokenChain,
    Checkpoint,
    Document,
    Link,
    Occurrence,
    canonical,
    digest,
)
from gateway.domain.errors import Undecipherable
from gateway.domain.ports import AuditHead, AuditState, AuditStore, TokenCipher

_PRUNED_AT_ONCE = 1000
_ALL = 1_000_000
_NOTE = msgspec.json.Decoder(dict[str, Any])

_Facts = dict[str, object]


class RedisAuditStore(AuditStore):
    """Outbox and chain of every tenant."""

    def __init__(self, client: Client, cipher: TokenCipher) -> None:
        self._client = client
        self._cipher = cipher
        self._script = Script(client, "audit.lua")
        self._reader = _Reader(cipher)

    @override
    @store_errors
    async def note(
        self,
        tenant: str,
        event: str,
        *,
        actor: str,
        subject: str = "",
        detail: Mapping[str, object] | None = None,
        once: str | None = None,
    ) -> bool:
        note_id = "note_" + secrets.token_hex(12)
        facts = {"actor": actor, "subject": subject, "detail": dict(detail) if detail else None}
        sealed = self._seal(tenant, "audit.note", note_id, facts)
        slot, states = "", tuple[str, ...]()
        if once is not None:
            slot = event + ":" + self._names(tenant, event, subject)[-1]
            states = self._names(tenant, event + ":" + subject, once)
        return bool(await self._call("note", tenant, event, note_id, sealed, slot, *states))

    def _names(self, tenant: str, what: str, text: str) -> tuple[str, ...]:
        return self._cipher.tokens(text, tenant=tenant, kind="audit.once", id=what)

    @override
    @store_errors
    async def lags(self, tenants: Sequence[str]) -> Mapping[str, float]:
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.execute_command("TIME")
            for tenant in tenants:
                pipe.execute_command("XRANGE", keys.audit_new(tenant), "-", "+", "COUNT", 1)
            (seconds, micros), *found = await pipe.execute()
        now = int(seconds) * 1000 + int(micros) // 1000
        return {
            tenant: max(now - _number(oldest[0][0]), 0) / 1000
            for tenant, oldest in zip(tenants, found, strict=True)
            if oldest
        }

    @override
    @store_errors
    async def take(self, tenant: str, *, limit: int) -> tuple[AuditHead, Sequence[Occurrence]]:
        (last, mark, sealed), waiting = await self._call("take", tenant, limit)
        link = self._link(tenant, "audit.head", last, sealed)
        occurrences = [self._reader.occurrence(tenant, *found) for found in waiting]
        return AuditHead(link, (mark or b"").decode()), occurrences

    @override
    @store_errors
    async def append(
        self,
        tenant: str,
        *,
        after: AuditHead,
        entries: Sequence[tuple[Occurrence, Document]],
        retention: float,
    ) -> bool:
        values: list[bytes | str | int] = []
        for happened, entry in entries:
            sequence = entry["sequence"]
            sealed = self._seal(tenant, "audit", str(sequence), entry)
            values += (happened.token, sequence, happened.millis, happened.subject, sealed)
        last = entries[-1][1]
        head = self._seal(tenant, "audit.head", str(last["sequence"]), last["hash"])
        done = await self._call(
            *("append", tenant, after.mark, secrets.token_hex(8), last["sequence"], head),
            *(round(retention * 1000), *values),
        )
        if done < 0:
            raise BrokenChain(after.link.sequence, "the chain's head is not its last entry")
        return bool(done)

    @override
    @store_errors
    async def state(self, tenant: str) -> AuditState:
        now, head, oldest, last, found = await self._call("state", tenant)
        sequence, sealed, base_sequence, base, _, checked = head
        return AuditState(
            head=self._link(tenant, "audit.head", sequence, sealed),
            base=self._link(tenant, "audit.base", base_sequence, base),
            last=_number(last) if last else 0,
            lag=max(int(now) - _number(oldest), 0) / 1000 if oldest else None,
            checkpoint=self._checkpoint(tenant, found) if found else None,
            since_checkpoint=(int(now) - int(checked)) / 1000 if checked else None,
            now=int(now),
        )

    @override
    @store_errors
    async def entries(
        self, tenant: str, *, first: int, last: int | None, newest: bool, limit: int
    ) -> Sequence[Document]:
        low, high = f"{first}-0", "+" if last is None else f"{last}-0"
        if last is not None and last < first:
            return ()
        way = ("XREVRANGE", high, low) if newest else ("XRANGE", low, high)
        found = await self._call("read", tenant, "audit", *way, limit)
        return [self._entry(tenant, one) for one in found]

    @override
    @store_errors
    async def about(self, tenant: str, subjects: Sequence[str]) -> Sequence[Document]:
        return [self._entry(tenant, one) for one in await self._call("of", tenant, *subjects)]

    @override
    @store_errors
    async def since(self, tenant: str, millis: int) -> int:
        return int(await self._call("since", tenant, millis))

    @override
    @store_errors
    async def keep_checkpoint(self, checkpoint: Checkpoint) -> bool:
        tenant, sequence = checkpoint.tenant, checkpoint.sequence
        sealed = self._seal(
            tenant, "audit.checkpoint", str(sequence), msgspec.to_builtins(checkpoint)
        )
        return bool(await self._call("checkpoint", tenant, sequence, sealed))

    @override
    @store_errors
    async def checkpoints(self, tenant: str) -> Sequence[Checkpoint]:
        found = await self._call("read", tenant, "audit:checkpoints", "XRANGE", "-", "+", _ALL)
        return [self._checkpoint(tenant, one) for one in found]

    @override
    @store_errors
    async def prune(self, tenant: str, *, before: int, state: AuditState) -> int:
        """Drop what is over; the base says what the first kept entry follows."""
        found = await self._call("read", tenant, "audit", "XRANGE", "-", "+", _PRUNED_AT_ONCE)
        old = [one for one in found if int(one[1][3]) < before]
        if not old:
            return 0
        last = self._entry(tenant, old[-1])
        sealed = self._seal(tenant, "audit.base", str(last["sequence"]), last["hash"])
        expected = state.base.sequence or ""
        done = await self._call("prune", tenant, last["sequence"], sealed, expected)
        return len(old) if done else 0

    def _link(self, tenant: str, kind: str, sequence: bytes | None, sealed: bytes | None) -> Link:
        if sequence is None or sealed is None:
            return START
        return Link(int(sequence), str(self._open(tenant, kind, sequence.decode(), sealed)))

    def _entry(self, tenant: str, found: tuple[bytes, Sequence[bytes]]) -> Document:
        sequence = _number(found[0])
        try:
            entry = self._open(tenant, "audit", str(sequence), found[1][1])
        except (Undecipherable, IndexError) as exc:
            problem = f"entry {sequence} does not open: it was altered or moved, or its key is gone"
            raise BrokenChain(sequence, problem) from exc
        return dict(entry)

    def _checkpoint(self, tenant: str, found: tuple[bytes, Sequence[bytes]]) -> Checkpoint:
        sequence = _number(found[0])
        try:
            plain = self._open(tenant, "audit.checkpoint", str(sequence), found[1][1])
        except Undecipherable as exc:
            raise BrokenChain(sequence, f"the checkpoint of {sequence} does not open") from exc
        return msgspec.convert(plain, Checkpoint)

    def _seal(self, tenant: str, kind: str, id: str, value: object) -> bytes:
        return self._cipher.encrypt(canonical(value), tenant=tenant, kind=kind, id=id)

    def _open(self, tenant: str, kind: str, id: str, sealed: bytes) -> Any:
        return msgspec.json.decode(self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=id))

    async def _call(self, operation: str, tenant: str, *args: bytes | str | int) -> Any:
        encoded = (
            arg.encode("utf-8", "surrogatepass") if isinstance(arg, str) else arg for arg in args
        )
        return await self._script(keys.audit(tenant), operation, keys.prefix(tenant), *encoded)


class _Reader:
    """Reads what waits in the outbox, and puts the facts of its record to it.

    What approvals.py seals is read as plain MessagePack, so that an entry is still written where a
    newer replica has added fields.
    """

    def __init__(self, cipher: TokenCipher) -> None:
        self._cipher = cipher

    def occurrence(
        self, tenant: str, token: bytes, flat: Sequence[bytes], record: Sequence[bytes | None]
    ) -> Occurrence:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        event, subject = fields[b"e"].decode(), fields[b"i"].decode("utf-8", "replace")
        facts: _Facts
        try:
            facts = self._facts(tenant, event, subject, fields, record)
        except (Undecipherable, msgspec.DecodeError, KeyError, ValueError, TypeError):
            # It happened, and that must be told even where nobody can read by whom.
            facts = {"problem": "its facts do not open"}
        if b"n" in fields:  # the index is plain, so it takes ids of ours alone
            about = str(facts.get("subject", ""))
            subject = about if about.startswith("apr_") else ""
        return Occurrence(
            token=token.decode(), millis=_number(token), event=event, subject=subject, facts=facts
        )

    def _facts(
        self,
        tenant: str,
        event: str,
        subject: str,
        fields: Mapping[bytes, bytes],
        record: Sequence[bytes | None],
    ) -> _Facts:
        if b"n" in fields:
            plain = self._cipher.decrypt(fields[b"n"], tenant=tenant, kind="audit.note", id=subject)
            return _NOTE.decode(plain)
        if event.startswith("continuation."):
            facts, batch = _of_batch(subject, fields, record), subject
        else:
            facts, batch = {"approval_id": subject}, ""
            if record[0]:
                core, arguments = self._open(record[0], tenant, "approval", subject)
                facts |= _of_approval(core, arguments, event, fields)
                batch = core["batch_id"]
        return facts | self._by_whom(tenant, subject, batch, fields)

    def _by_whom(
        self, tenant: str, subject: str, batch: str, fields: Mapping[bytes, bytes]
    ) -> _Facts:
        """Open who acted and why, where the transition brought it along."""
        by = fields.get(b"by", b"").decode()
        if b"vote" in fields:
            bound = f"{subject}:{by}"
            actor, reason, *_ = self._open(fields[b"vote"], tenant, "approval.vote", bound)
            return {"actor": f"subject:{actor}", "reason": reason}
        if b"change" in fields:
            bound = batch if by == "batch" else subject
            actor, reason = self._open(fields[b"change"], tenant, "approval.change", bound)
            return {"actor": actor, "reason": reason}
        if b"note" in fields:
            plain = self._cipher.decrypt(
                fields[b"note"], tenant=tenant, kind="batch.note", id=batch
            )
            return {"actor": "caller", "reason": _text(plain)}
        return {"actor": "timeout"} if by in ("timeout", "rewind") else {}

    def _open(self, sealed: bytes, tenant: str, kind: str, id: str) -> Any:
        return msgspec.msgpack.decode(self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=id))


def _of_approval(
    core: Mapping[str, Any], arguments: bytes, event: str, fields: Mapping[bytes, bytes]
) -> _Facts:
    """Take from an approval's sealed core what an entry says; the arguments by their hash alone."""
    facts: _Facts = {
        "outcome": fields.get(b"s", b"").decode(),
        "rule": core["rule"],
        "policy_version": core.get("policy_version"),
        "response_id": core["turn_id"],
        "upstream": core["upstream"],
        "upstream_response_id": core["response_id"],
        "approval_request_id": core["request_id"],
        "server_label": core["server"],
        "server_identity": core["server_identity"],
        "tool": core["tool"],
        "definition_hash": core.get("definition_hash"),
        "fingerprint": core["fingerprint"],
        "arguments_hash": digest(arguments),
        "requester": f"subject:{core['requester']}",
        "end_user": core["end_user"],
    }
    if event == "approval.requested":
        facts["actor"] = facts["requester"]
    elif fields.get(b"by") == b"core":  # born decided: a rule or a grant has spoken
        facts |= {"actor": core["decided_by"], "reason": core["reason"]}
    return facts


def _of_batch(
    batch_id: str, fields: Mapping[bytes, bytes], record: Sequence[bytes | None]
) -> _Facts:
    turn, ids = (_text(part or b"") for part in record)
    return {
        "actor": "gateway",
        "response_id": turn,
        "upstream_response_id": batch_id,
        "approval_ids": ids.split(),
        "fence": int(fields.get(b"f", b"0")),
        "upstream_request_id": _text(fields.get(b"u", b"")),
        "next_response_id": _text(fields.get(b"nx", b"")),
    }


def _number(stream_id: bytes) -> int:
    return int(stream_id.partition(b"-")[0])


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
