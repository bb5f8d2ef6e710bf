"""What a turn leaves behind, and the input that a later turn is given (STATE-1 to STATE-3).

A turn keeps its own items only; a chain is its turns in order. What is replayed is exactly what
was produced: items whole, ids kept, each reasoning next to the item that follows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from gateway.domain.documents import NULL, Raw, encode, parse_document, raw
from gateway.domain.errors import Forbidden, NotFound
from gateway.domain.requests import Item, item_of

Origin = Literal["in", "out", "gw", "lost"]


class Kept(msgspec.Struct, frozen=True):
    """One item of a turn: who made it (caller, upstream, gateway), and the item as it came.

    A `lost` item is one of a leg that broke off and was sent again: its caller has seen it, so it
    is shown, and no upstream's chain holds it, so it is never replayed.
    """

    o: Origin
    i: Raw


_kept = msgspec.json.Decoder(list[Kept])


def pack(items: Sequence[Kept]) -> bytes:
    """Encode a turn's items for the store."""
    return encode(items)


def unpack(data: bytes) -> list[Kept]:
    """Decode a turn's items."""
    return _kept.decode(data) if data else []


class _Ids(msgspec.Struct):
    type: str | None = None
    id: str | None = None
    encrypted_content: str | None = None


_ids = msgspec.json.Decoder(_Ids)
_GUARDED = frozenset({"mcp_approval_request", "mcp_call", "mcp_list_tools"})


def ids_of(items: Iterable[Kept]) -> tuple[str, ...]:
    """List the ids of items that upstream made, for look-up by `item_reference`."""
    found = (_ids.decode(item.i).id for item in items if item.o != "in")
    return tuple(dict.fromkeys(id_ for id_ in found if id_))


def replay(
    turns: Iterable[Sequence[Kept]], new: Sequence[Item], *, held: Iterable[tuple[str, str]] = ()
) -> list[Raw]:
    """Write the whole input of a stateless turn: the chain's items, then the new ones.

    An item that the caller sends itself is not added a second time; where only an upstream may
    have made it, the chain's stays. One of another type is not the same item, whatever its id: in
    place of a call, it would leave an approval without the call that used it, to be used again.
    Reasoning without its ciphertext means nothing to an upstream that stored nothing, so it is
    left out. So is what an upstream has compacted in a turn of the chain (`context_management`):
    its `compaction` item says it.

    Args:
        held: More items that the chain holds in other words.
    """
    own = {(item.type, item.id) for item in new if item.id is not None}
    known: set[tuple[str, str | None]] = set(held)
    history: list[Kept] = []
    for kept in (kept for turn in turns for kept in turn if kept.o != "lost"):
        item = item_of(kept.i)
        key = (item.type, item.id)
        if item.type in _GUARDED:
            known.add(key)
        elif key in own or (item.type == "reasoning" and not _ids.decode(kept.i).encrypted_content):
            continue
        elif item.type == "compaction" and kept.o == "out":
            history = history[closed(history) :]
        history.append(kept)
    added = [item.raw for item in new if (item.type, item.id) not in known]
    return [kept.i for kept in history] + added


def guarded(items: Iterable[Kept]) -> list[tuple[str, str]]:
    """List type and id of the items that only an upstream may have made."""
    heads = (item_of(kept.i) for kept in items if kept.o != "lost")
    return [(item.type, item.id) for item in heads if item.type in _GUARDED and item.id]


class _Link(msgspec.Struct):
    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    approval_request_id: str | None = None
    approve: Any = None


_links = msgspec.json.Decoder(_Link)


def closed(items: Sequence[Kept]) -> int:
    """Count the items, from the first on, that can be told in other words (STATE-6).

    None of them waits for an output or an answer that is not among them: what answers a call must
    find the call, and what was approved is not told without the call that used it. And what an
    upstream made in one go is not torn apart: reasoning stays with what it led to.
    """
    waiting: set[str] = set()
    count = 0
    for place, item in enumerate(items, start=1):
        link = _links.decode(item.i)
        kind = link.type or ("mcp_approval_response" if link.approval_request_id else "message")
        if kind == "mcp_approval_request":
            waiting.add(link.id or "")
        elif kind == "mcp_call" or (kind == "mcp_approval_response" and link.approve is not True):
            waiting.discard(link.approval_request_id or "")
        elif kind.endswith("_output"):
            waiting.discard(link.call_id or link.id or "")
        elif link.call_id is not None:
            waiting.add(link.call_id)
        ends = place == len(items) or (item.o == "out") != (items[place].o == "out")
        if ends and not waiting:
            count = place
    return count


