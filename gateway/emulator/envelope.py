"""The Response object: the modern set of keys, the redacted echo of tools, the usage."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from gateway.emulator.items import Item, now
from gateway.emulator.turn_request import TurnRequest

REDACTED = "<redacted>"
_BYTES_PER_TOKEN = 4


def build_response(request: TurnRequest, *, response_id: str, azure: bool) -> dict[str, Any]:
    """Return the response as it stands when the turn begins."""
    body = request.body
    response: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": now(),
        "status": "queued" if request.background else "in_progress",
        "background": request.background,
        "completed_at": None,
        "error": None,
        "frequency_penalty": _default(body.get("frequency_penalty"), 0.0),
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "model": request.model,
        "moderation": None,
        "output": [],
        "parallel_tool_calls": _default(body.get("parallel_tool_calls"), True),
        "presence_penalty": _default(body.get("presence_penalty"), 0.0),
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "prompt_cache_retention": body.get("prompt_cache_retention"),
        "reasoning": {"effort": "medium", "summary": None, **(body.get("reasoning") or {})},
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": body.get("service_tier") or "auto",
        "store": request.store,
        "temperature": _default(body.get("temperature"), 1.0),
        "text": {"format": {"type": "text"}, "verbosity": "medium", **(body.get("text") or {})},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [echo_tool(tool) for tool in request.tools],
        "top_logprobs": _default(body.get("top_logprobs"), 0),
        "top_p": _default(body.get("top_p"), 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }
    if azure:
        response["content_filters"] = None
    if request.conversation_id:
        response["conversation"] = {"id": request.conversation_id}
    return response


def finish_response(
    response: dict[str, Any],
    *,
    status: str,
    output: Sequence[Item],
    usage: dict[str, Any] | None,
    error: dict[str, Any] | None = None,
    incomplete: str | None = None,
) -> dict[str, Any]:
    """Return the response as it stands when the turn has ended."""
    finished = {
        **response,
        "status": status,
        "output": list(output),
        "usage": usage,
        "error": error,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
    }
    if status != "failed":
        tier = response["service_tier"]
        finished["service_tier"] = "default" if tier == "auto" else tier
        finished["billing"] = {"payer": "developer"}
    if status == "completed":
        finished["completed_at"] = now()
    if "content_filters" in response and status != "failed":
        finished["content_filters"] = content_filters()
    return finished


def echo_tool(tool: Item) -> Item:
    """Return a tool as the response shows it: secrets, header values and URL paths redacted."""
    match tool.get("type"):
        case "mcp":
            return _echo_mcp(tool)
        case "function":
            return {"description": None, "parameters": None, "strict": True, **tool}
        case "image_generation":
            return {**_IMAGE_DEFAULTS, **tool}
        case _:
            return tool


_IMAGE_DEFAULTS: Item = {
    "background": "auto",
    "moderation": "auto",
    "n": 1,
    "output_compression": 100,
    "output_format": "png",
    "quality": "auto",
    "size": "auto",
}


def _echo_mcp(tool: Item) -> Item:
    headers = tool.get("headers")
    shown: Item = {
        **tool,
        "allowed_tools": tool.get("allowed_tools"),
        "headers": dict.fromkeys(headers, REDACTED) if headers else None,
        "require_approval": tool.get("require_approval") or "always",
        "server_description": tool.get("server_description"),
        "server_url": _redact_url(tool.get("server_url")),
    }
    if tool.get("authorization"):
        shown["authorization"] = REDACTED
    return shown


def _redact_url(url: Any) -> str | None:
    if not url:
        return None
    parts = urlsplit(str(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/{REDACTED}"


def count_tokens(value: Any) -> int:
    """Return a plausible number of tokens: stable, and growing with the content."""
    return max(1, len(msgspec.json.encode(value)) // _BYTES_PER_TOKEN)


def build_usage(*, read: int, written: int, reasoned: int) -> dict[str, Any]:
    """Return the `usage` object."""
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": reasoned},
        "total_tokens": read + written,
    }


def content_filters() -> list[dict[str, Any]]:
    """Return Azure's verdict that nothing was filtered."""
    harms = {
        name: {"filtered": False, "severity": "safe"}
        for name in ("hate", "self_harm", "sexual", "violence")
    }
    return [
        {
            "blocked": False,
            "source_type": source,
            "content_filter_raw": [],
            "content_filter_results": {**harms, extra: {"detected": False, "filtered": False}},
            "content_filter_offsets": {"start_offset": 0, "end_offset": 0, "check_offset": 0},
        }
        for source, extra in (("prompt", "jailbreak"), ("completion", "protected_material_text"))
    ]


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value
