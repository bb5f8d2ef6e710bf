"""The events of each kind of item, in the recorded order.

Pure: every function yields events without `sequence_number` and `obfuscation`; the turn adds
those. An item is part of the response once its `response.output_item.done` was yielded.
"""

import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

from gateway.emulator.items import Item, new_id

Event = dict[str, Any]

_WORD = re.compile(r"\s*\S+\s*$|\s*\S+")
_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)


def pieces(text: str) -> list[str]:
    """Return the text in deltas, about one word each."""
    return _WORD.findall(text)


def added(index: int, item: Item) -> Event:
    """Return the event that opens an item."""
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: int, item: Item) -> Event:
    """Return the event that closes an item."""
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def message(index: int, text: str, *, complete: bool = True) -> Iterator[Event]:
    """Yield the events of an assistant message."""
    item_id = new_id("msg")
    at = {"item_id": item_id, "output_index": index, "content_index": 0}
    frame: Item = {"id": item_id, "type": "message", "status": "in_progress", "content": []}
    tail: Item = {"phase": "final_answer", "role": "assistant"}
    yield added(index, {**frame, **tail})
    yield {"type": "response.content_part.added", **at, "part": _output_text("")}
    for piece in pieces(text):
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
    yield {"type": "response.output_text.done", **at, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **at, "part": _output_text(text)}
    status = "completed" if complete else "incomplete"
    yield done(index, {**frame, "status": status, "content": [_output_text(text)], **tail})


def _output_text(text: str) -> Item:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def refusal(index: int, text: str) -> Iterator[Event]:
    """Yield the events of a message that refuses."""
    item_id = new_id("msg")
    at = {"item_id": item_id, "output_index": index, "content_index": 0}
    frame: Item = {"id": item_id, "type": "message", "status": "in_progress", "content": []}
    tail: Item = {"phase": "final_answer", "role": "assistant"}
    part = {"type": "refusal", "refusal": text}
    yield added(index, {**frame, **tail})
    yield {"type": "response.content_part.added", **at, "part": {**part, "refusal": ""}}
    for piece in pieces(text):
        yield {"type": "response.refusal.delta", **at, "delta": piece}
    yield {"type": "response.refusal.done", **at, "refusal": text}
    yield {"type": "response.content_part.done", **at, "part": part}
    yield done(index, {**frame, "status": "completed", "content": [part], **tail})


def reasoning(index: int, text: str, seal: Callable[[str, str], str | None]) -> Iterator[Event]:
    """Yield the events of a reasoning item.

    `seal(item_id, stage)` returns the ciphertext to show at that stage, or None for none.
    """
    item_id = new_id("rs")
    yield added(index, _reasoning(item_id, seal(item_id, "added"), []))
    at = {"item_id": item_id, "output_index": index, "summary_index": 0}
    summary: list[Item] = []
    if text:
        part = {"type": "summary_text", "text": text}
        yield {
            "type": "response.reasoning_summary_part.added",
            **at,
            "part": {"type": "summary_text", "text": ""},
        }
        for piece in pieces(text):
            yield {"type": "response.reasoning_summary_text.delta", **at, "delta": piece}
        yield {"type": "response.reasoning_summary_text.done", **at, "text": text}
        yield {"type": "response.reasoning_summary_part.done", **at, "part": part}
        summary = [part]
    yield done(index, _reasoning(item_id, seal(item_id, "done"), summary))


def _reasoning(item_id: str, sealed: str | None, summary: list[Item]) -> Item:
    item: Item = {"id": item_id, "type": "reasoning"}
    if sealed is not None:
        item["encrypted_content"] = sealed
    return {**item, "summary": summary}


def function_call(index: int, name: str, arguments: str) -> Iterator[Event]:
    """Yield the events of a function call."""
    item: Item = {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "in_progress",
        "arguments": "",
        "call_id": f"call_{secrets.token_hex(12)}",
        "name": name,
    }
    at = {"item_id": item["id"], "output_index": index}
    yield added(index, item)
    for start in range(0, len(arguments), 8):
        piece = arguments[start : start + 8]
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
    yield {"type": "response.function_call_arguments.done", **at, "arguments": arguments}
    yield done(index, {**item, "status": "completed", "arguments": arguments})


