"""Turns as people look at them: their course, their calls, their chain (APPR-10).

Who oversees a tenant sees the course of its turns; what was said is shown to whose turn it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from gateway.domain.approvals import Approval
from gateway.domain.history import Kept, Origin, unpack
from gateway.domain.identity import Role
from gateway.domain.ports import ApprovalStore, TurnHead, TurnStore
from gateway.services.callers import Caller, response_not_found

_MOST_LINKS = 50
"""Turns of a chain that are shown at once."""

_PAGES = 20
_PAGE = 25
_LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One item of a turn.

    Attributes:
        name: The tool of a call or request, as `server.tool`; "" for others.
        size: Bytes of the item.
        text: What it says, cut; `None` where it is not for the reader.
        encrypted: Whether it holds encrypted content.
    """

    origin: Origin
    type: str
    name: str
    size: int
    text: str | None
    encrypted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSheet:
    """One turn.

    Attributes:
        entries: The turn's own items; empty where nothing is kept.
        kept_until: Seconds since the epoch; `None` when it just ended.
        chain: The turns before it, the nearest first, at most some dozens.
        longer: Whether the chain goes on behind those.
    """

    head: TurnHead
    approvals: Sequence[Approval]
    entries: Sequence[Entry]
    kept_until: float | None
    chain: Sequence[TurnHead]
    longer: bool


class Overview:
    """Reads turns for the console."""

    def __init__(self, *, turns: TurnStore, approvals: ApprovalStore) -> None:
        self._turns = turns
        self._approvals = approvals

    async def recent(self, caller: Caller, *, before: str) -> tuple[Sequence[TurnHead], str]:
        """List the newest turns that the caller may see, and where the next page begins."""
        seen: list[TurnHead] = []
        for _ in range(_PAGES):
            found, before = await self._turns.recent(caller.tenant.id, before=before, limit=_PAGE)
            seen += [head for head in found if head.status != "conversation" and sees(caller, head)]
            if not before or len(seen) >= _PAGE:
                break
        return seen, before

    async def show(self, caller: Caller, turn_id: str) -> TurnSheet:
        """Read one turn.

        Raises:
            NotFound: There is none, or it is none that the caller may see.
        """
        tenant = caller.tenant.id
        turn = await self._turns.read(tenant, turn_id)
        if turn is None or turn.head.status == "conversation" or not sees(caller, turn.head):
            raise response_not_found(turn_id)
        approvals, _ = await self._approvals.list(tenant, status=None, turn_id=turn_id, limit=100)
        chain, longer = await self._chain(tenant, turn.head)
        reads = is_own(caller, turn.head)
        return TurnSheet(
            head=turn.head,
            approvals=list(reversed(approvals)),
            entries=[_entry(item, reads=reads) for item in unpack(turn.items)],
            kept_until=await self._turns.kept_until(tenant, turn_id),
            chain=chain,
            longer=longer,
        )

    async def asked(self, caller: Caller, approval: Approval) -> str | None:
        """Read the last message of the user before a call was asked for, cut; `None` if not kept.

        An approver sees it because it tells what the call is for.
        """
        turn = await self._turns.read(caller.tenant.id, approval.turn_id)
        for item in reversed(unpack(turn.items) if turn else ()):
            if item.o == "in" and (said := _entry(item, reads=True)).type == "user message":
                return said.text
        return None

    async def _chain(self, tenant: str, head: TurnHead) -> tuple[list[TurnHead], bool]:
        chain: list[TurnHead] = []
        parent = head.parent
        while parent and len(chain) < _MOST_LINKS:
            before = await self._turns.head(tenant, parent)
            if before is None:
                break
            chain.append(before)
            parent = before.parent
        return chain, bool(parent) and len(chain) == _MOST_LINKS


def is_own(caller: Caller, head: TurnHead) -> bool:
    """Tell whether a turn is the caller's own, so that its content may be shown."""
    mine = head.subject == caller.principal.subject
    return mine and head.end_user in ("", caller.end_user)


def sees(caller: Caller, head: TurnHead) -> bool:
    """Tell whether the caller may see that there was such a turn, and its course."""
    principal = caller.principal
    return principal.has(Role.APPROVER) or principal.has(Role.AUDITOR) or is_own(caller, head)


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    name: str | None = None
    server_label: str | None = None
    content: str | list[_Part] | None = None
    arguments: str | None = None
    encrypted_content: str | None = None


def _entry(kept: Kept, *, reads: bool) -> Entry:
    try:
        item = msgspec.json.decode(kept.i, type=_Item)
    except msgspec.DecodeError:
        item = _Item(type="unreadable")
    kind = item.type or "message"
    return Entry(
        origin=kept.o,
        type=f"{item.role} message" if kind == "message" and item.role else kind,
        name=".".join(part for part in (item.server_label, item.name) if part),
        size=len(bytes(kept.i)),
        text=_said(item) if reads else None,
        encrypted=item.encrypted_content is not None,
    )


def _said(item: _Item) -> str:
    if isinstance(item.content, list):
        said = "\n".join(part.text or part.refusal or "" for part in item.content)
    else:
        said = item.content or item.arguments or ""
    return said if len(said) <= _LONGEST_TEXT else said[:_LONGEST_TEXT] + "…"
