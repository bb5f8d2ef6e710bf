"""The native flow: the caller is asked, and answers with `mcp_approval_response` (APPR-1, 5, 7)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    frames,
    issue,
    marker,
    output_types,
    pending,
    refused,
    sent,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import Gateway, Stack

NATIVE: list[dict[str, Any]] = [
    {"id": "reads", "match": {"server": "github", "tool": "search_*"}, "effect": "allow"},
    {
        "id": "self",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "approval": {"by": "caller"},
    },
    {"id": "pay", "match": {"server": "github", "tool": "send_*"}, "effect": "ask"},
]


@pytest.fixture(scope="module")
def native(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose rules let the caller decide."""
    with stack.gateway(rules=NATIVE, **tenancy(stack)) as running:
        yield running


def reply(request: dict[str, Any], approve: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "type": "mcp_approval_response",
        "approval_request_id": request["id"],
        "approve": approve,
        **more,
    }


def requests_of(response: Any) -> list[dict[str, Any]]:
    return [item for item in response["output"] if item["type"] == "mcp_approval_request"]


async def asked(gateway: Gateway, word: str, **body: Any) -> Any:
    """Have the caller asked about an issue."""
    response = (await create(gateway, body.pop("input", issue(word)), **body)).json()
    assert requests_of(response), response
    return response


