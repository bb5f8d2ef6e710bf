"""Refusals of the API, with the texts and codes the providers use.

`ApiError` is the only error a handler raises on purpose. The functions below name each refusal, so
that the code that decides reads as a sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NOT_PERSISTED = (
    " Items are not persisted when `store` is set to false. Try again with `store` set to true, "
    "or remove this item from your input."
)


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal: an HTTP status and the `error` object of its body."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give the exception its text."""
        super().__init__(self.message)

    def to_body(self) -> dict[str, Any]:
        """Return the JSON body."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": {**error, **self.extra}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400."""
    return ApiError(400, message, param=param, code=code)


def missing_parameter(param: str) -> ApiError:
    """Return the refusal of a request without a required parameter."""
    return bad_request(
        f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter"
    )


def invalid_type(param: str, expected: str, got: object) -> ApiError:
    """Return the refusal of a parameter of the wrong type."""
    return bad_request(
        f"Invalid type for '{param}': expected {expected}, but got {_type_name(got)} instead.",
        param=param,
        code="invalid_type",
    )


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        type(None): "null",
        bool: "a boolean",
        int: "an integer",
        float: "a decimal",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "something else")


def invalid_json() -> ApiError:
    """Return the refusal of a body that is not JSON."""
    return bad_request(
        "Invalid body: failed to parse JSON value. Please check the value to ensure it is valid "
        "JSON. (Common errors include trailing commas, missing closing brackets, missing quotation "
        "marks, etc.)",
        code="invalid_json",
    )


def model_not_found(model: str, *, azure: bool) -> ApiError:
    """Return the refusal of a model (OpenAI) or deployment (Azure) that does not exist."""
    if azure:
        return ApiError(
            404,
            "The API deployment for this resource does not exist. If you created the deployment "
            "within the last 5 minutes, please wait a moment and try again.",
            code="DeploymentNotFound",
        )
    return bad_request(
        f"The requested model '{model}' does not exist.", param="model", code="model_not_found"
    )


def unauthorized(*, azure: bool, missing: bool) -> ApiError:
    """Return the refusal of a missing or wrong key."""
    if azure:
        return ApiError(
            401,
            "Access denied due to invalid subscription key or wrong API endpoint. Make sure to "
            "provide a valid key for an active subscription and use a correct regional API "
            "endpoint for your resource.",
            code="401",
        )
    if missing:
        return ApiError(
            401,
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        )
    return ApiError(
        401,
        "Incorrect API key provided: ********. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    )


def previous_response_not_found(response_id: str) -> ApiError:
    """Return the refusal of a chain whose parent is unknown or was not stored."""
    return bad_request(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def response_not_found(response_id: str) -> ApiError:
    """Return the 404 of a response."""
    return ApiError(404, f"Response with id '{response_id}' not found.")


def conversation_not_found(conversation_id: str) -> ApiError:
    """Return the 404 of a conversation."""
    return ApiError(404, f"Conversation with id '{conversation_id}' not found.")


def conversation_item_not_found(item_id: str) -> ApiError:
    """Return the 404 of an item of a conversation."""
    return ApiError(404, f"Item with id '{item_id}' not found in conversation.")


def item_not_found(item_id: str, *, store: bool) -> ApiError:
    """Return the 404 of an item that a request refers to."""
    text = f"Item with id '{item_id}' not found."
    return ApiError(404, text if store else text + NOT_PERSISTED, param="input")


def duplicate_item(item_id: str) -> ApiError:
    """Return the refusal of an item that the context already has."""
    return bad_request(
        f"Duplicate item found with id {item_id}. Remove duplicate items from your input and try "
        "again.",
        param="input",
    )


def unanswered_approvals(ids: Sequence[str]) -> ApiError:
    """Return the refusal of a turn that leaves approval requests open."""
    return bad_request(
        "The following MCP approval requests do not have an approval: " + ", ".join(ids),
        param="input",
    )


def reasoning_without_follower(item_id: str) -> ApiError:
    """Return the refusal of a reasoning item cut off from what it led to."""
    return bad_request(
        f"Item '{item_id}' of type 'reasoning' was provided without its required following item.",
        param="input",
    )


def item_without_reasoning(item_id: str, kind: str, reasoning_id: str) -> ApiError:
    """Return the refusal of a stored item cut off from the reasoning before it."""
    return bad_request(
        f"Item '{item_id}' of type '{kind}' was provided without its required 'reasoning' item: "
        f"'{reasoning_id}'.",
        param="input",
    )


def invalid_encrypted_content(sealed: str) -> ApiError:
    """Return the refusal of an altered or foreign `encrypted_content`."""
    return bad_request(
        f"The encrypted content {sealed[:4]}...{sealed[-4:]} could not be verified. Reason: "
        "Encrypted content could not be decrypted or parsed.",
        code="invalid_encrypted_content",
    )


def mcp_listing_failed(label: str, status: int, reason: str) -> ApiError:
    """Return the 424 of an MCP server whose tools could not be listed."""
    return ApiError(
        424,
        f"Error retrieving tool list from MCP server: '{label}'. Http status code: {status} "
        f"({reason})",
        type="external_connector_error",
        param="tools",
        code="http_error",
    )
