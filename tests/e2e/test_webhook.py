"""Webhooks tell, thinly and signed; they never decide (APPR-9)."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import openai
import pytest
import redis
import standardwebhooks

from tests.support.approvals import create, executed, issue, marker, pending, settled, tenancy, vote
from tests.support.provider import Call, Provider, provider
from tests.support.stack import CANARY, UPSTREAM_KEY, Gateway, Stack

SECRET = "whsec_" + base64.b64encode(b"w" * 32).decode()
ENDPOINTS = "/v1/webhook_endpoints"
LOOPBACK = {"allow_networks": ["127.0.0.0/8"]}


async def taking(call: Call) -> None:
    await call.document(b"{}")


async def failing(call: Call) -> None:
    await call.document(b"no", status=500)


async def gone(call: Call) -> None:
    await call.document(b"gone", status=410)


async def told(receiver: Provider, count: int) -> list[Call]:
    """Wait until the receiver was told so often."""
    with anyio.fail_after(30):
        while len(receiver.calls) < count:
            await anyio.sleep(0.01)
    return receiver.calls


def sections(stack: Stack, receiver: Provider, **changes: Any) -> dict[str, Any]:
    hook = {
        "url": receiver.url + "/hook",
        "secret": "env:TEST_HOOK",
        "events": ["approval.*"],
        "allow_private": True,
    }
    return {"webhooks": [{**hook, **changes}], **tenancy(stack)}


def opened(stack: Stack, **delivery: Any) -> dict[str, Any]:
    """Sections of a gateway whose tenant may make endpoints on loopback."""
    return {"webhook_delivery": {**LOOPBACK, **delivery}, **tenancy(stack)}


@asynccontextmanager
async def admin(gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    async with gateway.http("admin") as client:
        yield client


async def made(gateway: Gateway, url: str, **body: Any) -> dict[str, Any]:
    """Make an endpoint over the API."""
    async with admin(gateway) as client:
        answer = await client.post(ENDPOINTS, json={"url": url, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def deliveries(gateway: Gateway, endpoint: dict[str, Any]) -> list[dict[str, Any]]:
    async with admin(gateway) as client:
        answer = await client.get(f"{ENDPOINTS}/{endpoint['id']}/deliveries")
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def delivered(gateway: Gateway, endpoint: dict[str, Any], status: str) -> dict[str, Any]:
    """Wait until the one delivery of an endpoint has a status."""
    with anyio.fail_after(30):
        while True:
            found = await deliveries(gateway, endpoint)
            if [one["status"] for one in found] == [status]:
                return found[0]
            await anyio.sleep(0.02)


async def ask(gateway: Gateway, word: str | None = None) -> str:
    """Ask for a tool that an approver must allow; returns the response's id."""
    answer = await create(gateway, issue(word or marker()))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HOOK", SECRET)


@pytest.mark.covers("APPR-9", "MCP-3")
async def test_asked_and_resolved_are_told_signed_and_thin(stack: Stack) -> None:
    word = marker()

    async def approving(call: Call) -> None:
        await call.document(b'{"decision": "approve", "approve": true}')

    async with provider(approving) as receiver:
        with stack.gateway(**sections(stack, receiver)) as gateway:
            held = await ask(gateway, word)
            await told(receiver, 1)
            (approval,) = await pending(gateway, word)
            assert approval["status"] == "pending"  # the receiver's answer decides nothing
            assert await executed(stack, word) == []
            await vote(gateway, approval)
            await told(receiver, 2)
            await settled(gateway, held)
    events = []
    for call in receiver.calls:
        verified = standardwebhooks.Webhook(SECRET).verify(call.body.decode(), call.headers)
        events.append(verified)
        for leak in (word, CANARY, UPSTREAM_KEY, SECRET, "arguments"):
            assert leak not in call.body.decode()
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(SECRET).verify(call.body.decode() + " ", call.headers)
    assert [event["type"] for event in events] == ["approval.requested", "approval.resolved"]
    data = events[1]["data"]
    assert (data["id"], data["status"], data["server"]) == (approval["id"], "approved", "github")
    assert len({call.headers["webhook-id"] for call in receiver.calls}) == 2


