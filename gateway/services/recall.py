"""Find what a caller refers to, repeats or leaves out of its own history (STATE-1 to STATE-3)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from gateway.domain.documents import Raw
from gateway.domain.history import (
    content_of,
    guarded_ids,
    has_guarded,
    lacks_reasoning,
    put_back,
    resolve_references,
    restore_guarded,
    unknown_item,
    unpack,
    with_reasoning,
)
from gateway.domain.ports import ConversationStore, Meter, Turn, TurnHead, TurnStore
from gateway.domain.requests import Item, item_of
from gateway.domain.turns import TurnState
from gateway.services.answers import NativeAnswers, answered_request, called_request
from gateway.services.callers import Caller, owned

_AT_ONCE = 16
"""Turns that are read at the same time."""


@dataclass(slots=True)
class Found:
    """Items of a caller's own, and what was kept beside them.

    Attributes:
        place_of: Item id to the turn or conversation that holds it.
        kept: Turn or conversation to its items, in order.
        lost: Ids of items that no upstream's chain holds.
    """

    place_of: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[Item]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def raw_by_id(self) -> dict[str, Raw]:
        """The items that were found, and those beside them."""
        return {item.id: item.raw for kept in self.kept.values() for item in kept if item.id}


class Recall:
    """Completes the items of a request from what is kept of its caller's turns."""

    def __init__(
        self,
        *,
        turns: TurnStore,
        conversations: ConversationStore,
        answers: NativeAnswers,
        meter: Meter,
    ) -> None:
        self._turns = turns
        self._conversations = conversations
        self._answers = answers
        self._meter = meter

    async def own_items(
        self, caller: Caller, items: Sequence[Item], state: TurnState
    ) -> tuple[list[Item], dict[str, Raw]]:
        """Resolve references, and check MCP items that the caller repeats.

        Returns:
            The items, and what the remaining references stand for.

        Raises:
            NotFound: A reference is to no item of this caller's.
            Forbidden: An MCP item is not one that this caller was given.
        """
        references = [item.id or "" for item in items if item.type == "item_reference"]
        guarded = guarded_ids(items)
        if not references and not guarded and not has_guarded(items):
            return list(items), {}
        if not state.keep:
            return await self._unkept_items(caller, items, state.end_user), {}
        found = await self._find(caller, [*references, *guarded], state.end_user)
        known = found.raw_by_id()
        items = [item for item in items if item.id is None or item.id not in found.lost]
        restored = restore_guarded(items, known)
        if state.stateless:
            here = state.conversation_id
            return resolve_references(restored, found.place_of, found.kept, here=here), {}
        for index, item in enumerate(items):
            if item.type == "item_reference" and item.id not in known:
                raise unknown_item(item.id or "", f"input[{index}]")
        return restored, known

    async def put_back(self, caller: Caller, items: Sequence[Item], state: TurnState) -> list[Item]:
        """Put back what a caller left out of the items that it replays (STATE-3)."""
        lacking = lacks_reasoning(items)
        whole = await self._beside_answers(caller, items, state.end_user)
        return await self._reasoning(caller, whole, state) if lacking else whole

    async def _beside_answers(
        self, caller: Caller, items: Sequence[Item], end_user: str
    ) -> list[Item]:
        """Put requests before their answers, and calls that were carried out after them.

        Answers that end the input are new, or sent again: no call is put beside these, so that
        what was carried out already is refused as such.
        """
        answers = [name for item in items if (name := answered_request(item)) is not None]
        if not answers:
            return list(items)
        sent = {(item.type, item.id) for item in items}
        asked = {item.id for item in items if item.type == "mcp_approval_request"}
        called = {called_request(item) for item in items}
        new = set(_last_answers(items))
        asking = await self._find(caller, [one for one in answers if one not in asked], end_user)
        calls = await self._calls(
            caller, [one for one in answers if one not in called | new], end_user
        )
        whole: list[Item] = []
        for item in items:
            name = answered_request(item) or ""
            before = with_reasoning(name, asking.kept.get(asking.place_of.get(name, ""), ()))
            for part in [*before, item, *calls.get(name, ())]:
                if part is item or (part.type, part.id) not in sent:
                    sent.add((part.type, part.id))
                    whole.append(part)
        return whole

    async def _calls(
        self, caller: Caller, names: Sequence[str], end_user: str
    ) -> dict[str, list[Item]]:
        """Find the calls that approved requests led to, each with the reasoning before it."""
        calls: dict[str, list[Item]] = {}
        for name, places in (await self._answers.carried_out(caller, names, end_user)).items():
            for turn in await self._read(caller, places, end_user):
                kept = _items_of(turn)
                for item in kept:
                    if item.type == "mcp_call" and called_request(item) == name:
                        calls[name] = with_reasoning(item.id or "", kept)
        return calls

    async def _reasoning(
        self, caller: Caller, items: Sequence[Item], state: TurnState
    ) -> list[Item]:
        """Put reasoning back before what it led to.

        It must have come from the upstream that it goes to: no other can read it.
        """
        ids = [item.id for item in items if item.id is not None]
        said = [text for item in items if item.id is None and (text := content_of(item.raw))]
        tenant = caller.tenant.id
        turn_of = dict(await self._turns.turns_of_contents(tenant, state.end_user, said))
        turn_of |= await self._turns.turns_of_items(tenant, ids)
        kept = {
            turn.head.id: unpack(turn.items)
            for turn in await self._read(caller, turn_of.values(), state.end_user)
            if turn.head.upstream == state.upstream
        }
        restored, count = put_back(items, turn_of, kept)
        if count:
            self._meter.restored(state.upstream, count)
        return restored

    async def _unkept_items(
        self, caller: Caller, items: Sequence[Item], end_user: str
    ) -> list[Item]:
        """Check what can be checked where nothing is kept (`cache = "off"`).

        Calls and listings are history that authorizes nothing; a request for an approval does,
        and is compared with the approval.
        """
        wanted = [item.id for item in items if item.type == "mcp_approval_request" and item.id]
        known = await self._answers.requests(caller, wanted, end_user)
        for item in items:
            if item.type in ("mcp_call", "mcp_list_tools") and item.id is not None:
                known[item.id] = item.raw
        return resolve_references(restore_guarded(items, known), {}, {})

    async def _find(self, caller: Caller, ids: Sequence[str], end_user: str) -> Found:
        found = Found()
        if not ids:
            return found
        turn_of = await self._turns.turns_of_items(caller.tenant.id, ids)
        for turn in await self._read(caller, turn_of.values(), end_user):
            found.kept[turn.head.id] = _items_of(turn)
            lost = (item_of(one.i).id for one in unpack(turn.items) if one.o == "lost")
            found.lost |= {id_ for id_ in lost if id_}
        found.place_of = {item: turn for item, turn in turn_of.items() if turn in found.kept}
        left = [id_ for id_ in ids if id_ not in found.place_of]
        if left and caller.tenant.stateless:
            await self._find_in_conversations(caller, left, end_user, found)
        return found

    async def _find_in_conversations(
        self, caller: Caller, ids: Sequence[str], end_user: str, found: Found
    ) -> None:
        tenant = caller.tenant
        places = await self._conversations.of_items(tenant.id, ids)
        for place in dict.fromkeys(places.values()):
            head = await kept_head(self._conversations, tenant.id, place)
            if not owned(head, caller, end_user):
                continue
            entries = await self._conversations.items(tenant.id, place, ttl=tenant.ttl) or ()
            found.kept[place] = [replace(item_of(one.kept.i), id=one.id) for one in entries]
        found.place_of |= {id_: place for id_, place in places.items() if place in found.kept}

    async def _read(self, caller: Caller, turn_ids: Iterable[str], end_user: str) -> list[Turn]:
        """Read those of the turns that are the caller's."""
        wanted = list(dict.fromkeys(turn_ids))
        turns: list[Turn] = []
        for at in range(0, len(wanted), _AT_ONCE):
            read = await asyncio.gather(
                *(self._turns.read(caller.tenant.id, one) for one in wanted[at : at + _AT_ONCE])
            )
            turns += [turn for turn in read if turn and owned(turn.head, caller, end_user)]
        return turns


async def kept_head(store: ConversationStore, tenant: str, conversation_id: str) -> TurnHead | None:
    """Read a conversation that the gateway keeps, as what a turn goes on from."""
    found = await store.get(tenant, conversation_id)
    if found is None:
        return None
    conversation, progress = found
    return TurnHead(
        id=conversation.id,
        tenant=conversation.tenant,
        upstream=conversation.upstream,
        end_user=conversation.end_user,
        subject=conversation.subject,
        status="conversation",
        stored=False,
        facts=progress.facts,
        code=progress.code,
    )


def _items_of(turn: Turn) -> list[Item]:
    return [item_of(one.i) for one in unpack(turn.items) if one.o != "lost"]


def _last_answers(items: Sequence[Item]) -> list[str]:
    """Name the requests whose answers end an input."""
    names: list[str] = []
    for item in reversed(items):
        name = answered_request(item)
        if name is None:
            break
        names.append(name)
    return names
