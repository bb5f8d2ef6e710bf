"""What the emulated provider remembers: responses, items, conversations."""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from gateway.emulator import errors
from gateway.emulator.items import Item, new_id, now
from gateway.emulator.jobs import Job

_T = TypeVar("_T")


class Shelf(Generic[_T]):
    """A dictionary that forgets its oldest entries."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[str, _T] = OrderedDict()

    def get(self, key: str) -> _T | None:
        """Return the entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: _T) -> None:
        """Keep `value`; the oldest entry goes when the shelf is full."""
        self._entries[key] = value
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def pop(self, key: str) -> _T | None:
        """Take the entry away and return it, or None."""
        return self._entries.pop(key, None)


@dataclass(kw_only=True)
class StoredResponse:
    """A response that can be retrieved."""

    body: dict[str, Any]
    context: Sequence[Item]
    """Everything the model saw for this response, without its output."""
    chainable: bool
    job: Job | None = None
    visible_at: float = 0.0
    """When it can be found, by the monotonic clock."""

    @property
    def transcript(self) -> list[Item]:
        """The context of a response that chains on this one."""
        return [*self.context, *self.body["output"]]


@dataclass(frozen=True, kw_only=True)
class StoredItem:
    """An item that can be referred to by its id, with its ties to reasoning."""

    item: Item
    reasoning_id: str | None = None
    """The reasoning item that must come with this one."""
    follower: Item | None = None
    """For reasoning: the item it led to."""


@dataclass(kw_only=True)
class Conversation:
    """A conversation: metadata and a growing list of items."""

    metadata: dict[str, str]
    items: list[Item] = field(default_factory=list)
    id: str = field(default_factory=lambda: new_id("conv"))
    created_at: int = field(default_factory=now)

    def to_json(self) -> dict[str, Any]:
        """Return the conversation as the API shows it."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created_at,
            "metadata": self.metadata,
        }


class Store:
    """Everything that outlives a turn."""

    def __init__(self, capacity: int) -> None:
        self._responses: Shelf[StoredResponse] = Shelf(capacity)
        self._items: Shelf[StoredItem] = Shelf(capacity * 4)
        self._conversations: Shelf[Conversation] = Shelf(capacity)

    def add_response(self, response: StoredResponse) -> None:
        """Keep a response; call again when it has changed."""
        self._responses.put(response.body["id"], response)

    def response(self, response_id: str) -> StoredResponse:
        """Return a response.

        Raises:
            ApiError: 404.
        """
        found = self._find(response_id)
        if found is None:
            raise errors.response_not_found(response_id)
        return found

    def _find(self, response_id: str) -> StoredResponse | None:
        found = self._responses.get(response_id)
        return found if found and found.visible_at <= time.monotonic() else None

    def parent(self, response_id: str) -> StoredResponse:
        """Return a response to chain on.

        Raises:
            ApiError: `previous_response_not_found`, also for one that was not stored.
        """
        found = self._find(response_id)
        if found is None or not found.chainable:
            raise errors.previous_response_not_found(response_id)
        if found.body["status"] in ("queued", "in_progress"):
            raise errors.bad_request(
                f"Previous response with id '{response_id}' has not completed yet.",
                param="previous_response_id",
            )
        return found

    def delete_response(self, response_id: str) -> None:
        """Forget a response.

        Raises:
            ApiError: 404.
        """
        if self._responses.pop(response_id) is None:
            raise errors.response_not_found(response_id)

    def add_items(self, items: Iterable[Item]) -> None:
        """Make items of one turn, in order, referable by id."""
        before: Item | None = None
        for item in items:
            reasoning = before if before and before["type"] == "reasoning" else None
            if reasoning is not None and item["type"] != "reasoning":
                self._items.put(reasoning["id"], StoredItem(item=reasoning, follower=item))
            self._items.put(
                item["id"],
                StoredItem(item=item, reasoning_id=reasoning["id"] if reasoning else None),
            )
            before = item

    def item(self, item_id: str) -> StoredItem | None:
        """Return a stored item, or None."""
        return self._items.get(item_id)

    def add_conversation(self, conversation: Conversation) -> None:
        """Keep a conversation."""
        self._conversations.put(conversation.id, conversation)

    def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation.

        Raises:
            ApiError: 404.
        """
        found = self._conversations.get(conversation_id)
        if found is None:
            raise errors.conversation_not_found(conversation_id)
        return found

    def delete_conversation(self, conversation_id: str) -> None:
        """Forget a conversation.

        Raises:
            ApiError: 404.
        """
        if self._conversations.pop(conversation_id) is None:
            raise errors.conversation_not_found(conversation_id)
