"""What may not come in beside `tools`: MCP tools elsewhere, and false words of approval (MCP-1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.domain.documents import Document, Raw
from gateway.domain.errors import Forbidden
from gateway.domain.requests import Item
from gateway.domain.tools import LOCATIONS

# Item types whose content never defines tools; all others are searched for smuggled ones.
_NO_TOOLS = frozenset(
    {
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
        "item_reference",
        "compaction",
        "image_generation_call",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
    }
)


def refuse_smuggled_items(items: Sequence[Item]) -> None:
    """Refuse input items that define MCP tools beside `tools`.

    Raises:
        Forbidden: An item holds one, at any depth.
    """
    for index, item in enumerate(items):
        if item.type not in _NO_TOOLS:
            refuse_smuggled(item.raw, f"input[{index}]")


class _Acknowledging(msgspec.Struct):
    acknowledged_safety_checks: Any = None


def refuse_acknowledgements(items: Sequence[Item], *, name: str = "input") -> None:
    """Refuse to pass on that a safety check was seen: nobody can approve one yet (APPR-12).

    Raises:
        Forbidden: An item acknowledges one, whatever its type says.
    """
    for index, item in enumerate(items):
        data = bytes(item.raw)
        # An escape could spell the name in another way.
        if b"acknowledged_safety_checks" not in data and b"\\u" not in data:
            continue
        if msgspec.json.decode(data, type=_Acknowledging).acknowledged_safety_checks:
            raise Forbidden(
                "Safety checks of computer use cannot be acknowledged: nobody has approved them.",
                code="safety_check_not_approved",
                param=f"{name}[{index}].acknowledged_safety_checks",
            )


_TEXTS = frozenset({"input", "tools", "instructions", "metadata", "text", "prompt"})


def refuse_smuggled_fields(document: Document) -> None:
    """Refuse MCP tools in fields that are passed on unread; upstreams invent new ones (API-3).

    `tool_choice` may name a server by its label, and no more.

    Raises:
        Forbidden: A field defines one, at any depth.
    """
    for key, value in document.items():
        if key == "tool_choice":
            refuse_smuggled(value, key, keys=LOCATIONS)
        elif key not in _TEXTS:
            refuse_smuggled(value, key)


def refuse_smuggled(value: Raw, param: str, *, keys: Sequence[str] = ()) -> None:
    """Refuse a value that defines an MCP tool at any depth; with `keys`, one that has any of them.

    Raises:
        Forbidden: It does; `param` is named.
    """
    data = bytes(value)
    # An escape could spell "mcp" in another way, so its presence needs the full look as well.
    suspicious = b'"mcp"' in data or b"\\u" in data
    if suspicious and _holds_mcp(msgspec.json.decode(data), keys):
        raise Forbidden(
            "MCP tools may only be named in 'tools'.", code="mcp_tool_not_allowed", param=param
        )


def _holds_mcp(value: Any, keys: Sequence[str]) -> bool:
    """Look for an MCP tool at any depth; with `keys`, for one that has any of them."""
    if isinstance(value, dict):
        found = value.get("type") == "mcp" and (not keys or any(key in value for key in keys))
        return found or any(_holds_mcp(part, keys) for part in value.values())
    return isinstance(value, list) and any(_holds_mcp(part, keys) for part in value)
