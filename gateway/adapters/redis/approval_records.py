"""Approvals and batches as they are stored: what is sealed, and what is plain (STATE-4).

What never changes and says something about the call is sealed in one field; what the state
machine needs is plain: states, counts, times, ids, and keyed tokens in place of names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from gateway.adapters.redis import wire
from gateway.domain.approvals import (
    Abandonment,
    Approval,
    ApprovalStatus,
    Batch,
    BatchStatus,
    Event,
    Transition,
)
from gateway.domain.ports import (
    Once,
    TokenCipher,
)
from gateway.domain.terms import widened

_GIVEN_UP = "Another call of the same response was not decided in time, so the turn was given up."


class _Core(msgspec.Struct, array_like=True):
    """The sealed part. The raw arguments apart: they may hold what is no valid text."""

    approval: Approval
    arguments: bytes


class Vote(msgspec.Struct, array_like=True):
    """One sealed vote."""

    actor: str
    reason: str | None
    revision: str | None = None


class Change(msgspec.Struct, array_like=True):
    """Who changed an approval or its batch otherwise than by a vote, and why; sealed."""

    by: str | None
    reason: str | None = None


_ENCODER = msgspec.msgpack.Encoder()
_CORE = msgspec.msgpack.Decoder(_Core)
_VOTE = msgspec.msgpack.Decoder(Vote)
_CHANGE = msgspec.msgpack.Decoder(Change)


class ApprovalRecords:
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
            wire.millis(approval.timeout),
            approval.request_id,
            " ".join(str(wire.millis(level.after)) for level in approval.escalate),
            approval.max_extensions,
        )

    def approval(self, tenant: str, shown: tuple[bytes, Sequence[bytes]]) -> Approval:
        """Put the sealed part and the state together."""
        approval_id, fields = shown[0].decode(), wire.fields(shown[1])
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
        fields = wire.fields(shown[0])
        return Batch(
            id=batch_id,
            tenant=tenant,
            turn_id=wire.text(fields[b"t"]),
            status=BatchStatus(fields[b"s"].decode()),
            open=int(fields[b"o"]),
            fence=int(fields[b"f"]),
            approvals=tuple(self.approval(tenant, found) for found in shown[1]),
            held=self._held(tenant, batch_id, fields[b"h"]),
            next_response_id=wire.text(fields.get(b"nx", b"")) or None,
            cause=cast("Abandonment", fields.get(b"w", b"").decode()),
        )

    def _held(self, tenant: str, batch_id: str, sealed: bytes) -> bytes:
        if not sealed:  # the batch is over
            return b""
        return self._cipher.decrypt(sealed, tenant=tenant, kind="batch.held", id=batch_id)

    def seal_held(self, tenant: str, batch_id: str, held: bytes) -> bytes:
        """Seal the turn that a batch holds."""
        return self._cipher.encrypt(held, tenant=tenant, kind="batch.held", id=batch_id)

    def seal_note(self, tenant: str, batch_id: str, reason: str) -> bytes:
        """Seal why a batch was abandoned."""
        plain = wire.raw(reason)
        return self._cipher.encrypt(plain, tenant=tenant, kind="batch.note", id=batch_id)

    def seal_change(self, tenant: str, id: str, change: Change) -> bytes:
        """Seal who changed an approval or a batch, and why."""
        plain = _ENCODER.encode(change)
        return self._cipher.encrypt(plain, tenant=tenant, kind="approval.change", id=id)

    def once_tokens(self, tenant: str, approval_id: str, actor: str, once: Once) -> tuple[str, ...]:
        """Name an `Idempotency-Key` and its body; another actor's key is another key."""
        named = json.dumps([actor, once.key])
        kind, body = "approval.once", once.body.decode("latin-1")
        keys_ = self._cipher.tokens(named, tenant=tenant, kind=kind, id=approval_id)
        return (*keys_, *self._cipher.tokens(body, tenant=tenant, kind=kind, id=approval_id))

    def seal_vote(self, tenant: str, approval_id: str, token: str, vote: Vote) -> bytes:
        """Seal a vote, bound to its voter: votes cannot change places."""
        plain = _ENCODER.encode(vote)
        bound = f"{approval_id}:{token}"
        return self._cipher.encrypt(plain, tenant=tenant, kind="approval.vote", id=bound)

    def print_tokens(self, tenant: str, approval_id: str, fingerprint: str) -> tuple[str, ...]:
        """Name a fingerprint; itself, it would let who reads a dump test guesses at arguments."""
        kind = "approval.fingerprint"
        return self._cipher.tokens(fingerprint, tenant=tenant, kind=kind, id=approval_id)

    def actor_tokens(self, tenant: str, approval_id: str, actor: str) -> tuple[str, ...]:
        """Name who votes on an approval."""
        return actor_tokens(self._cipher, tenant, approval_id, actor)

    def _core(self, tenant: str, approval_id: str, sealed: bytes) -> Approval:
        plain = self._cipher.decrypt(sealed, tenant=tenant, kind="approval", id=approval_id)
        core = _CORE.decode(plain)
        return replace(core.approval, arguments=core.arguments.decode("utf-8", "surrogatepass"))

    def _votes(
        self, tenant: str, approval_id: str, fields: wire.Fields
    ) -> dict[str, tuple[str, Vote]]:
        votes = {}
        for token in fields.get(b"vo", b"").decode().split():
            verdict, _, sealed = fields[f"v:{token}".encode()].partition(b":")
            bound = f"{approval_id}:{token}"
            plain = self._cipher.decrypt(sealed, tenant=tenant, kind="approval.vote", id=bound)
            votes[token] = (verdict.decode(), _VOTE.decode(plain))
        return votes

    def _history(
        self, core: Approval, votes: Mapping[str, tuple[str, Vote]], fields: wire.Fields
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
        votes: Mapping[str, tuple[str, Vote]],
        what: str,
        sealed: bytes,
        event: bytes,
    ) -> Change:
        """Tell who did what a line of the history says, and why."""
        if what == "core" and event == b"requested":
            return Change(f"subject:{core.requester}")
        if what in votes:
            vote = votes[what][1]
            return Change(f"subject:{vote.actor}", vote.reason)
        match what:
            case "core":
                return Change(core.decided_by, core.reason)
            case "rewind":
                return Change("timeout", _GIVEN_UP)
            case "note":
                plain = self._open("batch.note", core.tenant, core.batch_id, sealed)
                return Change(None, wire.text(plain))
            case "change" | "batch":
                id_ = core.id if what == "change" else core.batch_id
                return _CHANGE.decode(self._open("approval.change", core.tenant, id_, sealed))
            case _:
                return Change("timeout")

    def _open(self, kind: str, tenant: str, id: str, sealed: bytes) -> bytes:
        return self._cipher.decrypt(sealed, tenant=tenant, kind=kind, id=id)


def actor_tokens(cipher: TokenCipher, tenant: str, approval_id: str, actor: str) -> tuple[str, ...]:
    """Name who votes on an approval, as its record does."""
    return cipher.tokens(actor, tenant=tenant, kind="approval.actor", id=approval_id)