def list_tools_opening(index: int, label: str) -> Iterator[Event]:
    """Yield the events before the tools of a server are known."""
    item: Item = {
        "id": new_id("mcpl"),
        "type": "mcp_list_tools",
        "server_label": label,
        "tools": [],
    }
    yield added(index, item)
    yield _at("response.mcp_list_tools.in_progress", index, item)


def list_tools_closing(index: int, item: Item, tools: list[Item]) -> Iterator[Event]:
    """Yield the events once the tools of a server are known."""
    yield _at("response.mcp_list_tools.completed", index, item)
    yield done(index, {**item, "tools": tools})


def list_tools_failing(index: int, item: Item, message: str) -> Iterator[Event]:
    """Yield the events once a listing has failed."""
    yield _at("response.mcp_list_tools.failed", index, item)
    yield done(index, {**item, "error": message})


def mcp_call_opening(
    index: int, label: str, name: str, arguments: str, approval_request_id: str | None
) -> Iterator[Event]:
    """Yield the events before a tool has run; an approved call says `in_progress` twice."""
    item: Item = {
        "id": new_id("mcp"),
        "type": "mcp_call",
        "status": "in_progress",
        "approval_request_id": approval_request_id,
        "arguments": "",
        "error": None,
        "name": name,
        "output": None,
        "server_label": label,
    }
    yield added(index, item)
    yield _at("response.mcp_call.in_progress", index, item)
    at = {"output_index": index, "item_id": item["id"]}
    yield {"type": "response.mcp_call_arguments.delta", **at, "delta": arguments}
    if approval_request_id:
        yield _at("response.mcp_call.in_progress", index, item)
    yield {"type": "response.mcp_call_arguments.done", **at, "arguments": arguments}


def mcp_call_closing(index: int, item: Item, arguments: str, outcome: Item) -> Iterator[Event]:
    """Yield the events once a tool has run."""
    status = "failed" if outcome["error"] else "completed"
    yield _at(f"response.mcp_call.{status}", index, item)
    yield done(index, {**item, "status": status, "arguments": arguments, **outcome})


def approval_request(index: int, label: str, name: str, arguments: str) -> Iterator[Event]:
    """Yield the two events of an approval request, both with the full arguments."""
    item: Item = {
        "id": new_id("mcpr"),
        "type": "mcp_approval_request",
        "arguments": arguments,
        "name": name,
        "server_label": label,
    }
    yield added(index, item)
    yield done(index, item)


def image(index: int, prompt: str, tool: Item, *, azure: bool) -> Iterator[Event]:
    """Yield the events of an image; Azure never says that it is completed."""
    item: Item = {"id": new_id("ig"), "type": "image_generation_call", "status": "in_progress"}
    look: Item = {
        "background": "opaque",
        "output_format": tool.get("output_format") or "png",
        "quality": tool.get("quality") or "low",
        "size": tool.get("size") or "1024x1024",
    }
    yield added(index, item)
    yield _at("response.image_generation_call.in_progress", index, item)
    yield _at("response.image_generation_call.generating", index, item)
    for number in range(max(1, int(tool.get("partial_images") or 0))):
        yield {
            "type": "response.image_generation_call.partial_image",
            "output_index": index,
            "item_id": item["id"],
            "partial_image_index": number,
            "partial_image_b64": _PIXEL,
            **look,
        }
    if not azure:
        yield _at("response.image_generation_call.completed", index, item)
    status = "generating" if azure else "completed"
    yield done(
        index, {**item, "status": status, **look, "result": _PIXEL, "revised_prompt": prompt}
    )


def computer_call(index: int) -> Iterator[Event]:
    """Yield the two events of a computer call with a pending safety check."""
    item: Item = {
        "id": new_id("cu"),
        "type": "computer_call",
        "status": "in_progress",
        "action": {"type": "click", "button": "left", "x": 135, "y": 193},
        "call_id": f"call_{secrets.token_hex(12)}",
        "pending_safety_checks": [
            {
                "id": new_id("cu_sc"),
                "code": "malicious_instructions",
                "message": "The page asks for something you did not ask for.",
            }
        ],
    }
    yield added(index, item)
    yield done(index, {**item, "status": "completed"})


def _at(kind: str, index: int, item: Item) -> Event:
    return {"type": kind, "output_index": index, "item_id": item["id"]}