@pytest.mark.covers("APPR-1")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_the_caller_approves_and_the_tool_runs_once(
    native: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    first = await asked(native, word, store=store)
    assert first["status"] == "completed"
    assert first["gateway"]["approvals"][0]["by"] == "caller"
    answer = await create(
        native, [reply(requests_of(first)[0])], previous_response_id=first["id"], store=store
    )
    assert output_types(answer.json())[-2:] == ["mcp_call", "message"]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-1")
async def test_the_caller_approves_on_a_stream(native: Gateway, stack: Stack) -> None:
    word = marker()
    client = native.client()
    async with client.responses.stream(
        model="gpt-4.1",
        input=issue(word),
        tools=[{"type": "mcp", "server_label": "github"}],
    ) as stream:
        async for _ in stream:
            pass
        first = await stream.get_final_response()
    request = first.output[-1]
    assert request.type == "mcp_approval_request"
    async with client.responses.stream(
        model="gpt-4.1",
        input=[
            {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
        ],
        previous_response_id=first.id,
        tools=[{"type": "mcp", "server_label": "github"}],
    ) as stream:
        async for _ in stream:
            pass
        last = await stream.get_final_response()
    assert [item.type for item in last.output][-2:] == ["mcp_call", "message"]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-1")
async def test_the_model_is_told_why_the_caller_denied(native: Gateway, stack: Stack) -> None:
    word = marker()
    first = await asked(native, word)
    answer = await create(
        native,
        [reply(requests_of(first)[0], False, reason="Wrong repository.")],
        previous_response_id=first["id"],
    )
    assert "Wrong repository." in text_of(answer.json())
    assert await executed(stack, word) == []


def with_nulls(item: dict[str, Any]) -> dict[str, Any]:
    """Repeat an item as the Agents SDK does: every field of its model, absent ones as null."""
    return {**item, "status": item.get("status"), "provider_data": None}


@pytest.mark.covers("APPR-1", "STATE-1")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
@pytest.mark.parametrize("shape", [dict, with_nulls], ids=["plain", "agents-sdk"])
async def test_a_client_that_keeps_the_conversation_itself_replays_it_whole(
    native: Gateway, stack: Stack, store: bool, shape: Any
) -> None:
    word = marker()
    question = {"role": "user", "content": issue(word)}
    history: list[dict[str, Any]] = [question]
    first = await asked(native, word, store=store)
    history += [shape(item) for item in first["output"]]
    history.append(reply(requests_of(first)[0]))
    second = (await create(native, history, store=store)).json()
    assert "mcp_call" in output_types(second)
    # The next turns repeat the answer that was carried out; it runs nothing a second time.
    history += [shape(item) for item in second["output"]]
    later = None
    for text in ("/echo one", "/echo two"):
        history.append({"role": "user", "content": text})
        later = await create(native, history, store=store)
        assert later.status_code == 200, later.text
        history += [shape(item) for item in later.json()["output"]]
    assert later is not None
    assert text_of(later.json()) == "two"
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-1")
async def test_a_second_approval_in_a_replayed_conversation_works(
    native: Gateway, stack: Stack
) -> None:
    one, two = marker(), marker()
    history: list[dict[str, Any]] = []
    for word in (one, two):
        history.append({"role": "user", "content": issue(word)})
        first = await create(native, history, store=False)
        assert first.status_code == 200, first.text
        history += [*first.json()["output"], reply(requests_of(first.json())[0])]
        second = await create(native, history, store=False)
        assert second.status_code == 200, second.text
        history += second.json()["output"]
    assert len(await executed(stack, one)) == len(await executed(stack, two)) == 1


@pytest.mark.covers("APPR-1", "CHAIN-1")
async def test_the_ai_sdk_shape_works_with_references_and_an_answer(
    native: Gateway, stack: Stack
) -> None:
    word = marker()
    first = await asked(native, word)
    references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
    answer = await create(
        native,
        [*references, reply(requests_of(first)[0])],
        previous_response_id=first["id"],
    )
    assert "mcp_call" in output_types(answer.json()), answer.text
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-1", "CHAIN-1")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_references_in_place_of_a_chain_work(
    native: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    question = {"role": "user", "content": issue(word)}
    first = await asked(native, word, store=store)
    history: list[dict[str, Any]] = [
        question,
        *({"type": "item_reference", "id": item["id"]} for item in first["output"]),
        reply(requests_of(first)[0]),
    ]
    answer = await create(native, history, store=store)
    assert "mcp_call" in output_types(answer.json()), answer.text
    history += [{"type": "item_reference", "id": item["id"]} for item in answer.json()["output"]]
    later = await create(native, [*history, {"role": "user", "content": "/echo bye"}], store=store)
    assert text_of(later.json()) == "bye", later.text
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-1", "STATE-3")
@pytest.mark.parametrize("approve", [True, False], ids=["approved", "denied"])
async def test_a_client_that_keeps_its_answers_alone_is_completed(
    native: Gateway, stack: Stack, approve: bool
) -> None:
    """The AI SDK replays messages, reasoning and answers; requests and calls it leaves out."""
    word = marker()
    history: list[dict[str, Any]] = [{"role": "user", "content": f"/think\n{issue(word)}"}]
    first = await asked(native, word, input=history, store=False)
    request = requests_of(first)[0]
    history.append(reply(request, approve))
    second = (await create(native, history, store=False)).json()
    assert ("mcp_call" in output_types(second)) == approve
    later = second
    for text in ("/echo one", "/recall"):
        history += [item for item in later["output"] if item["type"] == "message"]
        history.append({"role": "user", "content": text})
        later = (await create(native, history, store=False)).json()
    assert "I see 2 user messages" in text_of(later)
    assert len(await executed(stack, word)) == int(approve)
    bodies = await sent(stack, word)
    begun = ["message", "reasoning", "mcp_approval_request", "mcp_approval_response"]
    said = ["reasoning", *(["mcp_call"] if approve else []), "message"]
    assert [[item.get("type", "message") for item in body["input"]] for body in bodies] == [
        begun[:1],
        begun,
        [*begun, *said, "message"],
        [*begun, *said, *["message"] * 3],
    ]
    restored = bodies[-1]["input"]
    assert restored[1]["encrypted_content"]
    assert restored[2] == request
    assert restored[3]["approve"] is approve
    if approve:
        (call,) = [item for item in second["output"] if item["type"] == "mcp_call"]
        assert restored[5] == call


@pytest.mark.covers("APPR-1", "CHAIN-1")
async def test_nothing_is_put_beside_an_answer_of_another_end_user(
    native: Gateway, stack: Stack
) -> None:
    word = marker()
    headers = {"gateway-end-user": "ada"}
    first = await asked(native, word, store=False, headers=headers)
    history = [{"role": "user", "content": "please"}, reply(requests_of(first)[0])]
    for end_user in ({}, {"gateway-end-user": "bob"}):
        status, error = await refused(native, history, store=False, headers=end_user)
        assert (status, error["code"]) == (404, "approval_request_not_found")
    done = await create(native, history, store=False, headers=headers)
    assert done.status_code == 200
    history += [*done.json()["output"][-1:], {"role": "user", "content": "/recall"}]
    status, error = await refused(native, history, store=False)
    assert (status, error["code"]) == (404, "approval_request_not_found")
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-5")
async def test_an_answer_is_carried_out_once_whoever_sends_it_again(
    native: Gateway, stack: Stack
) -> None:
    word = marker()
    first = await asked(native, word)
    body = {"previous_response_id": first["id"]}
    answers = await asyncio.gather(
        *(create(native, [reply(requests_of(first)[0])], **body) for _ in range(6))
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]
    again = await refused(native, [reply(requests_of(first)[0])], **body)
    assert (again[0], again[1]["code"]) == (409, "already_continued")
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-5")
async def test_a_replay_without_the_call_does_not_run_it_again(
    native: Gateway, stack: Stack
) -> None:
    word = marker()
    first = await asked(native, word, store=False)
    history = [
        {"role": "user", "content": issue(word)},
        *first["output"],
        reply(requests_of(first)[0]),
    ]
    assert (await create(native, history, store=False)).status_code == 200
    status, error = await refused(native, history, store=False)
    assert (status, error["code"]) == (409, "already_continued")
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-6")
async def test_an_answer_cannot_be_taken_back(native: Gateway, stack: Stack) -> None:
    word = marker()
    first = await asked(native, word)
    request = requests_of(first)[0]
    body = {"previous_response_id": first["id"]}
    status, error = await refused(native, [reply(request), reply(request, False)], **body)
    assert (status, error["code"]) == (409, "vote_conflict")
    assert await executed(stack, word) == []
    done = await create(native, [reply(request, False), reply(request, False)], **body)
    assert done.status_code == 200
    status, error = await refused(native, [reply(request)], **body)
    assert status == 409
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-3")
async def test_all_requests_of_a_response_are_answered_together(
    native: Gateway, stack: Stack
) -> None:
    one, two = marker(), marker()
    first = (await create(native, issue(one) + "\n" + issue(two))).json()
    left, right = requests_of(first)
    body = {"previous_response_id": first["id"]}
    status, error = await refused(native, [reply(left)], **body)
    assert (status, error["code"]) == (409, "approval_pending")
    assert await executed(stack, one) == []
    answer = await create(native, [reply(left), reply(right, False, reason="Not this.")], **body)
    assert output_types(answer.json()).count("mcp_call") == 1
    assert "Not this." in text_of(answer.json())
    assert len(await executed(stack, one)) == 1
    assert await executed(stack, two) == []


@pytest.mark.covers("APPR-3")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
async def test_new_input_must_wait_for_the_answer(
    native: Gateway, store: bool, stream: bool
) -> None:
    first = await asked(native, marker(), store=store)
    status, error = await refused(
        native, "/echo hi", previous_response_id=first["id"], store=store, stream=stream
    )
    assert (status, error["code"]) == (409, "approval_pending")


@pytest.mark.covers("APPR-1", "APPR-6")
async def test_rules_and_caller_decide_one_batch_together(native: Gateway, stack: Stack) -> None:
    """A client answers all requests that it sees, also those that the rules have answered."""
    read, write = marker(), marker()
    text = f'/call github.search_issues {{"query": "{read}"}}\n' + issue(write)
    first = (await create(native, text)).json()
    both = requests_of(first)
    assert len(both) == 2
    status, _ = await refused(
        native,
        [reply(both[0], False), reply(both[1])],
        previous_response_id=first["id"],
    )
    assert status == 409
    assert await executed(stack, write) == []
    answer = await create(native, [reply(item) for item in both], previous_response_id=first["id"])
    assert output_types(answer.json()).count("mcp_call") == 2, answer.text
    assert len(await executed(stack, read)) == len(await executed(stack, write)) == 1


@pytest.mark.covers("APPR-6")
async def test_the_caller_cannot_answer_for_an_approver_in_a_mixed_batch(
    native: Gateway, stack: Stack
) -> None:
    word = marker()
    pay = f'/call github.send_payment {{"to": "{word}", "amount": 1}}'
    first = (await create(native, issue(word) + "\n" + pay)).json()
    mine, theirs = requests_of(first)
    body = {"previous_response_id": first["id"]}
    status, error = await refused(native, [reply(mine), reply(theirs)], **body)
    assert (status, error["code"]) == (403, "not_an_approver")
    status, error = await refused(native, [reply(mine)], **body)
    assert (status, error["code"]) == (409, "approval_pending")
    assert await executed(stack, word) == []
    found = await pending(native, word)
    (payment,) = [one for one in found if one["tool"]["name"] == "send_payment"]
    await vote(native, payment, "deny", reason="Too much.")
    answer = await create(native, [reply(mine)], **body)
    assert output_types(answer.json()).count("mcp_call") == 1
    assert "Too much." in text_of(answer.json())
    assert [call["name"] for call in await executed(stack, word)] == ["create_issue"]


@pytest.mark.covers("APPR-5")
async def test_a_refused_continuation_may_be_sent_again(native: Gateway, stack: Stack) -> None:
    word = marker()
    first = await asked(native, word)
    body = {"previous_response_id": first["id"]}
    fault = {"role": "user", "content": f"/fault 429 times=1\n/echo {word}"}
    item = [reply(requests_of(first)[0]), fault]
    busy = await create(native, item, **body)
    assert busy.status_code == 429, busy.text
    assert await executed(stack, word) == []
    answer = await create(native, item, **body)
    assert "mcp_call" in output_types(answer.json()), answer.text
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-6", "AUTH-2")
async def test_nobody_else_can_answer(native: Gateway, stack: Stack) -> None:
    word = marker()
    first = await asked(native, word)
    item = reply(requests_of(first)[0])
    status, error = await refused(native, [item], key="second")
    assert (status, error["code"]) == (403, "not_an_approver")
    foreign = await refused(native, [item], key="other")
    unknown = await refused(native, [{**item, "approval_request_id": "mcpr_x"}], key="other")
    assert foreign[0] == unknown[0] == 404
    assert (
        foreign[1]["message"].replace(item["approval_request_id"], "mcpr_x")
        == (unknown[1]["message"])
    )
    assert await executed(stack, word) == []


@pytest.mark.covers("CHAIN-1", "APPR-6")
async def test_another_end_user_can_neither_answer_nor_see(native: Gateway, stack: Stack) -> None:
    word = marker()
    alice, bob = {"gateway-end-user": "alice"}, {"gateway-end-user": "bob"}
    first = (await create(native, issue(word), headers=alice)).json()
    item = [reply(requests_of(first)[0])]
    for body in ({"previous_response_id": first["id"]}, {}):
        status, _ = await refused(native, item, headers=bob, **body)
        assert status == 404
    async with native.http() as client:
        listed = (await client.get("/v1/approvals?limit=100", headers=bob)).json()["data"]
        assert not [one for one in listed if word in one["arguments"]]
        listed = (await client.get("/v1/approvals?limit=100", headers=alice)).json()["data"]
        (approval,) = [one for one in listed if word in one["arguments"]]
        decision = {"decision": "approve", "fingerprint": approval["fingerprint"]}
        url = f"/v1/approvals/{approval['id']}/decision"
        assert (await client.post(url, json=decision, headers=bob)).status_code == 404
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-7")
@pytest.mark.parametrize("effect", ["deny", "ask"])
async def test_an_answer_does_not_outlive_the_rule_that_asked_for_it(
    stack: Stack, effect: str
) -> None:
    word, sections = marker(), tenancy(stack)
    stricter = [{"id": "now", "match": {"server": "github"}, "effect": effect}]
    with (
        stack.gateway(rules=NATIVE, **sections) as before,
        stack.gateway(rules=stricter, **sections) as after,
    ):
        first = await asked(before, word)
        answer = await create(
            after,
            [reply(requests_of(first)[0])],
            previous_response_id=first["id"],
            tools=[GITHUB, {"type": "function", "name": "f", "parameters": {}}],
        )
        if answer.status_code == 200:
            assert "rules changed" in text_of(answer.json())
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-7")
async def test_an_answer_does_not_move_to_another_server(stack: Stack) -> None:
    word, sections = marker(), tenancy(stack)
    moved = stack.mcp_server(url=stack.mcp_url + "?tenant=other")
    with (
        stack.gateway(rules=NATIVE, **sections) as before,
        stack.gateway(rules=NATIVE, mcp_servers=[moved], **sections) as after,
    ):
        first = await asked(before, word)
        answer = await create(
            after, [reply(requests_of(first)[0])], previous_response_id=first["id"]
        )
        assert "changed before a decision" in text_of(answer.json())
        assert (await sent(stack, requests_of(first)[0]["id"]))[-1]["input"][0]["approve"] is False
    assert await executed(stack, word) == []


async def _choose(gateway: Gateway, id_: str, action: str, key: str = "caller") -> tuple[int, Any]:
    async with gateway.http(key) as client:
        answer = await client.post(f"/v1/responses/{id_}/continue", json={"action": action})
    return answer.status_code, (answer.json().get("error") or {}).get("code")


@pytest.mark.covers("APPR-5")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_a_lost_answer_is_sent_again_when_its_caller_says_so(
    native: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    text = f"/fault 500 on=approval times=1\n{issue(word)}"
    first = (await create(native, text, store=store)).json()
    body = {"previous_response_id": first["id"], "store": store}
    item = [reply(requests_of(first)[0])]
    assert await _choose(native, first["id"], "retry") == (409, "not_indeterminate")
    assert (await create(native, item, **body)).status_code == 500
    status, error = await refused(native, item, **body)
    assert (status, error["code"]) == (409, "already_continued")
    assert await _choose(native, first["id"], "retry", "second") == (403, "not_an_approver")
    assert await _choose(native, first["id"], "retry", "other") == (404, "response_not_found")
    assert await _choose(native, first["id"], "retry") == (200, None)
    answer = await create(native, item, **body)
    assert output_types(answer.json()).count("mcp_call") == 1, answer.text
    assert len(await executed(stack, word)) == 1
    assert await _choose(native, first["id"], "retry") == (409, "already_continued")
    status, error = await refused(native, item, **body)
    assert (status, error["code"]) == (409, "already_continued")


@pytest.mark.covers("APPR-5")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_a_lost_answer_is_taken_back_when_its_caller_says_so(
    native: Gateway, stack: Stack, store: bool
) -> None:
    word = marker()
    before = (await create(native, "/echo before", store=store)).json()
    text = f"/fault 500 on=approval times=1\n{issue(word)}"
    first = (await create(native, text, previous_response_id=before["id"], store=store)).json()
    body = {"previous_response_id": first["id"], "store": store}
    item = [reply(requests_of(first)[0])]
    assert (await create(native, item, **body)).status_code == 500
    assert await _choose(native, first["id"], "rewind") == (200, None)
    for again in (item, "/echo on"):
        status, error = await refused(native, again, **body)
        assert status == 409, error
    assert await _choose(native, first["id"], "retry") == (409, "already_continued")
    after = await create(native, "/recall", previous_response_id=before["id"], store=store)
    assert "mcp calls: 0" in after.text
    assert await executed(stack, word) == []


def by_reference(item: dict[str, Any]) -> dict[str, Any]:
    """Refer to an item, as the AI SDK does where the upstream keeps it."""
    return {"type": "item_reference", "id": item["id"]}


@pytest.mark.covers("APPR-2", "STATE-2")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
@pytest.mark.parametrize("decision", ["approve", "deny"])
@pytest.mark.parametrize("shape", [dict, with_nulls, by_reference])
async def test_a_replayed_request_that_somebody_else_decided_has_its_answer_beside_it(
    gateway: Gateway, stack: Stack, shape: Any, decision: str, store: bool
) -> None:
    word = marker()
    question = {"role": "user", "content": issue(word)}
    held, _ = await asyncio.gather(
        create(gateway, [question], store=store, stream=True), decide(gateway, word, decision)
    )
    output = frames(held.text)[-1]["response"]["output"]
    history = [question, *map(shape, output), {"role": "user", "content": "/recall"}]
    later = await create(gateway, history, store=store)
    assert later.status_code == 200, later.text
    calls = 1 if decision == "approve" else 0
    assert f"mcp calls: {calls}" in text_of(later.json())
    assert len(await executed(stack, word)) == calls
    *_, body = await sent(stack, word)
    (answer,) = [item for item in body["input"] if item.get("type") == "mcp_approval_response"]
    assert answer["approve"] is (decision == "approve")
    assert answer["approval_request_id"] in [item["id"] for item in output]


def without_results(item: dict[str, Any]) -> dict[str, Any]:
    """Repeat an item as Pydantic AI does: without what an upstream can read itself."""
    left_out: dict[str, Any] = {
        "mcp_list_tools": {"tools": []},
        "mcp_call": {"output": None, "error": None},
    }
    item = {key: value for key, value in item.items() if key != "approval_request_id"}
    if "arguments" in item:
        item["arguments"] = json.dumps(json.loads(item["arguments"]), indent=1)
    return {**item, **left_out.get(item["type"], {})}


def without_arguments(item: dict[str, Any]) -> dict[str, Any]:
    """Repeat an item as Microsoft's framework does after a stream: as it was when it began."""
    return {**item, "arguments": ""} if item["type"] == "mcp_call" else item


@pytest.mark.covers("STATE-2")
@pytest.mark.parametrize("abridged", [without_results, without_arguments])
async def test_an_abridged_item_leaves_as_it_was_stored(
    gateway: Gateway, stack: Stack, abridged: Any
) -> None:
    word = marker()
    question = {"role": "user", "content": issue(word)}
    held, _ = await asyncio.gather(
        create(gateway, [question], store=False, stream=True), decide(gateway, word)
    )
    output = frames(held.text)[-1]["response"]["output"]
    history = [question, *map(abridged, output), {"role": "user", "content": "/recall"}]
    later = await create(gateway, history, store=False)
    assert later.status_code == 200, later.text
    *_, body = await sent(stack, word)
    kinds = ("mcp_list_tools", "mcp_approval_request", "mcp_call")
    leaving = [item for item in body["input"] if item.get("type") in kinds]
    assert leaving == [item for item in output if item["type"] in kinds]

    for key, value in (("name", "send_payment"), ("arguments", '{"title": "other"}')):
        forged = [
            {**item, key: value} if item.get("type") == "mcp_call" else item for item in history
        ]
        status, error = await refused(gateway, forged, store=False)
        assert (status, error["code"]) == (403, "forged_item")


@pytest.mark.covers("APPR-5")
async def test_a_replayed_request_without_its_call_is_not_answered_for_the_caller(
    gateway: Gateway, stack: Stack
) -> None:
    word = marker()
    question = {"role": "user", "content": issue(word)}
    held, _ = await asyncio.gather(
        create(gateway, [question], store=False, stream=True), decide(gateway, word)
    )
    output = frames(held.text)[-1]["response"]["output"]
    history = [question, *(item for item in output if item["type"] != "mcp_call")]
    status, error = await refused(gateway, history, store=False)
    assert status == 400
    assert "do not have an approval" in error["message"]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-5")
@pytest.mark.parametrize("fault", ["500", "reset", "reset_before"])
async def test_a_client_that_repeats_by_itself_runs_nothing_twice(
    native: Gateway, stack: Stack, fault: str
) -> None:
    """The official SDK sends a request again after a 5xx, with no word that it is the same."""
    word = marker()
    first = await asked(native, word, input=f"/fault {fault} on=approval times=1\n{issue(word)}")
    client = native.client().with_options(max_retries=2)
    with pytest.raises(openai.ConflictError) as caught:
        await client.responses.create(
            model="gpt-4.1",
            input=[reply(requests_of(first)[0])],  # type: ignore[list-item]
            previous_response_id=first["id"],
            tools=[{"type": "mcp", "server_label": "github"}],
        )
    assert caught.value.code == "already_continued"
    answers = [
        one
        for one in await stack.requests()
        if requests_of(first)[0]["id"] in str(one["body"].get("input"))
    ]
    assert len(answers) == 1
    assert len(await executed(stack, word)) <= 1