@pytest.mark.covers("APPR-9")
async def test_both_common_libraries_verify_a_message(stack: Stack) -> None:
    async with provider(taking) as receiver:
        with stack.gateway(**opened(stack)) as gateway:
            endpoint = await made(gateway, receiver.url)
            async with admin(gateway) as client:
                answer = await client.post(f"{ENDPOINTS}/{endpoint['id']}/test")
            shown = answer.json()
            sdk = gateway.client("admin")
    assert (shown["delivered"], shown["status_code"], shown["error"]) == (True, 200, None)
    (call,) = receiver.calls
    assert call.headers["webhook-id"] == shown["event_id"]
    assert call.json["type"] == "webhook.test"
    standardwebhooks.Webhook(endpoint["secret"]).verify(call.body.decode(), call.headers)
    sdk.webhooks.verify_signature(call.body, call.headers, secret=endpoint["secret"])
    with pytest.raises(openai.InvalidWebhookSignatureError):
        sdk.webhooks.verify_signature(call.body + b" ", call.headers, secret=endpoint["secret"])


@pytest.mark.covers("APPR-9")
async def test_an_old_secret_signs_beside_the_new_one_while_it_is_kept(stack: Stack) -> None:
    async with provider(taking) as receiver:
        with stack.gateway(**opened(stack)) as gateway:
            first = await made(gateway, receiver.url)
            path = f"{ENDPOINTS}/{first['id']}"
            async with admin(gateway) as client:
                keep = {"keep_old_secret_active_for_24_hours": True}
                second = (await client.post(path + "/rotate_secret", json=keep)).json()
                await client.post(path + "/test")
                third = (await client.post(path + "/rotate_secret")).json()
                await client.post(path + "/test")
    assert 86000 < second["old_secret_active_until"] - time.time() < 86500
    assert third["old_secret_active_until"] is None
    secrets = [one["secret"] for one in (first, second, third)]
    assert len(set(secrets)) == 3
    for call, valid in zip(receiver.calls, (secrets[:2], secrets[2:]), strict=True):
        assert len(call.headers["webhook-signature"].split(" ")) == len(valid)
        for secret in secrets:
            webhook = standardwebhooks.Webhook(secret)
            if secret in valid:
                webhook.verify(call.body.decode(), call.headers)
            else:
                with pytest.raises(standardwebhooks.WebhookVerificationError):
                    webhook.verify(call.body.decode(), call.headers)


@pytest.mark.covers("APPR-9")
async def test_what_the_receiver_did_not_take_is_told_again_later(stack: Stack) -> None:
    answers = [failing, failing]

    async def at_last(call: Call) -> None:
        await (answers.pop() if answers else taking)(call)

    async with provider(at_last) as receiver:
        with stack.gateway(**opened(stack, retries=["1ms", "1ms", "1ms"])) as gateway:
            endpoint = await made(gateway, receiver.url)
            await ask(gateway)
            done = await delivered(gateway, endpoint, "delivered")
    assert done["attempts"] == 3
    assert done["next_attempt_at"] is None
    assert {call.headers["webhook-id"] for call in receiver.calls} == {done["event_id"]}
    assert len({call.body for call in receiver.calls}) == 1


@pytest.mark.covers("APPR-9")
async def test_a_failed_delivery_is_shown_with_its_cause_and_can_be_sent_again(
    stack: Stack,
) -> None:
    working = False

    async def mended(call: Call) -> None:
        await (taking if working else failing)(call)

    async with provider(mended) as receiver:
        with stack.gateway(**opened(stack, retries=["1ms"])) as gateway:
            endpoint = await made(gateway, receiver.url)
            await ask(gateway)
            failed = await delivered(gateway, endpoint, "failed")
            assert (failed["attempts"], failed["last_error"]) == (2, "http_500")
            assert (failed["last_status_code"], failed["type"]) == (500, "approval.requested")
            working = True
            path = f"{ENDPOINTS}/{endpoint['id']}/deliveries/{failed['id']}/redeliver"
            async with admin(gateway) as client:
                again = (await client.post(path)).json()
                lost = await client.post(path.replace("whd_", "whd_0"))
            assert again["status"] == "pending"
            assert lost.json()["error"]["code"] == "delivery_not_found"
            done = await delivered(gateway, endpoint, "delivered")
    assert done["attempts"] == 3
    assert {call.headers["webhook-id"] for call in receiver.calls} == {done["event_id"]}


