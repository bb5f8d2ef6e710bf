"""The context of a turn: what came before, what the request adds, and every rule on it.

The rules refuse exactly where the provider does: the gateway under test must not be able to send
a history here that it could not send there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.emulator import errors
from gateway.emulator.items import (
    CALL_OUTPUTS,
    Item,
    is_model_made,
    with_id,
)
from gateway.emulator.sealing import Sealer
from gateway.emulator.store import Conversation, Store, StoredItem
from gateway.emulator.turn_request import TurnRequest


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the model sees."""

    prior: Sequence[Item]
    new: Sequence[Item]
    conversation: Conversation | None = None

    @property
    def items(self) -> list[Item]:
        """All items, in order."""
        return [*self.prior, *self.new]


@dataclass(frozen=True, kw_only=True)
class _Added:
    """One item of the request's input, and how it was given."""

    item: Item
    stored: StoredItem | None


def build_context(request: TurnRequest, *, store: Store, sealer: Sealer) -> Context:
    """Return the context that a request means.

    Raises:
        ApiError: the provider's refusal of this history.
    """
    conversation = store.conversation(request.conversation_id) if request.conversation_id else None
    prior = _prior(request, store, conversation)
    added = [_resolve(item, request, store) for item in request.input]
    _check_duplicates(prior, added)
    for entry in added:
        _check_reasoning(entry, request, sealer)
    _check_followers(added)
    _check_required_reasoning(prior, added)
    new = [with_id(entry.item) for entry in added]
    everything = [*prior, *new]
    _check_approvals(everything)
    _check_outputs(everything)
    return Context(prior=prior, new=new, conversation=conversation)


def _prior(request: TurnRequest, store: Store, conversation: Conversation | None) -> Sequence[Item]:
    if request.previous_response_id:
        return store.parent(request.previous_response_id).transcript
    return list(conversation.items) if conversation else []


def _resolve(item: Item, request: TurnRequest, store: Store) -> _Added:
    stored = store.item(str(item["id"])) if item.get("id") else None
    if item.get("type") != "item_reference":
        return _Added(item=item, stored=stored)
    if stored is None:
        raise errors.item_not_found(str(item.get("id")), store=request.store)
    return _Added(item=stored.item, stored=stored)


def _check_duplicates(prior: Sequence[Item], added: Sequence[_Added]) -> None:
    seen = {item["id"] for item in prior}
    for entry in added:
        item_id = entry.item.get("id")
        if item_id in seen:
            raise errors.duplicate_item(str(item_id))
        if item_id:
            seen.add(item_id)


def _check_reasoning(entry: _Added, request: TurnRequest, sealer: Sealer) -> None:
    """Refuse reasoning that can be neither opened nor looked up."""
    item = entry.item
    if item.get("type") not in ("reasoning", "compaction"):
        return
    sealed = item.get("encrypted_content")
    if sealed:
        sealer.open(str(sealed), model=request.model, item_id=item.get("id"))
    elif entry.stored is None:
        raise errors.item_not_found(str(item.get("id")), store=request.store)


def _check_followers(added: Sequence[_Added]) -> None:
    """Refuse reasoning that is not followed by what it led to."""
    for entry, after in zip(added, [*added[1:], None], strict=True):
        if entry.item.get("type") != "reasoning":
            continue
        if after is None or not is_model_made(after.item):
            raise errors.reasoning_without_follower(str(entry.item.get("id")))
        follower = entry.stored.follower if entry.stored else None
        if follower is not None and not _is_same(follower, after.item):
            raise errors.reasoning_without_follower(str(entry.item.get("id")))


def _is_same(stored: Item, given: Item) -> bool:
    """Tell whether a replayed item is the stored one; calls may come without their id."""
    if given.get("id"):
        return bool(given["id"] == stored["id"])
    return bool(given.get("call_id")) and given.get("call_id") == stored.get("call_id")


def _check_required_reasoning(prior: Sequence[Item], added: Sequence[_Added]) -> None:
    present = {item["id"] for item in prior} | {entry.item.get("id") for entry in added}
    for entry in added:
        needed = entry.stored.reasoning_id if entry.stored else None
        if needed and needed not in present:
            raise errors.item_without_reasoning(
                str(entry.item["id"]), str(entry.item["type"]), needed
            )


def _check_approvals(items: Sequence[Item]) -> None:
    asked = [str(i["id"]) for i in _of_type(items, "mcp_approval_request")]
    answered: set[str] = set()
    for answer in _of_type(items, "mcp_approval_response"):
        request_id = str(answer.get("approval_request_id"))
        if request_id not in asked:
            raise errors.bad_request(
                f"MCP approval request with id '{request_id}' not found.", param="input"
            )
        if request_id in answered:
            raise errors.bad_request(
                f"Duplicate approval response found for approval request '{request_id}'.",
                param="input",
            )
        answered.add(request_id)
    open_ids = [request_id for request_id in asked if request_id not in answered]
    if open_ids:
        raise errors.unanswered_approvals(open_ids)


def _check_outputs(items: Sequence[Item]) -> None:
    """Refuse a call without its output and an output without its call."""
    for call, output in CALL_OUTPUTS.items():
        calls = {str(i.get("call_id")): i for i in _of_type(items, call)}
        outputs = {str(i.get("call_id")): i for i in _of_type(items, output)}
        words = call.replace("_", " ")
        for call_id in calls:
            if call_id not in outputs:
                raise errors.bad_request(
                    f"No tool output found for {words} {call_id}.", param="input"
                )
        for call_id, item in outputs.items():
            if call_id not in calls:
                raise errors.bad_request(
                    f"No tool call found for {words} output with call_id {call_id}.",
                    param="input",
                )
            _check_safety(calls[call_id], item)


def _check_safety(call: Item, output: Item) -> None:
    pending = {check["id"] for check in call.get("pending_safety_checks") or ()}
    acknowledged = {check.get("id") for check in output.get("acknowledged_safety_checks") or ()}
    missing = sorted(pending - acknowledged)
    if missing:
        raise errors.bad_request(
            "The following safety checks have not been acknowledged: " + ", ".join(missing),
            param="input",
        )


def _of_type(items: Iterable[Item], kind: str) -> list[Item]:
    return [item for item in items if item.get("type") == kind]
