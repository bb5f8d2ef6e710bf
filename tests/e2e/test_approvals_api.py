"""The approvals API: who sees, who decides, and what each refusal says (APPR-6, AUTH-2)."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from gateway.adapters.crypto import KeyRing
from gateway.adapters.redis.approvals import RedisApprovalStore
from gateway.adapters.redis.client import open_clients
from gateway.domain.approvals import Approval
from gateway.domain.calls import Annotations
from tests.state import make
from tests.support.approvals import (
    create,
    executed,
    issue,
    marker,
    pending,
    refused,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import Gateway, Stack


async def held(gateway: Gateway, **body: Any) -> dict[str, Any]:
    """Hold a turn and return its approval."""
    word = marker()
    await create(gateway, issue(word), **body)
    return (await pending(gateway, word))[0]


@pytest.mark.covers("APPR-6")
async def test_an_approval_says_what_is_asked_why_by_whom_and_until_when(gateway: Gateway) -> None:
    approval = await held(gateway)
    policy = approval["policy"]
    assert (policy["rule"], policy["explain"]) == ("writes", "It changes what others see.")
    assert policy["mode"] == "enforce"
    assert policy["version"]
    assert approval["chain_id"] == approval["response_id"]
    assert approval["tool"]["name"] == "create_issue"
    (line,) = approval["history"]
    assert (line["event"], line["actor"]) == ("requested", "subject:svc:caller")
    assert approval["requester"] == {"subject": "svc:caller", "end_user": None}
    assert approval["allowed_decisions"] == ["approve", "deny", "revise"]
    assert approval["expires_at"] - approval["created_at"] == pytest.approx(1800, abs=1)
    async with gateway.http("approver") as client:
        one = await client.get(approval["url"])
        assert one.json() == approval
        assert one.headers["etag"] == '"v1"'
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-6", "AUTH-1")
async def test_a_caller_sees_its_own_approval_and_may_not_decide_it(
    gateway: Gateway, stack: Stack
) -> None:
    approval = await held(gateway)
    async with gateway.http() as client:
        seen = (await client.get(approval["url"])).json()
    assert seen["allowed_decisions"] == []
    answer = await vote(gateway, approval, key="caller")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "not_an_approver")
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-6")
async def test_nobody_decides_its_own_request_not_even_by_a_second_key(stack: Stack) -> None:
    sections = tenancy(stack)
    tenant = sections["tenants"][0]["id"]
    keys = [key for key in sections["api_keys"] if key["id"] not in ("admin", "approver")]
    keys += [
        stack.key("admin", tenant=tenant, subject="user:bob", roles=["admin"]),
        stack.key("approver", tenant=tenant, subject="user:ann", roles=["approver"]),
    ]
    with stack.gateway(**{**sections, "api_keys": keys}) as gateway:
        word = marker()
        await create(gateway, issue(word), key="second")
        (approval,) = await pending(gateway, word)
        for key in ("second", "admin"):
            answer = await vote(gateway, approval, key=key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "self_approval")
        word = marker()
        await create(gateway, issue(word), safety_identifier="user:ann")
        (approval,) = await pending(gateway, word)
        answer = await vote(gateway, approval, key="approver")
        assert answer.json()["error"]["code"] == "self_approval"
        assert (await vote(gateway, approval, key="second")).status_code == 200


@pytest.mark.covers("APPR-6", "AUTH-2", "CHAIN-1")
async def test_a_foreign_approval_reads_like_an_unknown_one_on_every_door(
    gateway: Gateway, stack: Stack
) -> None:
    approval = await held(gateway)
    unknown = {**approval, "id": "apr_" + "0" * 32}
    async with gateway.http("other") as client:
        for path in ("/v1/approvals/{}", "/v1/responses/{}/approvals"):
            id_ = approval["id"] if "approvals/{}" in path else approval["response_id"]
            made_up = unknown["id"] if "approvals/{}" in path else "resp_" + "0" * 48
            left, right = await client.get(path.format(id_)), await client.get(path.format(made_up))
            assert left.status_code == right.status_code
            assert left.text.replace(id_, made_up) == right.text
        for method, path in [
            ("GET", "/v1/responses/{}"),
            ("GET", "/v1/responses/{}?stream=true"),
            ("GET", "/v1/responses/{}/input_items"),
            ("POST", "/v1/responses/{}/cancel"),
            ("DELETE", "/v1/responses/{}"),
        ]:
            id_, made_up = approval["response_id"], "resp_" + "0" * 48
            left = await client.request(method, path.format(id_))
            right = await client.request(method, path.format(made_up))
            assert left.status_code == right.status_code == 404
            assert left.text.replace(id_, made_up) == right.text
        everything = await client.get("/v1/approvals?status=all&limit=100")
        assert approval["id"] not in everything.text
    left, right = [await vote(gateway, one, key="other") for one in (approval, unknown)]
    assert left.status_code == right.status_code == 404
    assert left.text.replace(approval["id"], unknown["id"]) == right.text
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-6", "APPR-7")
@pytest.mark.parametrize(
    ("changes", "headers", "status", "code", "param"),
    [
        ({"fingerprint": "sha256:" + "0" * 64}, {}, 409, "fingerprint_mismatch", "fingerprint"),
        ({"fingerprint": None}, {}, 400, "invalid_value", "fingerprint"),
        ({"decision": "maybe"}, {}, 400, "invalid_value", "decision"),
        ({"unheard": 1}, {}, 400, "invalid_value", "unheard"),
        ({"reason": 7}, {}, 400, "invalid_value", "reason"),
        ({"reason": "x" * 2001}, {}, 422, "reason_too_long", "reason"),
        ({"decision": "revise"}, {}, 422, "invalid_arguments", "arguments"),
        ({"decision": "revise", "arguments": [1]}, {}, 422, "invalid_arguments", "arguments"),
        ({"decision": "revise", "arguments": '{"a":1}'}, {}, 422, "invalid_arguments", "arguments"),
        (
            {"decision": "revise", "arguments": {"a": "x" * 16_000}},
            {},
            *(422, "arguments_too_long", "arguments"),
        ),
        ({"arguments": {}}, {}, 422, "invalid_arguments", "arguments"),
        ({}, {"idempotency-key": "not visible"}, 400, "invalid_value", "Idempotency-Key"),
        ({}, {"idempotency-key": "k" * 256}, 400, "invalid_value", "Idempotency-Key"),
        ({"grant": {"scope": "tool"}}, {}, 422, "grant_scope_too_wide", "grant.scope"),
        ({"grant": {"scope": "world"}}, {}, 422, "invalid_grant", "grant.scope"),
        ({"grant": {"scope": "tool", "more": 1}}, {}, 422, "invalid_grant", "grant.more"),
        ({"grant": "tool"}, {}, 422, "invalid_grant", "grant"),
        ({"decision": "deny", "grant": {"scope": "tool"}}, {}, 422, "invalid_grant", "grant"),
        ({}, {"if-match": '"v7"'}, 412, None, None),
        ({}, {"if-match": "seven"}, 400, "invalid_value", "If-Match"),
    ],
)
async def test_a_decision_that_cannot_count_says_why(
    gateway: Gateway,
    stack: Stack,
    changes: dict[str, Any],
    headers: dict[str, str],
    status: int,
    code: str | None,
    param: str | None,
) -> None:
    approval = await held(gateway)
    decision = changes.pop("decision", "approve")
    answer = await vote(gateway, approval, decision, headers=headers, **changes)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param
    async with gateway.http("approver") as client:
        assert (await client.get(approval["url"])).json()["status"] == "pending"
    assert await executed(stack, approval["arguments"]) == []
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-6")
async def test_a_decision_stands(gateway: Gateway, stack: Stack) -> None:
    approval = await held(gateway)
    current = {"if-match": '"v1"'}
    denied = await vote(gateway, approval, "deny", reason="No.", headers=current)
    assert denied.json()["status"] == "denied"
    assert denied.json()["decided_by"] == "subject:user:ann"
    assert denied.headers["etag"] == '"v2"'
    again = await vote(gateway, approval, "deny")
    assert again.status_code == 200
    turned = await vote(gateway, approval)
    assert (turned.status_code, turned.json()["error"]["code"]) == (409, "vote_conflict")
    late = await vote(gateway, approval, key="second")
    assert (late.status_code, late.json()["error"]["code"]) == (409, "already_decided")
    assert await executed(stack, approval["arguments"]) == []


@pytest.mark.covers("APPR-6")
async def test_a_get_never_decides(gateway: Gateway) -> None:
    approval = await held(gateway)
    async with gateway.http("approver") as client:
        url = approval["url"] + "/decision?decision=approve&fingerprint=" + approval["fingerprint"]
        for method in ("GET", "HEAD", "PUT"):
            assert (await client.request(method, url)).status_code == 405
        assert (await client.get(approval["url"])).json()["status"] == "pending"
    await vote(gateway, approval, "deny")


@pytest.mark.covers("APPR-6")
async def test_a_quorum_needs_different_people(stack: Stack) -> None:
    rules = [
        {
            "id": "two",
            "match": {"server": "github"},
            "effect": "ask",
            "approval": {"quorum": 2, "approvers": ["role:approver"]},
        }
    ]
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        approval = await held(gateway)
        for _ in range(2):
            first = await vote(gateway, approval)
            assert first.json()["status"] == "pending"
            assert first.json()["quorum"] == {"need": 2, "have": 1}
        assert (await vote(gateway, approval, key="second")).json()["status"] == "approved"


@pytest.mark.covers("APPR-6")
async def test_lists_are_filtered_and_paged_and_full_of_what_the_caller_may_see(
    stack: Stack,
) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        mine = [await held(gateway) for _ in range(3)]
        theirs = []
        for _ in range(4):
            word = marker()
            await create(gateway, issue(word), key="second")
            theirs += await pending(gateway, word)
        await vote(gateway, mine[0], "deny")

        async def ids(key: str, query: str) -> tuple[list[str], bool]:
            async with gateway.http(key) as client:
                page = (await client.get("/v1/approvals" + query)).json()
            return [one["id"] for one in page["data"]], page["has_more"]

        newest = [one["id"] for one in reversed([*mine[1:], *theirs])]
        assert await ids("approver", "") == (newest, False)
        assert await ids("approver", "?limit=2") == (newest[:2], True)
        assert await ids("approver", f"?limit=4&after={newest[1]}") == (newest[2:6], False)
        assert await ids("approver", "?status=denied") == ([mine[0]["id"]], False)
        assert await ids("approver", "?server=other") == ([], False)
        assert await ids("approver", "?tool=create_issue&limit=1") == (newest[:1], True)
        assert await ids("caller", "?limit=1") == ([mine[2]["id"]], True)
        after = f"?limit=5&after={mine[2]['id']}"
        assert await ids("caller", after) == ([mine[1]["id"]], False)
        async with gateway.http("approver") as client:
            for query in ("?status=odd", "?limit=0", "?limit=101", "?limit=x", "?assigned_to=you"):
                assert (await client.get("/v1/approvals" + query)).status_code == 400
            odd = (await client.get("/v1/approvals?statos=pending")).json()["error"]
            assert (odd["code"], odd["param"]) == ("unknown_parameter", "statos")
        assert await ids("second", "?assigned_to=me&limit=50") == (
            [one["id"] for one in reversed(mine[1:])],
            False,
        )
        chain = theirs[1]["chain_id"]
        assert await ids("approver", f"?chain={chain}") == ([theirs[1]["id"]], False)
        assert await ids("approver", "?chain=resp_other") == ([], False)


def asks(**approval: Any) -> list[dict[str, Any]]:
    """Rules that ask about everything, on these terms."""
    return [{"id": "all", "match": {"server": "github"}, "effect": "ask", "approval": approval}]


async def act(
    gateway: Gateway,
    approval: dict[str, Any],
    action: str,
    *,
    key: str = "approver",
    headers: dict[str, str] | None = None,
    **body: Any,
) -> httpx2.Response:
    """Extend, escalate or cancel an approval."""
    async with gateway.http(key) as client:
        url = f"{approval['url']}/{action}"
        return await client.post(url, json=body, headers=headers or {})


def code_of(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.covers("APPR-6")
async def test_a_revision_tells_the_model_which_call_would_be_approved(
    gateway: Gateway, stack: Stack
) -> None:
    approval = await held(gateway)
    answer = await vote(
        gateway, approval, "revise", arguments={"title": "Tamer"}, reason="Too loud."
    )
    decided = answer.json()
    assert (decided["status"], decided["revision"]) == ("denied", '{"title":"Tamer"}')
    told = (
        "Denied as it is. Call create_issue again with exactly these arguments: "
        '{"title":"Tamer"}\nReason: Too loud.'
    )
    assert decided["reason"] == decided["history"][-1]["reason"] == told
    settled_ = await settled(gateway, approval["response_id"])
    assert "Tamer" in text_of(settled_)
    assert await executed(stack, approval["arguments"]) == []


@pytest.mark.covers("APPR-6")
async def test_the_same_key_and_body_get_the_same_answer_again(stack: Stack) -> None:
    with stack.gateway(rules=asks(quorum=2), **tenancy(stack)) as gateway:
        approval = await held(gateway)
        key = {"idempotency-key": "one"}
        first = await vote(gateway, approval, headers=key)
        assert first.json()["quorum"]["have"] == 1
        mine = await vote(gateway, approval, key="second", headers=key)  # another actor's own key
        assert mine.json()["status"] == "approved"
        again = await vote(gateway, approval, headers=key)
        assert (again.status_code, again.text) == (first.status_code, first.text)
        assert again.headers["etag"] == first.headers["etag"]
        other = await vote(gateway, approval, headers=key, reason="x")
        assert code_of(other) == (409, "idempotency_key_reused")
        refused = await vote(gateway, approval, key="caller", headers=key)
        assert code_of(refused) == (403, "not_an_approver")
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6")
async def test_a_refusal_is_remembered_with_its_key_as_well(gateway: Gateway) -> None:
    approval = await held(gateway)
    await vote(gateway, approval, "deny")
    key = {"idempotency-key": "late"}
    late = await vote(gateway, approval, key="second", headers=key)
    assert code_of(late) == (409, "already_decided")
    assert (await vote(gateway, approval, key="second", headers=key)).text == late.text


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize(
    ("wanted", "decision", "status"),
    [("deny", "deny", 422), ("deny", "approve", 200), ("always", "approve", 422)],
)
async def test_a_rule_may_want_a_reason(
    stack: Stack, wanted: str, decision: str, status: int
) -> None:
    with stack.gateway(rules=asks(reason_required=wanted), **tenancy(stack)) as gateway:
        approval = await held(gateway)
        answer = await vote(gateway, approval, decision, reason="  ")
        assert answer.status_code == status
        if status == 422:
            assert code_of(answer) == (422, "reason_required")
            native = {"type": "mcp_approval_response", "approve": decision == "approve"}
            native["approval_request_id"] = approval["approval_request_id"]
            assert await refused(gateway, [native], key="second") == (
                422,
                {
                    "message": "The rule wants a reason for this decision.",
                    "type": "invalid_request_error",
                    "param": "reason",
                    "code": "reason_required",
                },
            )
            assert (await vote(gateway, approval, decision, reason="Checked.")).status_code == 200
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6")
async def test_an_approver_gives_more_time_and_nobody_else_does(stack: Stack) -> None:
    rules = asks(timeout="10m", max_extensions=2)
    with stack.gateway(rules=rules, **tenancy(stack, ttl="1h")) as gateway:
        approval = await held(gateway)
        assert code_of(await act(gateway, approval, "extend", key="caller")) == (
            403,
            "not_an_approver",
        )
        assert code_of(await act(gateway, approval, "extend", seconds=3001)) == (
            422,
            "beyond_retention",
        )
        stale = await act(gateway, approval, "extend", headers={"if-match": '"v7"'})
        assert stale.status_code == 412
        for odd in ({"seconds": 0}, {"seconds": "10"}, {"minutes": 1}):
            assert (await act(gateway, approval, "extend", **odd)).status_code == 400
        longer = (await act(gateway, approval, "extend", headers={"if-match": '"v1"'})).json()
        assert longer["expires_at"] - approval["expires_at"] == pytest.approx(600)
        assert (longer["version"], longer["extensions"]) == (2, {"have": 1, "most": 2})
        assert longer["history"][-1]["actor"] == "subject:user:ann"
        assert (await act(gateway, approval, "extend", seconds=1.5)).status_code == 200
        assert code_of(await act(gateway, approval, "extend")) == (409, "too_many_extensions")
        await vote(gateway, approval, "deny")
        assert code_of(await act(gateway, approval, "extend")) == (409, "already_decided")
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6")
async def test_an_escalation_adds_approvers_who_may_decide_from_then_on(stack: Stack) -> None:
    rules = asks(
        approvers=["subject:user:ann"], escalate=[{"after": "10m", "to": ["subject:user:bob"]}]
    )
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        approval = await held(gateway)
        assert approval["escalation"]["next_at"] == pytest.approx(approval["created_at"] + 600)
        early = await vote(gateway, approval, key="second")
        assert code_of(early) == (403, "not_an_approver")
        raised = (await act(gateway, approval, "escalate")).json()
        assert raised["approvers"] == ["subject:user:ann", "subject:user:bob"]
        assert raised["escalation"] == {"level": 1, "levels": 1, "next_at": None}
        assert code_of(await act(gateway, approval, "escalate")) == (409, "no_escalation_left")
        assert (await vote(gateway, approval, "deny", key="second")).status_code == 200
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6")
async def test_who_asks_or_an_admin_withdraws_the_request_and_the_model_is_told_so(
    gateway: Gateway, stack: Stack
) -> None:
    for key, text in (("caller", "requester"), ("admin", "administrator")):
        approval = await held(gateway)
        stranger = await act(gateway, approval, "cancel", key="second")
        assert code_of(stranger) == (403, "not_the_requester")
        canceled = (await act(gateway, approval, "cancel", key=key)).json()
        assert canceled["status"] == "canceled"
        assert text in canceled["reason"]
        told = text_of(await settled(gateway, approval["response_id"]))
        assert f"The {text} withdrew the request. Nobody refused it." in told
        assert await executed(stack, approval["arguments"]) == []
        assert code_of(await act(gateway, approval, "cancel", key=key)) == (409, "already_decided")


@pytest.mark.covers("APPR-6")
async def test_many_decisions_in_one_request_each_have_their_result(
    gateway: Gateway, stack: Stack
) -> None:
    one, two = await held(gateway), await held(gateway)
    stale = {"decision": "deny", "fingerprint": "sha256:" + "0" * 64}
    wanted = [
        {"id": one["id"], "decision": "deny", "fingerprint": one["fingerprint"], "reason": "No."},
        {"id": two["id"], **stale},
        {"id": two["id"], "decision": "approve", "fingerprint": two["fingerprint"]},
        {"id": "apr_unknown", **stale},
    ]
    async with gateway.http("approver") as client:
        answer = await client.post("/v1/approvals/decisions", json={"decisions": wanted})
        first, *others = answer.json()["data"]
        assert first == {"id": one["id"], "status": "denied"}
        assert [(other["id"], other["error"]["code"]) for other in others] == [
            (two["id"], "fingerprint_mismatch"),
            (two["id"], "single_decision_required"),  # nobody vouches that it destroys nothing
            ("apr_unknown", "approval_not_found"),
        ]
        assert (await client.get(two["url"])).json()["status"] == "pending"
        for odd in ([], wanted * 13, [{"id": one["id"]}], [{**wanted[0], "arguments": {}}]):
            refused_ = await client.post("/v1/approvals/decisions", json={"decisions": odd})
            assert code_of(refused_) == (400, "invalid_value")
    async with gateway.http("caller") as client:
        answer = await client.post("/v1/approvals/decisions", json={"decisions": wanted[2:3]})
        assert answer.json()["data"][0]["error"]["code"] == "not_an_approver"
    await vote(gateway, two, "deny")
    assert await executed(stack, one["arguments"]) == []


@pytest.mark.covers("APPR-6")
async def test_harmless_calls_are_approved_together_and_those_of_a_quorum_are_not(
    stack: Stack,
) -> None:
    sections = tenancy(stack)
    tenant = sections["tenants"][0]["id"]

    def asked_for(**changes: Any) -> Approval:
        return make.approval(**{"tenant": tenant, "batch_id": marker(), **changes})

    harmless = Annotations(read_only=True, verified=True)
    asked = [
        asked_for(annotations=harmless),
        asked_for(annotations=harmless, quorum=2),
        asked_for(annotations=Annotations(read_only=True)),
        asked_for(annotations=Annotations(destructive=True, verified=True)),
    ]
    async with open_clients(stack.redis_url) as clients:
        store = RedisApprovalStore(clients.commands, KeyRing([("k1", b"k" * 32)]))
        for one in asked:  # each waits for another, so that no turn goes on
            await make.opened(store, one, asked_for(batch_id=one.batch_id))
    wanted = [
        {"id": one.id, "decision": "approve", "fingerprint": one.fingerprint} for one in asked
    ]
    with stack.gateway(**sections) as gateway:
        async with gateway.http("approver") as client:
            answer = await client.post("/v1/approvals/decisions", json={"decisions": wanted})
    data = answer.json()["data"]
    assert data[0] == {"id": asked[0].id, "status": "approved"}
    assert {one["error"]["code"] for one in data[1:]} == {"single_decision_required"}


# Who may decide, looked at when it is decided


@pytest.mark.covers("APPR-6", "AUTH-1")
async def test_who_has_left_the_group_meanwhile_may_not_decide(stack: Stack) -> None:
    sections = tenancy(stack)
    keys = {key["id"]: key for key in sections["api_keys"]}
    keys["approver"]["groups"] = ["finance"]
    rules = asks(approvers=["group:finance"])
    with stack.gateway(rules=rules, **sections) as gateway:
        approval = await held(gateway)
        assert approval["approvers"] == ["group:finance"]
    keys["approver"]["groups"], keys["second"]["groups"] = [], ["finance"]
    with stack.gateway(rules=rules, **sections) as gateway:
        assert code_of(await vote(gateway, approval)) == (403, "not_an_approver")
        assert (await vote(gateway, approval, "deny", key="second")).status_code == 200
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6")
async def test_who_is_named_by_new_rules_does_not_decide_what_was_asked_before(
    stack: Stack,
) -> None:
    sections = tenancy(stack)
    with stack.gateway(rules=asks(approvers=["subject:user:ann"]), **sections) as gateway:
        approval = await held(gateway)
    with stack.gateway(rules=asks(approvers=["subject:user:bob"]), **sections) as gateway:
        assert code_of(await vote(gateway, approval, key="second")) == (403, "not_an_approver")
        assert (await vote(gateway, approval, "deny")).status_code == 200
        await settled(gateway, approval["response_id"])


@pytest.mark.covers("APPR-6", "APPR-7")
async def test_an_approval_that_holds_no_more_when_it_is_sent_is_superseded_on_record(
    stack: Stack,
) -> None:
    sections = tenancy(stack)
    with stack.gateway(rules=asks(), **sections) as gateway:
        approval = await held(gateway)
    denied = [{"id": "none", "match": {"server": "github"}, "effect": "deny"}]
    with stack.gateway(rules=denied, **sections) as gateway:
        assert (await vote(gateway, approval)).json()["status"] == "approved"
        await settled(gateway, approval["response_id"])
        async with gateway.http("approver") as client:
            found = (await client.get(approval["url"])).json()
            listed = await client.get("/v1/approvals?status=superseded")
            assert approval["id"] in listed.text
            listed = await client.get("/v1/approvals?status=approved")
            assert approval["id"] not in listed.text
    assert (found["status"], found["decided_by"]) == ("superseded", "policy:revalidation")
    assert found["reason"] == "The tool or its rules changed before a decision."
    events = [(line["event"], line["status"]) for line in found["history"]]
    assert events == [
        ("requested", "pending"),
        ("resolved", "approved"),
        ("resolved", "superseded"),
    ]
    assert await executed(stack, approval["arguments"]) == []


# What a decision grants


@pytest.mark.covers("APPR-6", "APPR-8")
async def test_the_revised_call_goes_through_once_and_no_second_time(stack: Stack) -> None:
    with stack.gateway(rules=asks(), **tenancy(stack)) as gateway:
        approval = await held(gateway)
        word = marker()
        answer = await vote(gateway, approval, "revise", arguments={"title": word})
        assert answer.status_code == 200, answer.text
        done = await settled(gateway, approval["response_id"])  # the model makes the call itself
        assert len(await executed(stack, word)) == 1
        again = await create(gateway, issue(word), previous_response_id=done["id"])
        assert again.json()["status"] == "in_progress"
        assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-6", "APPR-8")
async def test_where_nobody_may_grant_the_revised_call_is_asked_about_anew(stack: Stack) -> None:
    rules = asks(grants={"max_scope": "none"})
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        approval = await held(gateway)
        word = marker()
        answer = await vote(gateway, approval, "revise", arguments={"title": word})
        assert answer.json()["status"] == "denied"
        (again,) = await pending(gateway, word)
        assert again["response_id"] == approval["response_id"]
        wide = await vote(gateway, again, grant={"scope": "exact_args"})
        assert code_of(wide) == (422, "grant_not_allowed")
        assert (await vote(gateway, again, "deny")).status_code == 200
        assert await executed(stack, word) == []


@pytest.mark.covers("APPR-6", "APPR-8")
async def test_an_approval_may_grant_later_calls_and_a_repeat_grants_no_more(stack: Stack) -> None:
    with stack.gateway(rules=asks(), **tenancy(stack)) as gateway:
        approval = await held(gateway)
        wanted = {"scope": "exact_args", "uses": 1, "ttl": 60}
        for _ in range(2):
            answer = await vote(gateway, approval, grant=wanted)
            assert answer.json()["status"] == "approved", answer.text
        done = await settled(gateway, approval["response_id"])
        async with gateway.http("approver") as client:
            (grant,) = (await client.get("/v1/grants")).json()["data"]
        assert grant["created_by"] == {"subject": "user:ann", "approval": approval["id"]}
        assert (grant["scope"], grant["uses"]["most"]) == ("exact_args", 1)
        title = json.loads(approval["arguments"])["title"]
        ran = await create(gateway, issue(title), previous_response_id=done["id"])
        assert ran.json()["status"] == "completed"
        assert len(await executed(stack, title)) == 2


@pytest.mark.covers("APPR-6", "LIMIT-3")
@pytest.mark.parametrize("number", ["\u00b2", "\u0663", "9" * 5000, "-1", "1e2", ""])
async def test_a_number_that_is_none_is_refused_and_named(gateway: Gateway, number: str) -> None:
    """Python reads more digits than people write, and refuses to read thousands of them."""
    approval = await held(gateway)
    async with gateway.http("admin") as client:
        for path in ("approvals", "grants", "tools/pins", "audit"):
            answer = await client.get(f"/v1/{path}", params={"limit": number})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
        answer = await client.post(
            approval["url"] + "/decision",
            json={"decision": "approve", "fingerprint": approval["fingerprint"]},
            headers=[(b"if-match", f'"v{number}"'.encode())],
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "If-Match")
    answer = await vote(gateway, approval, grant={"scope": "exact_args", "uses": 10**400})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "grant.uses")
    await vote(gateway, approval, "deny")
