"""The approvals API: who sees, who decides, and what each refusal says (APPR-6, AUTH-2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.approvals import create, executed, issue, marker, pending, tenancy, vote
from tests.support.stack import Gateway, Stack


async def held(gateway: Gateway, **body: Any) -> dict[str, Any]:
    """Hold a turn and return its approval."""
    word = marker()
    await create(gateway, issue(word), **body)
    return (await pending(gateway, word))[0]


@pytest.mark.covers("APPR-6")
async def test_an_approval_says_what_is_asked_why_by_whom_and_until_when(gateway: Gateway) -> None:
    approval = await held(gateway)
    assert approval["policy"] == {"rule": "writes", "explain": "It changes what others see."}
    assert approval["requester"] == {"subject": "svc:caller", "end_user": None}
    assert approval["allowed_decisions"] == ["approve", "deny"]
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
        ({"decision": "revise"}, {}, 422, "unsupported_decision", "decision"),
        ({"arguments": {}}, {}, 422, "unsupported_decision", "decision"),
        ({"grant": {"scope": "tool"}}, {}, 422, "unsupported_grant", "grant"),
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
            for query in ("?status=odd", "?limit=0", "?limit=101", "?limit=x"):
                assert (await client.get("/v1/approvals" + query)).status_code == 400
