"""The body of `POST /responses`: read, and refused where the API refuses it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.emulator import errors
from gateway.emulator.items import Item, is_message, is_model_made, normalise_input, text_of
from gateway.emulator.settings import EmulatorSettings

ENCRYPTED = "reasoning.encrypted_content"

_PARAMETERS = frozenset(
    {
        *("access_programs", "background", "client_metadata", "context_management"),
        *("conversation", "frequency_penalty", "image", "include", "input", "instructions"),
        *("max_output_tokens", "max_tool_calls", "metadata", "model", "moderation"),
        *("parallel_tool_calls", "presence_penalty", "previous_response_id", "prompt"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning"),
        *("safety_identifier", "service_tier", "store", "stream", "stream_options"),
        *("temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p"),
        *("truncation", "user"),
    }
)
_INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    ENCRYPTED,
    "message.output_text.logprobs",
)
_RANGES: Mapping[str, tuple[str, float, float | None]] = {
    "temperature": ("decimal", 0, 2),
    "top_p": ("decimal", 0, 1),
    "top_logprobs": ("integer", 0, 20),
    "max_output_tokens": ("integer", 16, None),
    "max_tool_calls": ("integer", 1, None),
}
_TYPES: Mapping[str, tuple[type, str]] = {
    "model": (str, "a string"),
    "instructions": (str, "a string"),
    "previous_response_id": (str, "a string"),
    "background": (bool, "a boolean"),
    "store": (bool, "a boolean"),
    "stream": (bool, "a boolean"),
    "parallel_tool_calls": (bool, "a boolean"),
    "include": (list, "an array"),
    "tools": (list, "an array"),
    "metadata": (dict, "an object"),
    "reasoning": (dict, "an object"),
    "text": (dict, "an object"),
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "item_reference": ("id",),
    "reasoning": ("summary",),
    "compaction": ("encrypted_content",),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "computer_call": ("call_id",),
    "computer_call_output": ("call_id", "output"),
    "mcp_list_tools": ("server_label", "tools"),
    "mcp_call": ("id", "server_label", "name", "arguments"),
    "mcp_approval_request": ("id", "server_label", "name", "arguments"),
    "mcp_approval_response": ("approval_request_id", "approve"),
}
_METADATA_LIMIT = 16


@dataclass(frozen=True, kw_only=True)
class TurnRequest:
    """A validated create request."""

    body: Mapping[str, Any]
    model: str
    input: Sequence[Item]
    tools: Sequence[Item]
    previous_response_id: str | None
    conversation_id: str | None
    store: bool
    stream: bool
    background: bool
    encrypted: bool
    obfuscated: bool

    @property
    def mcp_tools(self) -> dict[str, Item]:
        """The MCP tools by `server_label`."""
        return {str(t["server_label"]): t for t in self.tools if t.get("type") == "mcp"}

    @property
    def function_tools(self) -> list[Item]:
        """The function tools."""
        return [t for t in self.tools if t.get("type") == "function"]

    def nested(self, key: str, inner: str) -> Any:
        """Return `body[key][inner]`, or None where either is missing."""
        outer = self.body.get(key)
        return outer.get(inner) if isinstance(outer, dict) else None


def parse_body(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a request body.

    Raises:
        ApiError: `invalid_json`, or `invalid_type` when it is not an object.
    """
    try:
        body = msgspec.json.decode(raw or b"{}")
    except msgspec.DecodeError as exc:
        raise errors.invalid_json() from exc
    if not isinstance(body, dict):
        raise errors.invalid_type("body", "an object", body)
    return body


def parse_turn_request(body: Mapping[str, Any], settings: EmulatorSettings) -> TurnRequest:
    """Return the request that `body` makes.

    Raises:
        ApiError: the first thing the API would refuse.
    """
    check_names(body, _PARAMETERS)
    _check_types(body)
    _check_ranges(body)
    _check_include(body)
    _check_metadata(body)
    model = _model(body, settings)
    tools = _tools(body)
    asks_store = body.get("store") is not False
    return TurnRequest(
        body=body,
        model=model,
        input=parse_input(body),
        tools=tools,
        previous_response_id=body.get("previous_response_id"),
        conversation_id=_conversation_id(body),
        store=asks_store and settings.store,
        stream=bool(body.get("stream")),
        background=bool(body.get("background")),
        encrypted=ENCRYPTED in (body.get("include") or ()),
        obfuscated=_wants_obfuscation(body),
    )


def parse_input(body: Mapping[str, Any]) -> list[Item]:
    """Return the normalised `input`; an absent one is allowed where something else brings context.

    Raises:
        ApiError: when it is missing or of the wrong type.
    """
    value = body.get("input")
    if value is None:
        if not any(body.get(k) for k in ("previous_response_id", "conversation", "prompt")):
            raise errors.bad_request(
                "One of 'input' or 'previous_response_id' or 'prompt' or 'conversation' must be "
                "provided.",
                param="input",
                code="missing_required_parameter",
            )
        return []
    if not isinstance(value, str | list):
        raise errors.invalid_type("input", "one of an array of objects or string", value)
    for index, item in enumerate(value if isinstance(value, list) else ()):
        _check_item(f"input[{index}]", item)
    return normalise_input(value)