def resolve_references(
    items: Sequence[Item],
    place_of: Mapping[str, str],
    kept: Mapping[str, Sequence[Item]],
    *,
    here: str = "",
) -> list[Item]:
    """Replace each `item_reference` by the item, with the reasoning that stands before it.

    Args:
        place_of: Item id to the turn or conversation that holds it, for this caller's items only.
        kept: Turn or conversation to its items.
        here: The conversation that is continued: what it holds need not be said again.

    Raises:
        NotFound: An item is unknown; the same error for one of somebody else.
    """
    sent = {item.id for item in items if item.id is not None and item.type != "item_reference"}
    resolved: list[Item] = []
    for index, item in enumerate(items):
        if item.type != "item_reference":
            resolved.append(item)
            continue
        place = place_of.get(item.id or "", "")
        if here and place == here:
            continue
        found = with_reasoning(item.id or "", kept.get(place, ()))
        if not found:
            raise unknown_item(item.id or "", f"input[{index}]")
        for part in found:
            if part.id is not None and part.id not in sent:
                sent.add(part.id)
                resolved.append(part)
    return resolved


def with_reasoning(item_id: str, kept: Sequence[Item]) -> list[Item]:
    """Find an item among others, with the reasoning that stands right before it."""
    run: list[Item] = []
    for item in kept:
        if item.id == item_id:
            return [*run, item]
        run = [*run, item] if item.type == "reasoning" else []
    return []


class _Part(msgspec.Struct):
    type: str = "output_text"
    text: str | None = None
    refusal: str | None = None


