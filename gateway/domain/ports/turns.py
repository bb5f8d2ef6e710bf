"""Turns and conversations: heads, items, chains (STATE-2, CHAIN-5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.domain.calls import NEW_CHAIN, ChainFacts
from gateway.domain.conversations import Conversation, Entry, Progress
from gateway.domain.trace import LegSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnHead:
    """What is known of a turn without its content.

    Attributes:
        id: The response id that the caller sees: the upstream's id of the first leg (API-4).
        end_user: The end user that the chain belongs to, or "" (CHAIN-1).
        upstream: Name of the upstream that holds the chain (CHAIN-2).
        parent: The turn before it in the chain, or `None`.
        last_leg: The upstream id of the last leg; what upstream chaining uses.
        status: The response's `status`.
        stored: Whether the upstream stores the response, so that it can be asked for it.
        legs: How many upstream responses the turn has.
        subject: Subject of the principal that began the turn.
        model: The model name that the caller used.
        batch: Id of the open approval batch, or "".
        served: Whether the gateway's record is the response; else the upstream is asked for it.
        facts: What is known of the chain up to this turn.
        code: The code of the error that ended a held or locked turn, or "".
        began: When the caller's request came, in seconds since the epoch.
        trace: The finished legs.
        conversation: The conversation that the turn works on, where the gateway keeps it.
        window: The turn whose window began what was sent upstream, or "" (STATE-6).
        compacted: The compaction that made it, where this turn did.
    """

    id: str
    tenant: str
    upstream: str
    end_user: str = ""
    parent: str | None = None
    last_leg: str = ""
    status: str = "completed"
    stored: bool = True
    legs: int = 1
    subject: str = ""
    model: str = ""
    batch: str = ""
    served: bool = False
    facts: ChainFacts = NEW_CHAIN
    code: str = ""
    began: float = 0.0
    trace: tuple[LegSummary, ...] = ()
    conversation: str = ""
    window: str = ""
    compacted: LegSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn with its content; the store encrypts `items` and `response` (STATE-4).

    Attributes:
        items: JSON array of the turn's own items, in order, each an object
            `{"o": "in" | "out" | "gw", "i": <item as it came>}`: sent by the caller, made by the
            upstream, or added by the gateway (approval responses). Not those of earlier turns.
            Empty bytes: nothing is kept.
        response: The response as the caller last saw it, JSON; empty where upstream is asked.
        item_ids: Ids of the items, for look-up by `item_reference`.
        contents: What its output items say (see `history.content_of`), for look-up by callers that
            replay them without their ids. Written only; a turn that is read has its index in
            `item_ids`.
    """

    head: TurnHead
    items: bytes = b""
    response: bytes = b""
    item_ids: tuple[str, ...] = ()
    contents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What takes the place of a chain up to a turn in what is sent upstream (STATE-6).

    Attributes:
        model: The model that it was made for, by its name upstream; others may not read it.
        items: As of `Turn`; the store encrypts them.
        held: Type and id of the items that it stands for and that only an upstream may have made:
            a caller that repeats one does not add it to the chain again.
        before: The turn of the window that it was made from, or "".
    """

    turn_id: str
    model: str
    items: bytes
    held: tuple[tuple[str, str], ...] = ()
    before: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of turns, the first one first; a window may take the place of the first ones."""

    turns: Sequence[Turn]
    window: Window | None = None


