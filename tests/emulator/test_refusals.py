"""The emulator refuses where the provider refuses."""

from typing import Any

import httpx2
import pytest

from .support import ENCRYPTED, MODEL, DemoServer, Json, Provider, approve, items_of, text_of

USER = {"role": "user", "content": "hello"}
RECALL = {"role": "user", "content": "/recall"}
STATELESS: Json = {"store": False, "include": ENCRYPTED}


async def test_unknown_parent(provider: Provider) -> None:
    status, error = await provider.refused("hello", previous_response_id="resp_nope")
    assert status == 400
    assert error == {
        "message": "Previous response with id 'resp_nope' not found.",
        "type": "invalid_request_error",
        "param": "previous_response_id",
        "code": "previous_response_not_found",
    }


@pytest.mark.parametrize("where", ["provider", "forgetful"])
async def test_unstored_response_cannot_be_chained_or_retrieved(
    where: str, request: pytest.FixtureRequest
) -> None:
    provider: Provider = request.getfixturevalue(where)
    body = {"store": False} if where == "provider" else {}
    created = await provider.create("hello", **body)
    assert created["store"] is False
    _, error = await provider.refused("more", previous_response_id=created["id"])
    assert error["code"] == "previous_response_not_found"
    assert (await provider.get(f"responses/{created['id']}")).status_code == 404