def _check_item(where: str, item: Any) -> None:
    if not isinstance(item, dict):
        raise errors.invalid_type(where, "an object", item)
    kind = item.get("type") or "message"
    for key in _REQUIRED.get(kind, ()):
        if item.get(key) is None:
            raise errors.missing_parameter(f"{where}.{key}")
    if kind == "message" and not isinstance(item["content"], str | list):
        raise errors.invalid_type(
            f"{where}.content", "one of an array of objects or string", item["content"]
        )
    if kind == "mcp_approval_response" and not isinstance(item["approve"], bool):
        raise errors.invalid_type(f"{where}.approve", "a boolean", item["approve"])


def last_user_text(body: Mapping[str, Any]) -> str:
    """Return the text of the last user message, without validating anything.

    Only the text after the last thing the model said counts: a replayed conversation does not
    repeat the commands of its earlier turns.
    """
    value = body.get("input")
    if not isinstance(value, str) and not (
        isinstance(value, list) and all(isinstance(i, dict) for i in value)
    ):
        return ""
    for item in reversed(normalise_input(value)):
        if is_message(item, "user"):
            return text_of(item)
        if is_model_made(item):
            return ""
    return ""


def require_model(body: Mapping[str, Any], settings: EmulatorSettings) -> str:
    """Return `model`.

    Raises:
        ApiError: when it is missing or unknown.
    """
    _check_types(body)
    return _model(body, settings)


def _model(body: Mapping[str, Any], settings: EmulatorSettings) -> str:
    model = body.get("model")
    if not model:
        raise errors.missing_parameter("model")
    if str(model).startswith("unknown"):
        raise errors.model_not_found(str(model), azure=settings.azure)
    return str(model)


def check_names(body: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse parameters that an endpoint does not know, and those that exclude one another.

    Raises:
        ApiError: `unknown_parameter`, `mutually_exclusive_parameters`.
    """
    for name in body:
        if name not in known:
            raise errors.bad_request(
                f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter"
            )
    if body.get("previous_response_id") and body.get("conversation"):
        raise errors.bad_request(
            "Mutually exclusive parameters: ''. Ensure you are only providing one of: "
            "'previous_response_id' or 'conversation'.",
            code="mutually_exclusive_parameters",
        )


def _check_types(body: Mapping[str, Any]) -> None:
    for name, (kind, label) in _TYPES.items():
        value = body.get(name)
        if value is not None and not isinstance(value, kind):
            raise errors.invalid_type(name, label, value)


def _check_ranges(body: Mapping[str, Any]) -> None:
    for name, (kind, low, high) in _RANGES.items():
        value = body.get(name)
        if value is None:
            continue
        wanted = int if kind == "integer" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise errors.invalid_type(name, f"{'an' if kind[0] == 'i' else 'a'} {kind}", value)
        check_range(name, value, kind=kind, low=low, high=high)


def check_range(name: str, value: float, *, kind: str, low: float, high: float | None) -> None:
    """Refuse a number out of its range, with the API's text and code.

    Raises:
        ApiError: `{kind}_below_min_value` or `{kind}_above_max_value`.
    """
    if value < low:
        side, sign, bound = "below minimum", ">=", low
    elif high is not None and value > high:
        side, sign, bound = "above maximum", "<=", high
    else:
        return
    raise errors.bad_request(
        f"Invalid '{name}': {kind} {side} value. Expected a value {sign} {bound:g}, but got "
        f"{value} instead.",
        param=name,
        code=f"{kind}_{side.replace('imum', '').replace(' ', '_')}_value",
    )


def _check_include(body: Mapping[str, Any]) -> None:
    for index, value in enumerate(body.get("include") or ()):
        if value not in _INCLUDABLE:
            known = ", ".join(f"'{name}'" for name in _INCLUDABLE)
            raise errors.bad_request(
                f"Invalid value: '{value}'. Supported values are: {known}.",
                param=f"include[{index}]",
                code="invalid_value",
            )


def _check_metadata(body: Mapping[str, Any]) -> None:
    metadata = body.get("metadata") or {}
    if len(metadata) > _METADATA_LIMIT:
        raise errors.bad_request(
            f"Invalid 'metadata': too many properties. Expected an object with at most 16 "
            f"properties, but got an object with {len(metadata)} properties instead.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise errors.invalid_type(f"metadata.{key}", "a string", value)


def _tools(body: Mapping[str, Any]) -> list[Item]:
    tools = body.get("tools") or []
    labels: set[str] = set()
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise errors.invalid_type(f"tools[{index}]", "an object", tool)
        if not tool.get("type"):
            raise errors.missing_parameter(f"tools[{index}].type")
        if tool["type"] == "mcp":
            _check_mcp_tool(f"tools[{index}]", tool, labels)
        elif tool["type"] == "function" and not tool.get("name"):
            raise errors.missing_parameter(f"tools[{index}].name")
    return list(tools)


def _check_mcp_tool(where: str, tool: Item, labels: set[str]) -> None:
    label = tool.get("server_label")
    if not label:
        raise errors.missing_parameter(f"{where}.server_label")
    if label in labels:
        raise errors.bad_request(
            f"Duplicate server_label found: '{label}'. Each MCP server needs its own.",
            param=f"{where}.server_label",
        )
    labels.add(str(label))
    if not any(tool.get(k) for k in ("server_url", "connector_id", "tunnel_id")):
        raise errors.missing_parameter(f"{where}.server_url")


def _conversation_id(body: Mapping[str, Any]) -> str | None:
    conversation = body.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return str(conversation) if conversation else None


def _wants_obfuscation(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    return not (isinstance(options, dict) and options.get("include_obfuscation") is False)