@pytest.mark.covers("APPR-9")
async def test_a_redirect_is_not_followed(stack: Stack) -> None:
    async with provider(taking) as other:

        async def redirecting(call: Call) -> None:
            await call.document(b"{}", status=307, headers={"location": other.url})

        async with provider(redirecting) as receiver:
            with stack.gateway(**opened(stack, retries=[])) as gateway:
                endpoint = await made(gateway, receiver.url)
                await ask(gateway)
                failed = await delivered(gateway, endpoint, "failed")
    assert failed["last_error"] == "http_307"
    assert (len(receiver.calls), other.calls) == (1, [])


@pytest.mark.covers("APPR-9")
async def test_410_disables_the_endpoint_until_it_is_enabled_again(stack: Stack) -> None:
    async with provider(gone) as receiver:
        with stack.gateway(**opened(stack)) as gateway:
            endpoint = await made(gateway, receiver.url)
            path = f"{ENDPOINTS}/{endpoint['id']}"
            await ask(gateway)
            failed = await delivered(gateway, endpoint, "failed")
            async with admin(gateway) as client:
                shown = (await client.get(path)).json()
                refused = await client.post(f"{path}/deliveries/{failed['id']}/redeliver")
                metrics = (await client.get("/metrics")).text
                enabled = (await client.patch(path, json={"enabled": True})).json()
                again = await client.post(f"{path}/deliveries/{failed['id']}/redeliver")
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "gone")
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "endpoint_disabled"
    assert 'gateway_webhook_endpoints_disabled_total{reason="gone"} 1.0' in metrics
    assert (enabled["enabled"], enabled["disabled_reason"]) == (True, None)
    assert again.status_code == 200


@pytest.mark.covers("APPR-9", "APPR-4")
async def test_a_receiver_that_was_down_loses_nothing_when_the_gateway_is_replaced(
    stack: Stack,
) -> None:
    down = True

    async def sometimes(call: Call) -> None:
        await (failing if down else taking)(call)

    values = opened(stack, retries=["250ms"] * 60)
    count = 20
    async with provider(sometimes) as receiver:
        with stack.gateway(**values) as gateway:
            endpoint = await made(gateway, receiver.url)
            for _ in range(count):
                await ask(gateway)
            await told(receiver, count)
        before = {call.headers["webhook-id"] for call in receiver.calls}
        receiver.calls.clear()
        down = False
        with stack.gateway(**values) as gateway, anyio.fail_after(30):
            while {one["status"] for one in await deliveries(gateway, endpoint)} != {"delivered"}:
                await anyio.sleep(0.05)
            ids = [one["event_id"] for one in await deliveries(gateway, endpoint)]
    taken = [call.headers["webhook-id"] for call in receiver.calls]
    assert len(ids) == len(set(ids)) == count
    assert set(taken) == set(ids)
    assert before <= set(ids)


@pytest.mark.covers("APPR-9")
async def test_a_slow_receiver_holds_up_neither_another_nor_a_turn(stack: Stack) -> None:
    async def silent(call: Call) -> None:
        await asyncio.Event().wait()

    async with provider(silent) as slow, provider(taking) as quick:
        with stack.gateway(**opened(stack)) as gateway:
            await made(gateway, slow.url)
            await made(gateway, quick.url)
            words = [marker() for _ in range(12)]
            held = [await ask(gateway, word) for word in words]
            await told(quick, 12)
            (approval,) = await pending(gateway, words[-1])
            await vote(gateway, approval)
            assert (await settled(gateway, held[-1]))["status"] == "completed"
            await told(quick, 13)
            assert 1 <= len(slow.calls) <= 8  # as many as may wait for one receiver


