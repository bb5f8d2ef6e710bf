import hashlib
import json

import pytest
from mcp import MCPError
from mcp.server.mcpserver import MCPServer

from gateway.emulator.serve import serving

from .support import (
    ENCRYPTED,
    TOKEN,
    DemoServer,
    Json,
    Provider,
    approve,
    items_of,
    text_of,
)

CREATE = '/call github.create_issue {"title":"A"}'
PAY = '/call github.send_payment {"to":"Ann","amount":5}'


async def test_tools_are_called_with_the_headers_of_the_request(
    provider: Provider, demo: DemoServer
) -> None:
    response = await provider.create(CREATE, tools=[demo.tool(require_approval="never")])
    assert text_of(response).startswith("github.create_issue returned: Created issue #")
    (call,) = await demo.calls()
    assert call["name"] == "create_issue"
    assert call["arguments"] == {"title": "A", "body": ""}
    assert call["authorization_sha256"] == hashlib.sha256(f"Bearer {TOKEN}".encode()).hexdigest()


async def test_authorization_is_a_bearer_token(provider: Provider, demo: DemoServer) -> None:
    tool = demo.tool(require_approval="never", headers=None, authorization=TOKEN)
    response = await provider.create(CREATE, tools=[tool])
    assert response["tools"][0]["authorization"] == "<redacted>"
    assert len(await demo.calls()) == 1


async def test_echo_redacts_what_is_secret(provider: Provider, demo: DemoServer) -> None:
    response = await provider.create("hello", tools=[demo.tool(allowed_tools=["search_issues"])])
    (tool,) = response["tools"]
    assert tool["server_url"] == f"{demo.url}/<redacted>"
    assert tool["headers"] == {"Authorization": "<redacted>"}
    assert tool["allowed_tools"] == ["search_issues"]
    assert TOKEN not in json.dumps(response)


async def test_plain_answer_suggests_a_tool(provider: Provider, demo: DemoServer) -> None:
    response = await provider.create("hello", tools=[demo.tool()])
    assert 'Try: /call github.create_issue {"title":"example title"}' in text_of(response)


async def test_listing_shows_annotations_and_honours_allowed_tools(
    provider: Provider, demo: DemoServer
) -> None:
    response = await provider.create(
        "hello", tools=[demo.tool(allowed_tools={"read_only": True}), demo.tool("payments")]
    )
    first, second = items_of(response, "mcp_list_tools")
    assert {t["name"]: t["annotations"] for t in first["tools"]} == {
        "search_issues": {"read_only": True}
    }
    assert {t["name"] for t in second["tools"]} == {
        "search_issues",
        "create_issue",
        "send_payment",
    }


