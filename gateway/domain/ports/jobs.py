"""Work that any replica may take up, and who is alive to do it (STREAM-4)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway.domain.turns import FIRST_RUN

Lane = Literal["main", "background"]
"""Jobs of one lane never wait for those of another: what runs in background may take hours, and
what a person has decided goes on at once (STREAM-3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work that goes on without its caller; delivered at least once.

    Attributes:
        kind: "continue" (subject = batch id) or "webhook" (subject = approval id, unless
            the event was emitted).
        event: For webhooks, one of `webhooks.EVENTS`. For continuations, what to do with a batch
            that is in doubt: "retry" or "give_up", if `attempt` is its fence; or "look" at what
            has become of it. "" goes on with a decided one.
        event_id: Constant over repeats; the `webhook-id`.
        occurred_at: Seconds since the epoch, by the store's clock.
        target: For "look", the turn.
        attempt: 0 for the first try.
    """

    token: str
    tenant: str
    kind: Literal["continue", "webhook"]
    subject: str
    event: str = ""
    event_id: str = ""
    occurred_at: float = 0.0
    target: str = ""
    attempt: int = 0

    @property
    def lane(self) -> Lane:
        """Where it waits: first legs of background turns have a lane of their own."""
        return "background" if self.subject.startswith(FIRST_RUN) else "main"


class JobQueue(Protocol):
    """Jobs of all tenants, taken over from a worker that died."""

    async def take(
        self, tenants: Sequence[str], *, limit: int, lane: Lane = "main"
    ) -> Sequence[Job]:
        """Take new jobs, and those that a worker took longer than the lease ago; no waiting."""
        ...

    async def done(self, job: Job) -> None:
        """Remove a job."""
        ...

    async def extend(self, job: Job) -> bool:
        """Keep a job for another lease; false when another worker has it by now."""
        ...

    async def add(self, job: Job, *, delay: float = 0.0) -> None:
        """Add a job, now or after `delay` seconds."""
        ...


class Fleet(Protocol):
    """Which versions of the rules and servers the live replicas have (APPR-4)."""

    async def announce(self, version: str) -> None:
        """Say that this replica lives and has the version; to be said again every few seconds."""
        ...

    async def has(self, version: str) -> bool:
        """Tell whether any live replica has the version."""
        ...

    async def leave(self) -> None:
        """Say that this replica takes no more work."""
        ...


class Hint(Protocol):
    """What a listener waits on."""

    async def wait(self, seconds: float) -> bool:
        """Wait for a hint since the last wait; false when `seconds` passed without one."""
        ...


class Wake(Protocol):
    """Hints between replicas. A hint may be lost: whoever waits also looks now and then."""

    def listen(self, key: str) -> AbstractContextManager[Hint]:
        """Listen for hints by a name of `domain/hints.py`."""
        ...
