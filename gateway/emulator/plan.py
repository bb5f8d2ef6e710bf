"""What the scripted model does in a turn: context in, steps out, no I/O.

A turn may start with a new user message or go on after approvals and call outputs. To go on, the
plan reads the last user message again and resumes after the calls that were already made.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.emulator.items import CALL_OUTPUTS, Item, is_message, is_model_made, text_of
from gateway.emulator.script import Command, Kind, compact, parse_commands, sample, sample_arguments
from gateway.emulator.turn_request import TurnRequest


@dataclass(frozen=True)
class Think:
    """Reason; without `text` only as much as a requested summary needs."""

    text: str = ""


@dataclass(frozen=True)
class Say:
    """Write a message."""

    text: str


@dataclass(frozen=True)
class Refuse:
    """Write a refusal part."""

    text: str


@dataclass(frozen=True)
class CutOff:
    """Write a message and end the response as incomplete."""

    text: str


@dataclass(frozen=True)
class Call:
    """Run an MCP tool."""

    label: str
    name: str
    arguments: str
    approval_request_id: str | None = None


@dataclass(frozen=True)
class AskApproval:
    """Ask whether an MCP tool may run."""

    label: str
    name: str
    arguments: str


@dataclass(frozen=True)
class CallFunction:
    """Call a function of the client."""

    name: str
    arguments: str


@dataclass(frozen=True)
class UseComputer:
    """Call the client's computer."""


@dataclass(frozen=True)
class Draw:
    """Generate an image."""

    prompt: str


@dataclass(frozen=True)
class Report:
    """Write what the calls of this run returned, and what was denied."""

    earlier: tuple[Item, ...] = ()
    denied: tuple[str, ...] = ()


Step = (
    Think | Say | Refuse | CutOff | Call | AskApproval | CallFunction | UseComputer | Draw | Report
)

_ACTIONS = frozenset({Kind.CALL, Kind.FUNCTION, Kind.COMPUTER})
_FAULT_TEXT = "This answer carries the fault you asked for, so it may not reach you in one piece."


@dataclass(frozen=True, kw_only=True)
class Situation:
    """All a plan may know."""

    request: TurnRequest
    items: Sequence[Item]
    listings: Mapping[str, Sequence[Item]]
    """The tools of each MCP server, as `mcp_list_tools` shows them."""


def plan(situation: Situation) -> list[Step]:
    """Return the steps of the turn."""
    items = situation.items
    position = _last(items, lambda item: is_message(item, "user"))
    user = text_of(items[position]) if position >= 0 else ""
    fresh = position > _last(items, is_model_made)
    commands = parse_commands(user)
    steps = [*_answer_approvals(items, commands), *_answer_outputs(items)]
    if not fresh:
        return steps + _carry_out(_remaining(commands, items[position + 1 :]), situation)
    if commands:
        return steps + (_carry_out(commands, situation) or [Say(_FAULT_TEXT)])
    return [*steps, _plain_answer(user, situation)]


def needs_approval(tool: Item, name: str, *, read_only: bool) -> bool:
    """Tell whether a call must be approved, under `require_approval` of an MCP tool.

    Only `"never"` and a matching `never` filter skip it; a matching `always` filter beats both,
    and a tool that no filter names still asks, as recorded.
    """
    rule = tool.get("require_approval")
    if isinstance(rule, dict):
        if _matches(rule.get("always"), name, read_only=read_only):
            return True
        return not _matches(rule.get("never"), name, read_only=read_only)
    return rule != "never"


def is_allowed(tool: Item, name: str, *, read_only: bool) -> bool:
    """Tell whether `allowed_tools` of an MCP tool lets the model see a tool."""
    allowed = tool.get("allowed_tools")
    if allowed is None:
        return True
    if isinstance(allowed, list):
        return name in allowed
    return not allowed or _matches(allowed, name, read_only=read_only)


def _matches(rule: Any, name: str, *, read_only: bool) -> bool:
    if not isinstance(rule, dict):
        return False
    names, only = rule.get("tool_names"), rule.get("read_only")
    if names is None and only is None:
        return False
    return (names is None or name in names) and (only is None or only == read_only)


def _last(items: Sequence[Item], wanted: Any) -> int:
    return max((i for i, item in enumerate(items) if wanted(item)), default=-1)