@pytest.mark.covers("APPR-9")
async def test_slack_and_teams_get_their_own_forms_signed_as_well(stack: Stack) -> None:
    word = marker()
    async with provider(taking) as receiver:
        values = opened(stack)
        values["server"] = {
            "lame_duck": 0,
            "grace_period": 1,
            "public_url": "https://gw.example.com",
        }
        with stack.gateway(**values) as gateway:
            ends = [
                await made(gateway, f"{receiver.url}/{form}", format=form)
                for form in ("slack", "teams")
            ]
            await ask(gateway, word)
            await told(receiver, 2)
            (approval,) = await pending(gateway, word)
    bodies = {call.path: call for call in receiver.calls}
    link = f"https://gw.example.com/console/approvals/{approval['id']}"
    assert bodies["/slack"].json["blocks"][-1]["elements"][0]["url"] == link
    card = bodies["/teams"].json["attachments"][0]["content"]
    assert card["actions"][0]["url"] == link
    for end in ends:
        call = bodies["/" + end["format"]]
        standardwebhooks.Webhook(end["secret"]).verify(call.body.decode(), call.headers)
        assert word not in call.body.decode()
        assert "create_issue" in call.body.decode()


# The API of endpoints


@pytest.mark.covers("APPR-9")
async def test_an_endpoint_lives_from_post_to_delete(stack: Stack) -> None:
    with stack.gateway(**opened(stack)) as gateway:
        endpoint = await made(
            gateway, "https://hooks.example.com/x", events=["approval.*"], description="Ours"
        )
        secret = endpoint.pop("secret")
        assert endpoint.pop("old_secret_active_until") is None
        assert base64.b64decode(secret.removeprefix("whsec_"))
        path = f"{ENDPOINTS}/{endpoint['id']}"
        async with admin(gateway) as client:
            assert (await client.get(path)).json() == endpoint
            listed = (await client.get(ENDPOINTS)).json()
            assert listed["data"] == [endpoint]
            assert secret not in json.dumps(listed)
            change = {"events": ["tool.drifted"], "enabled": False, "payload": "thin"}
            changed = (await client.patch(path, json=change)).json()
            assert changed["events"] == ["tool.drifted"]
            assert (changed["enabled"], changed["disabled_reason"]) == (False, "user")
            assert changed["description"] == "Ours"
            gone = (await client.delete(path)).json()
            assert gone == {
                "id": endpoint["id"],
                "object": "webhook_endpoint.deleted",
                "deleted": True,
            }
            for lost in (
                await client.get(path),
                await client.delete(path),
                await client.patch(path, json={}),
                await client.post(path + "/test"),
                await client.post(path + "/rotate_secret"),
                await client.get(path + "/deliveries"),
                await client.post(path + "/deliveries/whd_1/redeliver"),
            ):
                assert lost.status_code == 404
                assert lost.json()["error"]["code"] == "webhook_endpoint_not_found"


