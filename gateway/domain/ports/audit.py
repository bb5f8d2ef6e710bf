"""The audit log and its chain (APPR-11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.audit import Checkpoint, Document, Link, Occurrence


@dataclass(frozen=True, slots=True)
class AuditHead:
    """Where a chain ends, and the mark by which a change since is known."""

    link: Link
    mark: str


class AuditLog(Protocol):
    """Where what happened is noted for the audit (APPR-11)."""

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
        """Note something that is no transition of an approval; those note themselves.

        Returns as soon as it is kept; from then on it gets into the chain once, whatever crashes.
        Note what was refused before the refusal is answered, and what was done right after it.

            await audit.note(tenant, "pin.accepted", actor=f"subject:{who}",
                             subject=f"{server}.{tool}", detail={"definition_hash": new})

        Args:
            event: `<thing>.<what happened>`, such as `grant.made`, `webhook.refused`.
            actor: `subject:…`, `policy:…`, or `gateway` for what it did by itself.
            subject: What it is about: an id, or a name from the configuration.
            detail: Plain JSON values: ids, names, states, reasons of people; never arguments,
                results or secrets.
            once: A state: noted only where it differs from the one noted last for this event and
                subject. Then false when it does not.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditState:
    """What is known of a chain beside its entries.

    Attributes:
        head: The last entry, as the last append left it.
        base: The last entry before the first that is kept; `START` when all are.
        last: Sequence number of the last entry that is there; 0 when none is.
        lag: Seconds that the oldest occurrence waits to be chained; `None` when none does.
        checkpoint: The last one.
        since_checkpoint: Seconds since it was made; `None` when there is none.
        now: Milliseconds since the epoch, by the store's clock.
    """

    head: Link
    base: Link
    last: int
    lag: float | None
    checkpoint: Checkpoint | None
    since_checkpoint: float | None
    now: int


class AuditStore(AuditLog, Protocol):
    """The chains of all tenants, and the outboxes before them; entries are sealed."""

    async def lags(self, tenants: Sequence[str]) -> Mapping[str, float]:
        """Tell where something waits to be chained, and for how many seconds."""
        ...

    async def take(self, tenant: str, *, limit: int) -> tuple[AuditHead, Sequence[Occurrence]]:
        """Read the head of the chain and what waits, oldest first; nothing is removed."""
        ...

    async def append(
        self,
        tenant: str,
        *,
        after: AuditHead,
        entries: Sequence[tuple[Occurrence, Document]],
        retention: float,
    ) -> bool:
        """Put entries into the chain and take their occurrences out of the outbox, in one step.

        False, and nothing is done, when the chain or the outbox is not as it was read.

        Raises:
            BrokenChain: Its head is not its last entry; nothing is done.
        """
        ...

    async def state(self, tenant: str) -> AuditState:
        """Read what is known of a chain beside its entries."""
        ...

    async def entries(
        self, tenant: str, *, first: int, last: int | None, newest: bool, limit: int
    ) -> Sequence[Document]:
        """Read entries by sequence number, both ends included.

        Raises:
            BrokenChain: One of them does not open: altered, or moved.
        """
        ...

    async def about(self, tenant: str, subjects: Sequence[str]) -> Sequence[Document]:
        """Read the entries about any of these approvals and batches, in order."""
        ...

    async def since(self, tenant: str, millis: int) -> int:
        """Find the sequence number of the first entry that is not older."""
        ...

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Keep a checkpoint; false when there is one of that entry or a later one."""
        ...

    async def checkpoints(self, tenant: str) -> Sequence[Checkpoint]:
        """Read all kept checkpoints, in order."""
        ...

    async def prune(self, tenant: str, *, before: int, state: AuditState) -> int:
        """Drop entries older than `before` (ms), as far as one call goes; returns how many."""
        ...