class TurnStore(Protocol):
    """Turns and their chains."""

    async def record(
        self, turn: Turn, *, ttl: int, new: bool = False, claim: tuple[str, int] | None = None
    ) -> bool:
        """Write a turn, replacing what was there under its id, in one round trip.

        Args:
            claim: A batch and the fence of a claim on it. False, and nothing is written, where
                the claim is no longer held.
            new: The turn was not written before. Then false when the id is that of a turn of
                somebody else, which stays as it is: upstream ids name one turn each.

        Raises:
            ResponseDeleted: The turn was deleted; it does not come back.
        """
        ...

    async def head(self, tenant: str, turn_id: str) -> TurnHead | None:
        """Read a turn without its content."""
        ...

    async def read(self, tenant: str, turn_id: str) -> Turn | None:
        """Read one turn with its content."""
        ...

    async def chain(
        self, tenant: str, turn_id: str, *, ttl: int, chain_id: str = "", model: str = ""
    ) -> Chain | None:
        """Read a turn and all before it in one round trip (STATE-6).

        All of them live `ttl` seconds from now, and so does the window. `None` when the turn or
        one before it is unknown, deleted or expired: half a chain is no chain, although a window
        may hold what the other half said.

        Args:
            chain_id: The chain's id (`ChainFacts`); without it windows are not looked for.
            model: Whose windows are looked for; the newest one is read.
        """
        ...

    async def keep_window(
        self, tenant: str, window: Window, *, ttl: int, chain_id: str, drop: str = ""
    ) -> Window | None:
        """Keep a window for as long as its turns, and return the one that is kept.

        Another one may have been made of the same turn meanwhile: then that stays.
        `None`, and nothing is kept, when the turn or one before it is no more.

        Args:
            drop: The turn of a window of the same model that is not needed any more.
        """
        ...

    async def turns_of_items(self, tenant: str, item_ids: Sequence[str]) -> Mapping[str, str]:
        """Find the turn ids that hold the items; unknown ones are left out."""
        ...

    async def turns_of_contents(
        self, tenant: str, end_user: str, contents: Sequence[str]
    ) -> Mapping[str, str]:
        """Find the turn ids of an end user that said something, if only one turn did."""
        ...

    async def recent(
        self, tenant: str, *, before: str = "", limit: int = 25
    ) -> tuple[Sequence[TurnHead], str]:
        """Read the heads of the newest turns, newest first, and where the next page begins.

        The last few thousand of a tenant can be found so; "" says that there are no more.
        """
        ...

    async def kept_until(self, tenant: str, turn_id: str) -> float | None:
        """Tell until when a turn is kept, in seconds since the epoch; `None` if unknown."""
        ...

    async def drop_window(self, tenant: str, window: Window) -> None:
        """Delete a window."""
        ...

    async def delete(self, tenant: str, turn_id: str, *, chain_id: str = "") -> bool:
        """Delete a turn and its index and event log at once; false when it was not there.

        Args:
            chain_id: The chain's id; its windows that were made from the turn go as well.
        """
        ...


class ConversationStore(Protocol):
    """Conversations that the gateway keeps; one turn at a time works on each.

    Raises:
        Conflict: `conversation_locked`, from `lock`, `append` and `remove`: another turn does.
    """

    async def create(
        self, conversation: Conversation, entries: Sequence[Entry], *, ttl: int
    ) -> None:
        """Keep a new conversation with its first items."""
        ...

    async def get(self, tenant: str, conversation_id: str) -> tuple[Conversation, Progress] | None:
        """Read a conversation without its items."""
        ...

    async def items(self, tenant: str, conversation_id: str, *, ttl: int) -> Sequence[Entry] | None:
        """Read the items in order, in one round trip; `None` without such a conversation."""
        ...

    async def of_items(self, tenant: str, item_ids: Sequence[str]) -> Mapping[str, str]:
        """Find the conversations that had the items first; unknown ones are left out."""
        ...

    async def change(self, conversation: Conversation, *, ttl: int) -> bool:
        """Write a conversation anew; false when it is no more."""
        ...

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
        """Let the holder of a token work on it for `seconds`; false when it is no more.

        Args:
            instead: The token that is replaced by this one.
        """
        ...

    async def unlock(self, tenant: str, conversation_id: str, token: str) -> None:
        """End the work of the holder of a token, if it is that."""
        ...

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
        """Add items that are not there yet, and end the work; false when it is no more.

        Args:
            claim: The batch and the fence that the writer must still hold; else nothing is added.
        """
        ...

    async def remove(self, tenant: str, conversation_id: str, item_id: str) -> bool:
        """Take an item out; false when it is not there."""
        ...

    async def delete(self, tenant: str, conversation_id: str) -> None:
        """Delete a conversation with its items at once."""
        ...