class _Said(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    content: str | list[_Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None


_said = msgspec.json.Decoder(_Said)
_CALLS = frozenset({"function_call", "custom_tool_call"})


def content_of(item: Raw) -> str | None:
    """Write what an output item says, the same for each way to write it; `None` for others.

    Callers that keep their own history often drop ids, annotations and status.
    """
    try:
        said = _said.decode(item)
    except msgspec.DecodeError:
        return None
    if said.type in _CALLS:
        call = [said.type, said.call_id, said.name, said.arguments, said.input]
        return encode(call).decode() if said.call_id else None
    if said.type not in (None, "message") or said.role != "assistant" or not said.content:
        return None
    if isinstance(said.content, str):
        return encode([said.content]).decode()
    return encode([part.text or part.refusal for part in said.content]).decode()


def contents_of(items: Iterable[Kept]) -> tuple[str, ...]:
    """List what a turn's output items say."""
    said = (content_of(item.i) for item in items if item.o == "out")
    return tuple(dict.fromkeys(text for text in said if text))


def lacks_reasoning(items: Sequence[Item]) -> bool:
    """Tell whether a caller replays output items, and no reasoning that means anything.

    One that sends ciphertext looks after its reasoning itself.
    """
    if any(item.type == "reasoning" and _ids.decode(item.raw).encrypted_content for item in items):
        return False
    return any(item.id is not None or content_of(item.raw) for item in items)


def put_back(
    items: Sequence[Item], turn_of: Mapping[str, str], kept: Mapping[str, Sequence[Kept]]
) -> tuple[list[Item], int]:
    """Put reasoning before the output items that it belongs to, and count it (STATE-3).

    Args:
        turn_of: Turn id by an item's id, or by what it says.
        kept: Turn id to that turn's items.
    """
    sent: set[str] = set()
    result: list[Item] = []
    restored = 0
    for item in items:
        turn = turn_of.get(item.id or "") or turn_of.get(content_of(item.raw) or "")
        for part in _run_to(item, kept.get(turn or "", ())):
            if part.id not in sent:
                sent.add(part.id or "")
                result.append(part)
                restored += 1
        if item.type != "reasoning" or item.id not in sent:
            result.append(item)
    return result, restored


def _run_to(item: Item, kept: Sequence[Kept]) -> list[Item]:
    """Find the reasoning before an item of a turn; one that is there twice has none."""
    said = None if item.id else content_of(item.raw)
    runs: list[list[Item]] = []
    run: list[Item] = []
    for entry in kept:
        one = item_of(entry.i)
        if one.id == item.id if item.id else said is not None and content_of(one.raw) == said:
            runs.append([*run, one] if one.type == "reasoning" else run)
        run = [*run, one] if one.type == "reasoning" else []
    if len(runs) != 1 or not all(_ids.decode(one.raw).encrypted_content for one in runs[0]):
        return []
    return runs[0]


def unknown_item(item_id: str, param: str) -> NotFound:
    """The error for an item that this caller does not have."""
    return NotFound(f"Item with id '{item_id}' not found.", code="item_not_found", param=param)


def guarded_ids(items: Iterable[Item]) -> list[str]:
    """List the ids of items that only an upstream may have made, and so are checked."""
    return [item.id for item in items if item.type in _GUARDED and item.id is not None]


def has_guarded(items: Iterable[Item]) -> bool:
    """Tell whether there are items that only an upstream may have made."""
    return any(item.type in _GUARDED for item in items)


def restore_guarded(items: Sequence[Item], known: Mapping[str, Raw]) -> list[Item]:
    """Replace MCP items that the caller repeats by the stored ones (pitfall 1 of approvals).

    Clients add and drop nulls, write arguments anew and leave out what an upstream can read
    itself, so an item may say less than the stored one; what leaves is the stored item.

    Raises:
        Forbidden: An item is not one that this caller was given, or has been altered.
    """
    restored: list[Item] = []
    for index, item in enumerate(items):
        if item.type not in _GUARDED:
            restored.append(item)
            continue
        stored = known.get(item.id or "")
        if stored is None or not _repeats(stored, item.raw):
            raise Forbidden(
                f"The {item.type} item is not one that this conversation holds.",
                code="forged_item",
                param=f"input[{index}]",
            )
        restored.append(Item(raw=stored, type=item.type, id=item.id))
    return restored


def _repeats(stored: Raw, given: Raw) -> bool:
    whole, part = _plain(stored), _plain(given)
    return all(value in ([], "") or whole.get(key) == value for key, value in part.items())


def _plain(item: Raw) -> dict[str, Any]:
    fields: dict[str, Any] = _without_nulls(msgspec.json.decode(item))
    with suppress(KeyError, TypeError, msgspec.DecodeError):  # not JSON: compared as it stands
        fields["arguments"] = msgspec.json.decode(fields["arguments"])
    return fields


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def approval_response(request_id: str, *, approve: bool, reason: str | None) -> Raw:
    """Write the `mcp_approval_response` item that answers a request."""
    item: dict[str, object] = {
        "type": "mcp_approval_response",
        "approval_request_id": request_id,
        "approve": approve,
    }
    if reason:
        item["reason"] = reason
    return raw(item)


def approval_request(request_id: str, *, server: str, tool: str, arguments: str) -> Raw:
    """Write an `mcp_approval_request` item from what was recorded of it."""
    return raw(
        {
            "type": "mcp_approval_request",
            "id": request_id,
            "server_label": server,
            "name": tool,
            "arguments": arguments,
        }
    )


def hide_ciphertext(item: Raw) -> Raw:
    """Take `encrypted_content` out of a reasoning item for a caller who did not ask for it."""
    if b'"encrypted_content"' not in bytes(item):
        return item
    document = parse_document(item)
    if bytes(document.get("type", NULL)) != b'"reasoning"':
        return item
    document.pop("encrypted_content", None)
    return raw(document)


def stored_output(final: Sequence[Raw], done: Mapping[str, tuple[int, Raw]]) -> list[Raw]:
    """Choose what to keep of a leg's output (STATE-2).

    The final response names the items and their order; a stream may have lacked some
    `output_item.done`. The ciphertext of `done` is the one that upstreams take back. What was
    done and is not in the final response counts as well: the caller has seen it.

    Args:
        done: Item id to `output_index` and item.
    """
    kept: list[Raw] = []
    named: set[str] = set()
    for item in final:
        id_ = _ids.decode(item).id or ""
        named.add(id_)
        kept.append(done[id_][1] if id_ in done else item)
    for id_, (index, item) in done.items():
        if id_ not in named:
            kept.insert(index, item)
    return kept