@pytest.mark.covers("APPR-9", "API-5")
@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({}, "invalid_value", "url", "missing"),
        ({"url": 1}, "invalid_value", "url", "str"),
        ({"url": "ftp://x.example.com"}, "invalid_value", "url", "https://"),
        ({"url": "https://"}, "invalid_value", "url", "host"),
        ({"url": "https://a:b@x.example.com"}, "invalid_value", "url", "user"),
        ({"url": "https://x.example.com/#f"}, "invalid_value", "url", "fragment"),
        ({"url": "https://x.example.com:port"}, "invalid_value", "url", "valid"),
        ({"url": "https://x.example.com/" + "x" * 2048}, "invalid_value", "url", "2048"),
        ({"url": "https://x.example.com\\@evil"}, "invalid_value", "url", "backslash"),
        ({"url": "http://x.invalid"}, "url_not_allowed", "url", "plain http"),
        ({"url": "http://1.1.1.1"}, "url_not_allowed", "url", "plain http"),
        ({"url": "https://127.0.0.1"}, "url_not_allowed", "url", "loopback"),
        ({"url": "https://localhost"}, "url_not_allowed", "url", "loopback"),
        ({"url": "http://localhost"}, "url_not_allowed", "url", "loopback"),
        ({"url": "https://[::ffff:10.0.0.1]"}, "url_not_allowed", "url", "private"),
        ({"url": "https://10.0.0.1"}, "url_not_allowed", "url", "private"),
        ({"url": "https://169.254.169.254/x"}, "url_not_allowed", "url", "metadata"),
        ({"url": "https://[fe80::1]"}, "url_not_allowed", "url", "link-local"),
        ({"url": "https://224.0.0.1"}, "url_not_allowed", "url", "multicast"),
        ({"url": "https://100.64.0.1"}, "url_not_allowed", "url", "CGNAT"),
        ({"events": []}, "invalid_value", "events", "length"),
        ({"events": ["approval.lost"]}, "invalid_value", "events", "matches no event"),
        ({"format": "irc"}, "invalid_value", "format", "irc"),
        ({"payload": "full"}, "invalid_value", "payload", "full"),
        ({"description": "x" * 501}, "invalid_value", "description", "500"),
        ({"secret": "mine"}, "invalid_value", "secret", "unknown field"),
    ],
)
async def test_what_cannot_be_an_endpoint_is_refused_by_field_and_reason(
    refusing: Gateway, body: dict[str, Any], code: str, param: str, says: str
) -> None:
    url = {} if "url" in body or not body else {"url": "https://x.example.com"}
    async with admin(refusing) as client:
        answer = await client.post(ENDPOINTS, json={**url, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param), error
    assert says in error["message"]


@pytest.fixture(scope="module")
def refusing(stack: Stack) -> Any:
    with stack.gateway(**tenancy(stack)) as gateway:
        yield gateway


@pytest.mark.covers("APPR-9")
async def test_an_endpoint_cannot_be_moved_to_where_it_could_not_be_made(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        endpoint = await made(gateway, "https://hooks.example.com/x")
        path = f"{ENDPOINTS}/{endpoint['id']}"
        async with admin(gateway) as client:
            moved = await client.patch(path, json={"url": "https://10.0.0.1/x"})
            shown = (await client.get(path)).json()
    assert (moved.status_code, moved.json()["error"]["code"]) == (400, "url_not_allowed")
    assert shown["url"] == "https://hooks.example.com/x"


@pytest.mark.covers("APPR-9", "AUTH-2")
async def test_only_the_tenants_admins_see_its_endpoints(stack: Stack) -> None:
    values = opened(stack)
    rival = values["tenants"][1]["id"]
    values["api_keys"][-1] = stack.key("other", tenant=rival, roles=["admin"])
    async with provider(taking) as receiver, provider(taking) as foreign:
        with stack.gateway(**values) as gateway:
            endpoint = await made(gateway, receiver.url)
            for key in ("caller", "approver"):
                async with gateway.http(key) as client:
                    answer = await client.get(ENDPOINTS)
                assert answer.status_code == 403
                assert answer.json()["error"]["code"] == "missing_role"
            async with gateway.http("other") as client:
                assert (await client.get(ENDPOINTS)).json()["data"] == []
                lost = await client.get(f"{ENDPOINTS}/{endpoint['id']}")
                own = (await client.post(ENDPOINTS, json={"url": foreign.url})).json()
                crossed = f"{ENDPOINTS}/{own['id']}/deliveries"
            assert lost.status_code == 404
            await ask(gateway)
            done = await delivered(gateway, endpoint, "delivered")
            async with gateway.http("other") as client:
                taken = await client.post(f"{crossed}/{done['id']}/redeliver")
            assert taken.json()["error"]["code"] == "delivery_not_found"
    assert foreign.calls == []


@pytest.mark.covers("APPR-9", "AUTH-2")
async def test_a_configured_endpoint_is_shown_and_only_switched(stack: Stack) -> None:
    async with provider(taking) as receiver:
        values = sections(stack, receiver)
        tenant, rival = (one["id"] for one in values["tenants"])
        values["webhooks"][0]["tenants"] = [tenant]
        values["webhooks"].append(
            {
                "url": receiver.url + "/rival",
                "secret": "env:TEST_HOOK",
                "tenants": [rival],
                "allow_private": True,
            }
        )
        with stack.gateway(**values) as gateway:
            async with admin(gateway) as client:
                (shown,) = (await client.get(ENDPOINTS)).json()["data"]
                path = f"{ENDPOINTS}/{shown['id']}"
                assert shown["configured"] is True
                assert shown["url"] == receiver.url + "/…"  # its path may be a secret
                for refused in (
                    await client.patch(path, json={"events": ["*"]}),
                    await client.delete(path),
                    await client.post(path + "/rotate_secret"),
                ):
                    assert refused.status_code == 409
                    assert refused.json()["error"]["code"] == "configured_endpoint"
                off = (await client.patch(path, json={"enabled": False})).json()
                assert off["disabled_reason"] == "user"
                await ask(gateway)
                assert (await client.patch(path, json={"enabled": True})).json()["enabled"]
                tested = (await client.post(path + "/test")).json()
            await ask(gateway)
            await told(receiver, 2)
    assert tested["delivered"]
    assert {call.path for call in receiver.calls} == {"/hook"}
    # What happened while it was off may be handed out when it is on again.
    kinds = {call.json["type"] for call in receiver.calls}
    assert kinds == {"webhook.test", "approval.requested"}


@pytest.mark.covers("APPR-9", "MCP-3", "STATE-4")
async def test_neither_secret_nor_url_of_an_endpoint_is_in_redis_or_logs(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    values = opened(stack, retries=[])
    async with provider(failing) as receiver:
        with stack.gateway(**values) as gateway:
            endpoint = await made(gateway, receiver.url + "/canary-path")
            await ask(gateway)
            await delivered(gateway, endpoint, "failed")
    client = redis.Redis.from_url(stack.redis_url)
    dump = b" ".join(
        client.dump(key) or b""
        for key in client.scan_iter(b"*" + values["tenants"][0]["id"].encode() + b"*")
    )
    client.close()
    captured = capsys.readouterr()
    for canary in (endpoint["secret"], "canary-path"):
        assert canary.encode() not in dump
        assert canary not in captured.out + captured.err
    assert b"we_" in dump


@pytest.mark.covers("APPR-9", "APPR-11")
async def test_what_admins_do_and_what_is_refused_is_in_the_audit(stack: Stack) -> None:
    async with provider(gone) as receiver:
        with stack.gateway(**opened(stack)) as gateway:
            endpoint = await made(gateway, receiver.url + "/secret-path")
            path = f"{ENDPOINTS}/{endpoint['id']}"
            await ask(gateway)
            await delivered(gateway, endpoint, "failed")
            async with admin(gateway) as client:
                await client.patch(path, json={"enabled": True, "description": "Ours"})
                await client.post(path + "/rotate_secret")
                await client.patch(path, json={"url": "https://10.0.0.1/secret-path"})
                await client.delete(path)
                found: list[dict[str, Any]] = []
                with anyio.fail_after(30):
                    while len(found) < 7:
                        listed = await client.get("/v1/audit", params={"event": "webhook.*"})
                        found = listed.json()["data"][::-1]
                        await anyio.sleep(0.05)
    assert [(one["event"], one["actor"]) for one in found] == [
        ("webhook.made", "subject:user:root"),
        ("webhook.disabled", "gateway"),
        ("webhook.changed", "subject:user:root"),
        ("webhook.enabled", "subject:user:root"),
        ("webhook.rotated", "subject:user:root"),
        ("webhook.refused", "subject:user:root"),
        ("webhook.removed", "subject:user:root"),
    ]
    assert found[5]["detail"]["host"] == "10.0.0.1"
    assert found[5]["detail"]["reason"] == "leads to a private address"
    for leak in ("secret-path", endpoint["secret"]):
        assert leak not in json.dumps(found)


async def test_a_tenant_makes_a_bounded_number_of_endpoints(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        for number in range(32):
            await made(gateway, f"https://hooks.example.com/{number}")
        async with admin(gateway) as client:
            refused = await client.post(ENDPOINTS, json={"url": "https://hooks.example.com/x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "too_many_endpoints")
