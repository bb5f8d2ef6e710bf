"""The commands a user can write at the start of a line, and how they are read.

/think [text]                 a reasoning item
/call SERVER.TOOL {json}      a remote MCP tool (`/call!` even if it is not listed)
/function NAME {json}         a function call for the client to answer
/echo TEXT                    a message
/long N                       a message of N deltas
/json [{json}]                a JSON answer
/image [prompt]               an image with partial images
/computer                     a computer call with a pending safety check
/refuse [text]                a refusal
/incomplete [text]            an answer that was cut off
/recall                       what is seen of the earlier conversation
/fault KIND                   see `gateway.emulator.faults`
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

_COMMAND = re.compile(r"^/([a-z]+)(!?)(?:[ \t]+|$)", re.MULTILINE)
_CALL = re.compile(r"(?P<label>[\w-]+)\.(?P<tool>[\w.\-/]+)")


class Kind(Enum):
    """The commands."""

    THINK = "think"
    CALL = "call"
    FUNCTION = "function"
    ECHO = "echo"
    LONG = "long"
    JSON = "json"
    IMAGE = "image"
    COMPUTER = "computer"
    REFUSE = "refuse"
    INCOMPLETE = "incomplete"
    RECALL = "recall"
    FAULT = "fault"


@dataclass(frozen=True)
class Command:
    """One command of a message."""

    kind: Kind
    text: str = ""
    label: str = ""
    """`/call`: the server label."""
    name: str = ""
    """`/call` and `/function`: the tool."""
    arguments: str = "{}"
    forced: bool = False


def parse_commands(text: str) -> list[Command]:
    """Return the commands of a message, in order; empty when it has none.

    Lines that follow a command and start no other belong to it.
    """
    known = {kind.value for kind in Kind}
    marks = [m for m in _COMMAND.finditer(text) if m.group(1) in known]
    ends = [mark.start() for mark in marks[1:]] + [len(text)] * bool(marks)
    return [
        _read(Kind(mark.group(1)), text[mark.end() : end].strip(), forced=bool(mark.group(2)))
        for mark, end in zip(marks, ends, strict=True)
    ]


def _read(kind: Kind, rest: str, *, forced: bool) -> Command:
    if kind not in (Kind.CALL, Kind.FUNCTION):
        return Command(kind, text=rest)
    target, _, tail = rest.partition(" ")
    target, newline, more = target.partition("\n")
    arguments = _arguments((more if newline else "") + tail)
    if arguments is None:
        return Command(Kind.ECHO, text=f"I cannot read the arguments of {target}: not JSON.")
    if kind is Kind.FUNCTION:
        return Command(kind, name=target, arguments=arguments)
    match = _CALL.fullmatch(target)
    if match is None:
        return Command(Kind.ECHO, text='Write it as /call SERVER.TOOL {"argument": "value"}.')
    return Command(
        kind, label=match["label"], name=match["tool"], arguments=arguments, forced=forced
    )


def _arguments(text: str) -> str | None:
    """Return the JSON object at the start of `text`, compact; None when it is not one."""
    text = text.strip()
    if not text.startswith("{"):
        return "{}"
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:
        return None
    return compact(value)


def compact(value: Any) -> str:
    """Return JSON without blanks, as models write arguments."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def sample_arguments(schema: dict[str, Any], text: str = "") -> dict[str, Any]:
    """Return arguments that a JSON schema accepts, with words of `text` where they may fit."""
    properties = schema.get("properties") or {}
    required: Iterable[str] = schema.get("required") or ()
    return {name: sample(properties.get(name) or {}, name, text) for name in required}


def sample(schema: dict[str, Any], name: str = "value", text: str = "") -> Any:
    """Return a value that a JSON schema accepts."""
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    match kind:
        case "object":
            return sample_arguments(schema, text)
        case "array":
            return [sample(schema.get("items") or {}, name, text)]
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _proper_noun(text) or f"example {name}"


def _proper_noun(text: str) -> str:
    """Return the last run of capitalised words that does not start the text."""
    found = re.findall(r"(?<=\s)[A-Z][\w'-]*(?:\s[A-Z][\w'-]*)*", text)
    return found[-1] if found else ""
