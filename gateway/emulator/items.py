"""Items: their ids, their texts, and the one shape in which they are kept."""

import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

Item = dict[str, Any]
"""One input or output item, as JSON."""

CALL_OUTPUTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
}
"""Calls that the client answers, with the type of the answer."""

_MODEL_TYPES = frozenset(
    {
        "reasoning",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "image_generation_call",
        "compaction",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        *CALL_OUTPUTS,
    }
)

_INPUT_PREFIXES = {
    "message": "msg",
    "mcp_approval_response": "mcpra",
    "function_call": "fc",
    "function_call_output": "fco",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "reasoning": "rs",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "image_generation_call": "ig",
    "compaction": "cmp",
}


def new_id(prefix: str) -> str:
    """Return a fresh id in the providers' form."""
    return f"{prefix}_{secrets.token_hex(24)}"


def now() -> int:
    """Return the time in whole seconds, as the API writes it."""
    return int(time.time())


def is_model_made(item: Mapping[str, Any]) -> bool:
    """Tell whether the model, not the client, made this item."""
    if item.get("type") == "message":
        return item.get("role") == "assistant"
    return item.get("type") in _MODEL_TYPES


def is_message(item: Mapping[str, Any], role: str) -> bool:
    """Tell whether this is a message of `role`."""
    return item.get("type") == "message" and item.get("role") == role


def text_of(item: Mapping[str, Any]) -> str:
    """Return the text of a message or of a call's output."""
    content = item.get("content", item.get("output"))
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "\n".join(str(p["text"]) for p in parts if isinstance(p, dict) and p.get("text"))


def normalise_input(value: str | list[Item]) -> list[Item]:
    """Return `input` as a list of items, every message with `type` and parts.

    Ids given by the client stay; nothing else gets one yet, see `with_id`.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    return [_normalise(item) for item in value]


def _normalise(item: Item) -> Item:
    if (item.get("type") or "message") != "message":
        return dict(item)
    role = item.get("role", "user")
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        content = [_text_part(kind, content)]
    rest = {k: v for k, v in item.items() if k not in ("type", "role", "content", "status")}
    return {
        **rest,
        "type": "message",
        "status": item.get("status") or "completed",
        "content": content or [],
        "role": role,
    }


def _text_part(kind: str, text: str) -> Item:
    if kind == "output_text":
        return {"type": kind, "annotations": [], "logprobs": [], "text": text}
    return {"type": kind, "text": text}


def with_id(item: Item) -> Item:
    """Return the item with an id, as the API gives one to each input item."""
    if item.get("id"):
        return item
    kind = str(item.get("type"))
    rest = {key: value for key, value in item.items() if key != "id"}
    return {"id": new_id(_INPUT_PREFIXES.get(kind, "item")), **rest}


def without_ciphertext(items: Iterable[Item]) -> list[Item]:
    """Return the items as the API shows stored ones: reasoning without ciphertext."""
    return [
        {k: v for k, v in item.items() if k != "encrypted_content"}
        if item.get("type") == "reasoning"
        else item
        for item in items
    ]