async def test_nothing_runs_before_approval(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create(f"{CREATE}\n{PAY}", tools=[demo.tool()])
    requests = items_of(first, "mcp_approval_request")
    assert [r["name"] for r in requests] == ["create_issue", "send_payment"]
    assert first["status"] == "completed"
    assert await demo.calls() == []


async def test_whole_batch_is_answered_at_once(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create(f"{CREATE}\n{PAY}", tools=[demo.tool()])
    one, two = items_of(first, "mcp_approval_request")
    answers = [approve(one), approve(two, yes=False, reason="too much money")]
    chain: Json = {"previous_response_id": first["id"], "tools": [demo.tool()]}
    status, error = await provider.refused(answers[:1], **chain)
    assert status == 400
    assert error["message"].endswith(f"do not have an approval: {two['id']}")
    second = await provider.create(answers, **chain)
    (call,) = items_of(second, "mcp_call")
    assert call["approval_request_id"] == one["id"]
    assert (call["name"], call["arguments"]) == (one["name"], one["arguments"])
    assert not items_of(second, "mcp_list_tools")
    assert "was denied. Reason: too much money" in text_of(second)
    assert [c["name"] for c in await demo.calls()] == ["create_issue"]


async def test_script_goes_on_after_an_approval(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create(f"{CREATE}\n/echo half way\n{PAY}", tools=[demo.tool()])
    (one,) = items_of(first, "mcp_approval_request")
    second = await provider.create(
        [approve(one)], previous_response_id=first["id"], tools=[demo.tool()]
    )
    assert text_of(second).endswith("half way")
    (two,) = items_of(second, "mcp_approval_request")
    third = await provider.create(
        [approve(two)], previous_response_id=second["id"], tools=[demo.tool()]
    )
    assert "Sent 5.00 EUR to Ann" in text_of(third)
    assert "Created issue" not in text_of(third)
    fourth = await provider.create("/recall", previous_response_id=third["id"])
    assert text_of(fourth).endswith("reasoning: 0; mcp calls: 2.")


async def test_stateless_approval(provider: Provider, demo: DemoServer) -> None:
    question = {"role": "user", "content": f"/think\n{CREATE}"}
    body: Json = {"store": False, "include": ENCRYPTED, "tools": [demo.tool()]}
    first = await provider.create([question], **body)
    (request,) = items_of(first, "mcp_approval_request")
    history = [question, *first["output"], approve(request)]
    second = await provider.create(history, **body)
    assert not items_of(second, "mcp_list_tools")
    assert len(items_of(second, "mcp_call")) == 1
    third = await provider.create(
        [*history, *second["output"], {"role": "user", "content": "/recall"}], **body
    )
    assert text_of(third).endswith("reasoning: 2; mcp calls: 1.")
    assert len(await demo.calls()) == 1


@pytest.mark.parametrize("client", ["agents", "vercel"])
async def test_approval_as_real_clients_send_it(
    provider: Provider, demo: DemoServer, client: str
) -> None:
    """Without previous_response_id: by a full replay, or by references."""
    question = {"role": "user", "content": f"/think\n{CREATE}"}
    first = await provider.create([question], tools=[demo.tool()])
    listing, thought, request = first["output"]
    replayed = {
        "agents": [
            {**listing, "error": None},
            {"type": "reasoning", "id": thought["id"], "summary": []},
            request,
        ],
        "vercel": [{"type": "item_reference", "id": item["id"]} for item in (thought, request)],
    }
    history = [question, *replayed[client], approve(request)]
    second = await provider.create(history, tools=[demo.tool()])
    assert len(items_of(second, "mcp_call")) == 1
    assert len(items_of(second, "mcp_list_tools")) == (0 if client == "agents" else 1)


async def test_approval_can_be_forked(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create(CREATE, tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    for _ in range(2):
        await provider.create(
            [approve(request)], previous_response_id=first["id"], tools=[demo.tool()]
        )
    assert len(await demo.calls()) == 2


async def test_second_answer_in_one_chain_is_refused(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create(CREATE, tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    second = await provider.create(
        [approve(request)], previous_response_id=first["id"], tools=[demo.tool()]
    )
    status, error = await provider.refused(
        [approve(request)], previous_response_id=second["id"], tools=[demo.tool()]
    )
    assert status == 400
    assert "Duplicate approval response" in error["message"]


async def test_new_question_does_not_wake_an_old_denial(
    provider: Provider, demo: DemoServer
) -> None:
    first = await provider.create(CREATE, tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    second = await provider.create(
        [approve(request, yes=False)], previous_response_id=first["id"], tools=[demo.tool()]
    )
    third = await provider.create("and now?", previous_response_id=second["id"])
    assert text_of(third) == 'You wrote: "and now?".'


async def test_never_for_one_tool(provider: Provider, demo: DemoServer) -> None:
    tool = demo.tool(require_approval={"never": {"tool_names": ["search_issues"]}})
    response = await provider.create(
        f'/call github.search_issues {{"query":"dark"}}\n{CREATE}', tools=[tool]
    )
    kinds = [item["type"] for item in response["output"]]
    assert kinds == ["mcp_list_tools", "mcp_call", "mcp_approval_request"]


async def test_each_call_is_reported_once(provider: Provider, demo: DemoServer) -> None:
    response = await provider.create(
        f"{CREATE}\n/echo half way\n{PAY}", tools=[demo.tool(require_approval="never")]
    )
    assert text_of(response).count("Created issue") == 1
    assert text_of(response).count("Sent 5.00 EUR") == 1


async def test_unlisted_server_and_tool_are_said(provider: Provider, demo: DemoServer) -> None:
    response = await provider.create(
        "/call slack.post {}\n/call github.nope {}", tools=[demo.tool()]
    )
    assert "no MCP server labelled 'slack'" in text_of(response)
    assert "'github' has no tool 'nope'" in text_of(response)


async def test_failing_tool_does_not_fail_the_response(
    provider: Provider, demo: DemoServer
) -> None:
    response = await provider.create(
        '/call github.send_payment {"to":"Ann","amount":100000}',
        tools=[demo.tool(require_approval="never")],
    )
    (call,) = items_of(response, "mcp_call")
    assert (call["status"], call["output"]) == ("failed", None)
    assert call["error"]["type"] == "mcp_tool_execution_error"
    assert "Insufficient funds" in call["error"]["content"][0]["text"]
    assert response["status"] == "completed"


async def test_call_of_an_unlisted_tool_can_be_forced(provider: Provider, demo: DemoServer) -> None:
    events = await provider.stream(
        "/call! github.nope {}", tools=[demo.tool(require_approval="never")]
    )
    (call,) = items_of(events[-1]["response"], "mcp_call")
    assert call["status"] == "failed"
    assert call["error"]["content"] == [{"type": "text", "text": "Unknown tool: nope"}]
    assert "response.mcp_call.failed" in [e["type"] for e in events]


async def test_protocol_error_of_a_server(provider: Provider) -> None:
    server = MCPServer("broken")

    @server.tool()
    def explode() -> str:
        raise MCPError(code=-32050, message="out of order")

    with serving(server.streamable_http_app(stateless_http=True, json_response=True)) as url:
        tool = {"type": "mcp", "server_label": "b", "server_url": f"{url}/mcp"}
        response = await provider.create(
            "/call b.explode {}", tools=[{**tool, "require_approval": "never"}]
        )
    (call,) = items_of(response, "mcp_call")
    assert call["error"] == {
        "type": "mcp_protocol_error",
        "code": -32050,
        "message": "out of order",
    }


async def test_secret_lost_after_the_listing_is_an_http_error(
    provider: Provider, demo: DemoServer
) -> None:
    first = await provider.create(CREATE, tools=[demo.tool()])
    (request,) = items_of(first, "mcp_approval_request")
    second = await provider.create(
        [approve(request)],
        previous_response_id=first["id"],
        tools=[demo.tool(headers={"Authorization": "Bearer wrong"})],
    )
    (call,) = items_of(second, "mcp_call")
    assert call["error"] == {
        "type": "http_error",
        "code": 401,
        "message": "An unknown error occurred while executing the tool.",
    }


async def test_listing_without_the_secret_fails_the_turn(
    provider: Provider, demo: DemoServer
) -> None:
    status, error = await provider.refused("hello", tools=[demo.tool(headers={})])
    assert status == 424
    assert error["message"] == (
        "Error retrieving tool list from MCP server: 'github'. Http status code: 401 (Unauthorized)"
    )
    events = await provider.stream("hello", tools=[demo.tool(headers={})])
    assert [e["type"] for e in events][-5:] == [
        "response.mcp_list_tools.in_progress",
        "response.mcp_list_tools.failed",
        "response.output_item.done",
        "error",
        "response.failed",
    ]


async def test_server_that_does_not_exist_fails_the_turn(provider: Provider) -> None:
    tool = {"type": "mcp", "server_label": "x", "server_url": "http://127.0.0.1:9/mcp"}
    status, _ = await provider.refused("hello", tools=[tool])
    assert status == 424


async def test_tools_are_not_carried_by_a_chain(provider: Provider, demo: DemoServer) -> None:
    first = await provider.create("hello", tools=[demo.tool()], instructions="be brief")
    second = await provider.create(CREATE, previous_response_id=first["id"])
    assert (second["tools"], second["instructions"]) == ([], None)
    assert "no MCP server labelled 'github'" in text_of(second)
