"""The response of a turn of which no upstream has said anything yet.

It has every field that OpenAI's and the Open Responses specification's clients require: what the
caller asked for, else the value that the API documents for a field that was left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.domain.documents import NULL, Document, Raw, parse_document, raw
from gateway.domain.tools import public_tools
from gateway.domain.turns import HeldTool, TurnState

_ECHOED: dict[str, object] = {
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_FUNCTION: dict[str, object] = {"description": None, "parameters": None, "strict": True}


def own_response(state: TurnState, *, status: str) -> Document:
    """Write the response of a turn that has an id, and no output."""
    conversation = {"conversation": raw({"id": state.conversation_id})}
    background = raw(True) if state.background else state.body.get("background", raw(False))
    return {
        "id": raw(state.turn_id),
        "object": raw("response"),
        "created_at": raw(int(state.started_at)),
        "status": raw(status),
        "background": background,
        "completed_at": NULL,
        **(conversation if state.conversation_id else {}),
        "error": NULL,
        "incomplete_details": NULL,
        "model": raw(state.model),
        "output": raw([]),
        "previous_response_id": raw(state.parent),
        "store": raw(state.stored),
        "tools": _shown(state.tools),
        "usage": NULL,
        **{key: _or_default(state.body.get(key), value) for key, value in _ECHOED.items()},
    }


def _shown(tools: Sequence[HeldTool]) -> Raw:
    return public_tools(raw([_complete(tool) for tool in tools]))


def _complete(tool: HeldTool) -> Raw | Document:
    if tool.server is not None:
        return tool.server.tool
    if _is_function(tool.plain):
        return _or_default(tool.plain, _FUNCTION)
    return tool.plain


def _is_function(tool: Raw) -> bool:
    return bytes(parse_document(tool).get("type", NULL)) == b'"function"'


def _or_default(value: Raw | None, default: object) -> Raw:
    """Return what was asked; of an object, with the fields that were left out."""
    if value is None or value == NULL:
        return raw(default)
    if not isinstance(default, dict):
        return value
    try:
        return raw({**{name: raw(one) for name, one in default.items()}, **parse_document(value)})
    except msgspec.DecodeError:
        return value  # what it means is the upstream's to say
