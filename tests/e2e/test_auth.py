"""Who may come in, and through which door (AUTH-1, AUTH-2, API-2)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.approvals import create, issue, marker, pending, vote
from tests.support.passes import passing
from tests.support.stack import Gateway

DOORS = [
    ("POST", "/v1/responses"),
    ("POST", "/openai/v1/responses"),
    ("POST", "/openai/responses"),
    ("GET", "/v1/responses/resp_x"),
    ("DELETE", "/v1/responses/resp_x"),
    ("POST", "/v1/responses/resp_x/cancel"),
    ("GET", "/v1/responses/resp_x/input_items"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/responses/compact"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/gpt-4.1"),
    ("POST", "/v1/conversations"),
    ("GET", "/v1/conversations/conv_x"),
    ("GET", "/v1/conversations/conv_x/items"),
    ("GET", "/v1/approvals"),
    ("GET", "/v1/approvals/apr_x"),
    ("GET", "/v1/responses/resp_x/approvals"),
    ("POST", "/v1/approvals/apr_x/decision"),
]
FOR_CALLERS = [door for door in DOORS if "approvals" not in door[1]]


@pytest.mark.covers("AUTH-1", "API-5")
@pytest.mark.parametrize(("method", "path"), DOORS)
async def test_every_door_wants_a_valid_key(gateway: Gateway, method: str, path: str) -> None:
    key = gateway.keys["caller"]
    bad: list[dict[str, str]] = [
        {},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {key}"},
        {"authorization": key},
        {"authorization": f"Bearer {key[:-1]}"},
        {"authorization": f"Bearer {key}x"},
        {"authorization": f"Bearer {key.swapcase()}"},
        {"authorization": "Bearer " + key.replace("gw_caller", "gw_admin")},
        {"api-key": "wrong"},
        {"x-api-key": key},
        {"authorization": "Bearer wrong", "api-key": key},
    ]
    async with gateway.http(None) as client:
        for headers in bad:
            answer = await client.request(method, path, headers=headers)
            assert answer.status_code == 401, (headers, answer.text)
            error = answer.json()["error"]
            assert error["code"] == "invalid_api_key"
            assert key not in answer.text
        assert (await client.request(method, path + f"?api-key={key}")).status_code == 401


@pytest.mark.covers("AUTH-1", "API-2")
@pytest.mark.parametrize("headers", [("authorization", "bearer {}"), ("api-key", "{}")], ids=str)
async def test_the_key_may_come_as_openai_or_azure_clients_send_it(
    gateway: Gateway, headers: tuple[str, str]
) -> None:
    name, value = headers
    async with gateway.http(None) as client:
        answer = await client.post(
            "/openai/v1/responses?api-version=preview",
            json={"model": "gpt-4.1", "input": "/echo hi"},
            headers={name: value.format(gateway.keys["caller"])},
        )
    assert answer.status_code == 200, answer.text


@pytest.mark.covers("AUTH-1")
@pytest.mark.parametrize(("method", "path"), FOR_CALLERS)
async def test_an_approver_may_not_call_models(gateway: Gateway, method: str, path: str) -> None:
    async with gateway.http("approver") as client:
        answer = await client.request(method, path, json={"model": "m", "input": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_role")


@pytest.mark.covers("AUTH-1")
async def test_an_admin_has_every_role(gateway: Gateway) -> None:
    word = marker()
    await create(gateway, issue(word))
    (approval,) = await pending(gateway, word, key="admin")
    assert (await vote(gateway, approval, "deny", key="admin")).status_code == 200
    assert (await create(gateway, "/echo hi", key="admin")).status_code == 200


@pytest.mark.covers("AUTH-1", "APPR-10")
async def test_a_pass_of_the_console_opens_what_callers_may_use_and_no_more(
    gateway: Gateway,
) -> None:
    word = marker()
    await create(gateway, issue(word))
    (approval,) = await pending(gateway, word)
    own = {"authorization": f"Bearer {passing(gateway, key='admin')}"}
    path = f"/v1/approvals/{approval['id']}"
    vote_ = {"decision": "approve", "fingerprint": approval["fingerprint"]}
    async with gateway.http(None) as client:
        client.headers.update(own)
        assert (await client.get("/v1/models")).status_code == 200
        for answer in (
            await client.post(f"{path}/decision", json=vote_),
            await client.get(path),
            await client.get("/v1/audit"),
            await client.get("/v1/webhook_endpoints"),
            await client.get("/v1/grants"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_role")
    await vote(gateway, approval, "deny")


@pytest.mark.covers("AUTH-2", "CHAIN-1")
@pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
async def test_tenants_do_not_see_each_others_responses(gateway: Gateway, store: bool) -> None:
    mine = (await create(gateway, "/echo mine", store=store)).json()["id"]
    made_up = "resp_" + "0" * 48
    doors: list[tuple[str, str, Any]] = [
        ("GET", "/v1/responses/{}", None),
        ("DELETE", "/v1/responses/{}", None),
        ("POST", "/v1/responses/{}/cancel", None),
        ("GET", "/v1/responses/{}/input_items", None),
        ("POST", "/v1/responses", "previous_response_id"),
        ("POST", "/v1/responses/input_tokens", "previous_response_id"),
        ("POST", "/v1/responses/compact", "previous_response_id"),
    ]
    async with gateway.http("other") as client:
        for method, path, field in doors:
            answers = []
            for id_ in (mine, made_up):
                body = {"model": "gpt-4.1", "input": "x", field: id_} if field else None
                answers.append(await client.request(method, path.format(id_), json=body))
            assert [one.status_code for one in answers] == [404, 404], path
            assert answers[0].text.replace(mine, made_up) == answers[1].text
    async with gateway.http() as client:
        assert (await client.get(f"/v1/responses/{mine}")).status_code == 200


@pytest.mark.covers("AUTH-2")
async def test_tenants_do_not_share_conversations(gateway: Gateway) -> None:
    async with gateway.http() as client:
        mine = (await client.post("/v1/conversations", json={})).json()["id"]
    async with gateway.http("other") as client:
        assert (await client.get(f"/v1/conversations/{mine}")).status_code == 404
        assert (await client.delete(f"/v1/conversations/{mine}")).status_code == 404
    answer = await create(gateway, "hi", key="other", conversation=mine)
    assert answer.status_code == 404
