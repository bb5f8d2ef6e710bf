"""Grants and the loop guard of a chain (APPR-8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.grants import Candidate, Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call that a person would be asked about, put to the grants first (APPR-8).

    Attributes:
        id: Of the approval; the same question again has the same answer, and uses nothing.
        candidates: The grants that would answer it, the narrowest first.
        excluded: Subjects whose own grants do not count, since nobody approves for themselves.
        max_ttl, max_uses: What the rule says now; older grants are held to it.
        asker: Names who asks for which tool, to count what people are asked.
        most: Most questions of an asker within `window` seconds; `None` counts nothing.
    """

    tenant: str
    id: str
    candidates: Sequence[Candidate]
    excluded: Sequence[str]
    max_ttl: float
    max_uses: int | None
    asker: str
    most: int | None
    window: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantAnswer:
    """What the grants say.

    Attributes:
        grant: The one that answers, one use of it taken; `None` when a person must.
        dropped: Grants that ended, because what they were bound to has changed.
        tiring: Whether people were asked the like too often before.
    """

    grant: Grant | None = None
    dropped: Sequence[Grant] = ()
    tiring: bool = False


class GrantStore(Protocol):
    """Grants; every transition is one atomic function by the store's clock."""

    async def issue(self, grant: Grant) -> Grant:
        """Keep a grant, in force from now on; one that is there under its id is returned as is.

        One that `waits_for` a vote comes into force the moment that the vote of its maker counts
        and its approval ends by it; until then it may be issued anew, or withdrawn.
        """
        ...

    async def withdraw(self, tenant: str, grant_id: str) -> None:
        """Drop a grant that still waits for the vote that it came with; else do nothing."""
        ...

    async def ask(self, question: Question) -> GrantAnswer:
        """Take one use of the narrowest grant that answers, or count the question.

        One round trip. Concurrent questions never share a use.
        """
        ...

    async def stands(self, tenant: str, grant_id: str) -> bool:
        """Tell whether what a grant allowed may still run: it was not revoked or dropped."""
        ...

    async def get(self, tenant: str, grant_id: str) -> Grant | None:
        """Read a grant."""
        ...

    async def list(
        self, tenant: str, *, active: bool, after: str | None, limit: int
    ) -> tuple[Sequence[Grant], bool]:
        """List grants, newest first, and tell whether there are more."""
        ...

    async def revoke(self, tenant: str, grant_id: str, *, actor: str) -> Grant | None:
        """End a grant at once, also for what it allowed and is not sent yet; `None` if unknown."""
        ...

    async def end_chain(self, tenant: str, chain_id: str) -> Sequence[Grant]:
        """Drop the grants of a chain that is no more; returns those that were in force."""
        ...