def _open_run(items: Sequence[Item]) -> Sequence[Item]:
    """Return what followed the last message of the model."""
    return items[_last(items, lambda item: is_message(item, "assistant")) + 1 :]


def _answer_approvals(items: Sequence[Item], commands: Sequence[Command]) -> list[Step]:
    made = {i.get("approval_request_id") for i in items if i.get("type") == "mcp_call"}
    asked = {i["id"]: i for i in items if i.get("type") == "mcp_approval_request"}
    run = _open_run(items)
    steps: list[Step] = []
    denied: list[str] = []
    revised: list[Step] = []
    for answer in run:
        request_id = answer.get("approval_request_id")
        if answer.get("type") != "mcp_approval_response" or request_id in made:
            continue
        request = asked[request_id]
        if answer.get("approve"):
            steps.append(
                Call(request["server_label"], request["name"], request["arguments"], request_id)
            )
        else:
            denied.append(_denial(request, answer.get("reason")))
            revised += _revised(request, str(answer.get("reason")))
    if not steps and not denied:
        return []
    earlier = tuple(item for item in run if item.get("type") == "mcp_call")
    thinks = any(command.kind is Kind.THINK for command in commands)
    return [*([Think()] if thinks else []), *steps, Report(earlier, tuple(denied)), *revised]


_REVISION = re.compile(r"again with (?:exactly )?these arguments: (?=\{)")


def _revised(request: Item, reason: str) -> list[Step]:
    """Ask once more, as a model does that is told which arguments would do."""
    found = _REVISION.search(reason)
    if found is None:
        return []
    try:
        arguments, _ = json.JSONDecoder().raw_decode(reason, found.end())
    except ValueError:
        return []
    return [AskApproval(request["server_label"], request["name"], compact(arguments))]


def _denial(request: Item, reason: Any) -> str:
    because = f" Reason: {reason}" if reason else ""
    return f"I did not run {request['server_label']}.{request['name']}: it was denied.{because}"


def _answer_outputs(items: Sequence[Item]) -> list[Step]:
    calls = {
        item.get("call_id"): item.get("name", "The computer")
        for item in items
        if item.get("type") in CALL_OUTPUTS
    }
    said = [
        f"{calls[item['call_id']]} returned: {text_of(item) or 'an image'}"
        for item in _open_run(items)
        if item.get("type") in CALL_OUTPUTS.values()
    ]
    return [Say("\n".join(said))] if said else []


def _remaining(commands: Sequence[Command], done: Sequence[Item]) -> Sequence[Command]:
    """Return the commands after the last one that was carried out."""
    made = [key for item in done if (key := _action_key(item))]
    last = -1
    for position, command in enumerate(commands):
        if made and _command_key(command) == made[0]:
            made.pop(0)
            last = position
    return commands[last + 1 :] if last >= 0 else ()


def _action_key(item: Item) -> tuple[str, ...] | None:
    match item.get("type"):
        case "mcp_approval_request":
            return ("call", str(item["server_label"]), str(item["name"]))
        case "mcp_call" if not item.get("approval_request_id"):
            return ("call", str(item["server_label"]), str(item["name"]))
        case "function_call":
            return ("function", str(item["name"]))
        case "computer_call":
            return ("computer",)
        case _:
            return None


def _command_key(command: Command) -> tuple[str, ...]:
    parts = (command.kind.value, command.label, command.name)
    return tuple(part for part in parts if part)


def _carry_out(commands: Sequence[Command], situation: Situation) -> list[Step]:
    """Return the steps up to the first point where the client must answer."""
    steps: list[Step] = []
    waits = unreported = False
    for command in commands:
        if waits and command.kind not in _ACTIONS:
            return steps
        if unreported and command.kind not in _ACTIONS | {Kind.THINK}:
            steps.append(Report())
            unreported = False
        for step in _steps(command, situation):
            steps.append(step)
            waits = waits or isinstance(step, AskApproval | CallFunction | UseComputer)
            unreported = unreported or isinstance(step, Call)
    if unreported and not waits:
        steps.append(Report())
    return steps


def _steps(command: Command, situation: Situation) -> Iterator[Step]:
    match command.kind:
        case Kind.CALL:
            yield _call(command, situation)
        case Kind.FUNCTION:
            yield CallFunction(command.name, command.arguments)
        case Kind.COMPUTER:
            yield UseComputer()
        case Kind.IMAGE:
            yield Draw(command.text or "a small square")
        case Kind.THINK:
            yield Think(command.text)
        case Kind.FAULT:
            return
        case _:
            yield _utterance(command, situation)


