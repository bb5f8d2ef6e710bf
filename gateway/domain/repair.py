"""The one repair of an input that an upstream refused (STATE-5).

Providers refuse a reasoning blob that they cannot open, and ids of items that they do not know or
want, in words that have changed over time and that relays repeat without the code. What was
refused is left out; the rest goes up as it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from gateway.domain.documents import Raw, parse_document, raw

Mode = Literal["strip_reasoning", "strip_ids", "off"]
"""What may be left out: what was refused, both the reasoning and the ids, or nothing."""

Cause = Literal["reasoning", "ids"]
"""What an upstream refuses: reasoning items, or ids of other items."""

LeftOut = Literal["reasoning", "ids", "compaction", "include"]
"""What a repair did without: also what was compacted, or the wish for ciphertext."""

_REASONING = re.compile(
    r"invalid_encrypted_content|encrypted content\b.{0,200}could not be verified"
    r"|of type '?reasoning'? was provided without its required",
    re.IGNORECASE | re.DOTALL,
)
_IDS = re.compile(
    r"was provided without its required '?reasoning'? item"
    r"|Invalid '?input\[\d+\]\.id\b",
    re.IGNORECASE,
)
_NOT_FOUND = re.compile(r"Item with id '?([\w-]+)'? not found", re.IGNORECASE)
_NO_CIPHERTEXT = re.compile(r"Encrypted content is not supported", re.IGNORECASE)

_NEEDS_NO_ID = frozenset(
    {None, "message", "function_call", "custom_tool_call", "shell_call", "apply_patch_call"}
)
"""Items that the API takes without the id that an upstream gave them."""


class _Head(msgspec.Struct):
    type: str | None = None
    id: str | None = None


_head = msgspec.json.Decoder(_Head)


def refuses_ciphertext(error: bytes) -> bool:
    """Tell whether an upstream says that its model makes no `encrypted_content`."""
    return _NO_CIPHERTEXT.search(_text(error)) is not None


def cause_of(items: Sequence[Raw], error: bytes) -> Cause | None:
    """Tell what of an input an upstream's error refuses; `None` if it is another error."""
    text = _text(error)
    if _REASONING.search(text):
        return "reasoning"
    missing = _NOT_FOUND.search(text)
    if missing is not None:
        heads = (_head.decode(item) for item in items)
        reasoning = {head.id for head in heads if head.type == "reasoning"}
        return "reasoning" if missing[1] in reasoning else "ids"
    return "ids" if _IDS.search(text) else None


def leave_out(items: Sequence[Raw], cause: Cause, mode: Mode) -> list[Raw]:
    """Leave out of an input what was refused, or both the reasoning and the ids."""
    both = mode == "strip_ids"
    kept = list(items)
    if both or cause == "reasoning":
        kept = [item for item in kept if _head.decode(item).type != "reasoning"]
    if both or cause == "ids":
        kept = [_without_id(item) for item in kept]
    return kept


def _without_id(item: Raw) -> Raw:
    head = _head.decode(item)
    if head.id is None or head.type not in _NEEDS_NO_ID:
        return item
    document = parse_document(item)
    del document["id"]
    return raw(document)


def _text(error: bytes) -> str:
    """Write an error's body without the escapes that some servers put into it."""
    try:
        return msgspec.json.encode(msgspec.json.decode(error)).decode()
    except msgspec.DecodeError:
        return error.decode(errors="replace")