async def test_unanswered_approval(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create('/call github.create_issue {"title":"A"}', tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    status, error = await provider.refused("never mind", previous_response_id=first["id"])
    assert status == 400
    assert error["message"] == (
        f"The following MCP approval requests do not have an approval: {request['id']}"
    )


@pytest.mark.parametrize("as_reference", [True, False])
async def test_item_repeated_in_a_chain(
    provider: Provider, demo: DemoServer, as_reference: bool
) -> None:
    first = await provider.create('/call github.create_issue {"title":"A"}', tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    repeated = {"type": "item_reference", "id": request["id"]} if as_reference else request
    status, error = await provider.refused(
        [repeated, approve(request)], previous_response_id=first["id"], tools=[demo.tool()]
    )
    assert status == 400
    assert error["message"].startswith(f"Duplicate item found with id {request['id']}.")


async def test_answer_to_an_unknown_approval(provider: Provider) -> None:
    status, _ = await provider.refused([USER, approve({"id": "mcpr_nope"})])
    assert status == 400


@pytest.mark.parametrize("tail", [[], [USER]])
async def test_reasoning_without_its_follower(provider: Provider, tail: list[Any]) -> None:
    first = await provider.create("/think\n/echo a", **STATELESS)
    (thought,) = items_of(first, "reasoning")
    status, error = await provider.refused([USER, thought, *tail], **STATELESS)
    assert status == 400
    assert error["message"] == (
        f"Item '{thought['id']}' of type 'reasoning' was provided without its required following "
        "item."
    )
    assert (error["param"], error["code"]) == ("input", None)


async def test_stored_reasoning_with_another_follower(provider: Provider) -> None:
    """As recorded: the message was edited and came without its id."""
    first = await provider.create("/think\n/echo a")
    (thought,) = items_of(first, "reasoning")
    edited = {"role": "assistant", "content": "42"}
    _, error = await provider.refused([USER, thought, edited, USER])
    assert "without its required following item" in error["message"]


async def test_stored_item_without_its_reasoning(provider: Provider) -> None:
    first = await provider.create("/think\n/echo a")
    thought, message = first["output"]
    reference = {"type": "item_reference", "id": message["id"]}
    _, error = await provider.refused([USER, reference, USER])
    assert f"without its required 'reasoning' item: '{thought['id']}'" in error["message"]
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    second = await provider.create([USER, *references, RECALL])
    assert text_of(second) == 'I see 1 user message: "hello"; reasoning: 1; mcp calls: 0.'


@pytest.mark.parametrize("blob", [None, ""])
async def test_reasoning_that_was_not_persisted(provider: Provider, blob: Any) -> None:
    first = await provider.create("/think\n/echo a", store=False)
    thought, message = first["output"]
    assert "encrypted_content" not in thought
    status, error = await provider.refused(
        [USER, {**thought, "encrypted_content": blob}, message, USER], store=False
    )
    assert status == 404
    assert error["message"].startswith(f"Item with id '{thought['id']}' not found. Items are not")


async def test_unknown_item_reference(provider: Provider) -> None:
    status, error = await provider.refused([USER, {"type": "item_reference", "id": "msg_nope"}])
    assert (status, error["message"]) == (404, "Item with id 'msg_nope' not found.")


async def test_sealed_reasoning_is_accepted_from_every_stage(provider: Provider) -> None:
    events = await provider.stream("/think deeply\n/echo a", **STATELESS)
    final = events[-1]["response"]["output"]
    stages = [e["item"] for e in events if e.get("item", {}).get("type") == "reasoning"]
    thoughts = [*stages, final[0]]
    assert len({t["encrypted_content"] for t in thoughts}) == 3
    for thought in thoughts:
        again = await provider.create([USER, thought, final[1], RECALL], **STATELESS)
        assert text_of(again).endswith("reasoning: 1; mcp calls: 0.")


async def test_sealed_reasoning_may_lose_ids_and_its_message_too(provider: Provider) -> None:
    first = await provider.create("/think\n/echo a", **STATELESS)
    thought, message = [{k: v for k, v in i.items() if k != "id"} for i in first["output"]]
    again = await provider.create([USER, thought, message, RECALL], **STATELESS)
    assert "reasoning: 1" in text_of(again)


async def test_altered_or_foreign_reasoning(provider: Provider, other: Provider) -> None:
    first = await provider.create("/think\n/echo a", **STATELESS)
    thought, message = first["output"]
    blob = thought["encrypted_content"]
    assert blob.startswith("gAAAAA")
    altered = {
        **thought,
        "encrypted_content": blob[:60] + ("A" if blob[60] != "A" else "B") + blob[61:],
    }
    moved = {**thought, "id": "rs_" + "0" * 48}
    nonsense = {**thought, "encrypted_content": "nonsense"}
    cases: list[tuple[Provider, Any, str]] = [
        (provider, altered, MODEL),
        (provider, moved, MODEL),
        (provider, nonsense, MODEL),
        (provider, thought, "gpt-5.5"),
        (other, thought, MODEL),
    ]
    for where, item, model in cases:
        status, error = await where.refused([USER, item, message, USER], **STATELESS, model=model)
        assert (status, error["code"]) == (400, "invalid_encrypted_content")
        assert "could not be verified" in error["message"]


async def test_retrieval_never_shows_ciphertext(provider: Provider) -> None:
    first = await provider.create("/think\n/echo a", include=ENCRYPTED)
    assert "encrypted_content" in first["output"][0]
    found = (await provider.get(f"responses/{first['id']}")).json()
    assert "encrypted_content" not in found["output"][0]
    refused = await provider.get(f"responses/{first['id']}", include=ENCRYPTED[0])
    assert refused.status_code == 400


async def test_function_call_needs_its_output(provider: Provider) -> None:
    first = await provider.create("/function f {}")
    call_id = first["output"][0]["call_id"]
    _, error = await provider.refused("go on", previous_response_id=first["id"])
    assert error["message"] == f"No tool output found for function call {call_id}."
    orphan = {"type": "function_call_output", "call_id": "call_x", "output": ""}
    _, error = await provider.refused([USER, orphan])
    assert "No tool call found" in error["message"]


async def test_safety_checks_must_be_acknowledged(provider: Provider) -> None:
    first = await provider.create("/computer", tools=[{"type": "computer"}])
    (call,) = items_of(first, "computer_call")
    output: Json = {
        "type": "computer_call_output",
        "call_id": call["call_id"],
        "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"},
    }
    chain = {"previous_response_id": first["id"]}
    _, error = await provider.refused([output], **chain)
    assert call["pending_safety_checks"][0]["id"] in error["message"]
    output["acknowledged_safety_checks"] = call["pending_safety_checks"]
    assert text_of(await provider.create([output], **chain)) == "The computer returned: an image"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": "unknown-1"}, "model", "model_not_found"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 3}, "input", "invalid_type"),
        ({"temperature": -1}, "temperature", "decimal_below_min_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"max_output_tokens": 1}, "max_output_tokens", "integer_below_min_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (
            {"input": [{"type": "mcp_approval_response", "approval_request_id": "mcpr_a"}]},
            "input[0].approve",
            "missing_required_parameter",
        ),
        (
            {"input": [{"type": "reasoning", "id": "rs_a"}]},
            "input[0].summary",
            "missing_required_parameter",
        ),
        ({"include": ["x"]}, "include[0]", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"tools": [{"type": "mcp"}]}, "tools[0].server_label", "missing_required_parameter"),
        (
            {"tools": [{"type": "mcp", "server_label": "a"}]},
            "tools[0].server_url",
            "missing_required_parameter",
        ),
        (
            {"previous_response_id": "resp_a", "conversation": "conv_a"},
            None,
            "mutually_exclusive_parameters",
        ),
    ],
)
async def test_invalid_parameters(
    provider: Provider, body: Json, param: str | None, code: str
) -> None:
    given = {"model": MODEL, "input": "hello", **body}
    async with provider.http as client:
        response = await client.post("responses", json=given)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


async def test_invalid_json(provider: Provider) -> None:
    async with provider.http as client:
        response = await client.post("responses", content=b"{")
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("where", "headers", "status", "code"),
    [
        ("provider", {}, 401, None),
        ("provider", {"api-key": "key"}, 401, None),
        ("provider", {"authorization": "Bearer any"}, 200, None),
        ("azure", {"authorization": "Bearer any"}, 401, "401"),
        ("azure", {"authorization": "Bearer key"}, 200, None),
        ("azure", {"api-key": "key"}, 200, None),
    ],
)
async def test_keys(
    where: str, headers: dict[str, str], status: int, code: str | None, request: Any
) -> None:
    provider: Provider = request.getfixturevalue(where)
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        response = await client.get(f"{provider.url}/openai/v1/models", headers=headers)
    assert response.status_code == status
    assert response.json().get("error", {}).get("code") == code


async def test_azure_says_deployment_not_found(azure: Provider) -> None:
    status, error = await azure.refused("hello", model="unknown")
    assert (status, error["code"]) == (404, "DeploymentNotFound")


async def test_unknown_url(provider: Provider) -> None:
    response = await provider.get("nope")
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Invalid URL (GET /v1/nope)"