def _utterance(command: Command, situation: Situation) -> Step:
    match command.kind:
        case Kind.LONG:
            count = int(command.text) if command.text.isdigit() else 100
            return Say(" ".join(f"word{n}" for n in range(1, count + 1)))
        case Kind.JSON:
            return Say(command.text or _json_answer(situation, ""))
        case Kind.REFUSE:
            return Refuse(command.text or "I'm sorry, but I can't help with that.")
        case Kind.INCOMPLETE:
            return CutOff(command.text or "This answer was cut off before it")
        case Kind.RECALL:
            return Say(_recall(situation.items))
        case _:
            return Say(command.text)


def _call(command: Command, situation: Situation) -> Step:
    tool = situation.request.mcp_tools.get(command.label)
    if tool is None:
        return Say(f"There is no MCP server labelled '{command.label}' in this request.")
    listed = {t["name"]: t for t in situation.listings.get(command.label, ())}
    if command.name not in listed and not command.forced:
        names = ", ".join(listed) or "none"
        return Say(f"'{command.label}' has no tool '{command.name}' for me. It has: {names}.")
    read_only = is_read_only(listed.get(command.name, {}))
    if needs_approval(tool, command.name, read_only=read_only):
        return AskApproval(command.label, command.name, command.arguments)
    return Call(command.label, command.name, command.arguments)


def is_read_only(listed: Item) -> bool:
    """Tell whether the listing of a tool says that it only reads."""
    return bool((listed.get("annotations") or {}).get("read_only"))


def _recall(items: Sequence[Item]) -> str:
    texts = [text_of(item) for item in items if is_message(item, "user")][:-1]
    quoted = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    count = {kind: sum(i.get("type") == kind for i in items) for kind in ("reasoning", "mcp_call")}
    plural = "message" if len(texts) == 1 else "messages"
    return (
        f"I see {len(texts)} user {plural}{': ' if texts else ''}{quoted}; "
        f"reasoning: {count['reasoning']}; mcp calls: {count['mcp_call']}."
    )


def _plain_answer(user: str, situation: Situation) -> Step:
    function = _chosen_function(user, situation.request)
    if function is not None:
        schema = function.get("parameters") or {}
        return CallFunction(str(function["name"]), compact(sample_arguments(schema, user)))
    if situation.request.nested("text", "format") and _format(situation) != "text":
        return Say(_json_answer(situation, user))
    return Say(_greeting(user, situation))


def _chosen_function(user: str, request: TurnRequest) -> Item | None:
    """Return the function a plain question calls for.

    One that `tool_choice` forces, or one with a word of its name in the question.
    """
    choice = request.body.get("tool_choice")
    functions = request.function_tools
    if isinstance(choice, dict):
        return next((f for f in functions if f["name"] == choice.get("name")), None)
    if choice == "required":
        return functions[0] if functions else None
    words = {word for word in user.lower().replace("?", " ").split() if len(word) > 3}
    if choice == "none":
        return None
    return next((f for f in functions if words & set(str(f["name"]).lower().split("_"))), None)


def _format(situation: Situation) -> str:
    return str((situation.request.nested("text", "format") or {}).get("type", "text"))


def _json_answer(situation: Situation, user: str) -> str:
    if _format(situation) == "json_schema":
        schema = (situation.request.nested("text", "format") or {}).get("schema") or {}
        return compact(sample({"type": "object", **schema}, text=user))
    return compact({"answer": user or "This is JSON."})


def _greeting(user: str, situation: Situation) -> str:
    if not user:
        return "Hello! I am a scripted model. Write to me, and I will quote you."
    hello = "" if any(is_message(i, "assistant") for i in situation.items) else "Hello! "
    return f'{hello}You wrote: "{user}".{_suggestion(situation)}'


def _suggestion(situation: Situation) -> str:
    tools = [
        (label, tool)
        for label, listing in situation.listings.items()
        for tool in sorted(listing, key=is_read_only)
    ]
    if not tools:
        return ""
    label, tool = tools[0]
    example = compact(sample_arguments(tool.get("input_schema") or {}))
    names = ", ".join(f"{name}.{tool['name']}" for name, tool in tools)
    return f"\n\nI can use {names}. Try: /call {label}.{tool['name']} {example}"
