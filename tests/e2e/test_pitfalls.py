"""What went wrong elsewhere and does not here, where no other test is the place for it."""

from __future__ import annotations

import base64
import time
from typing import Any

import anyio
import pytest

from tests.support.approvals import (
    create,
    executed,
    issue,
    marker,
    output_types,
    pending,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.provider import Call, asked_for, message, provider, saying
from tests.support.stack import RULES, Stack

STORES = pytest.mark.parametrize("store", [True, False], ids=["stored", "stateless"])
ALLOW = [{"id": "all", "match": {"server": "github"}, "effect": "allow"}]


def asks(**approval: Any) -> list[dict[str, Any]]:
    """Rules that ask about everything, on these terms."""
    return [{"id": "all", "match": {"server": "github"}, "effect": "ask", "approval": approval}]


@pytest.mark.covers("APPR-6", "OPS-2")
@pytest.mark.parametrize("skew", [-7200.0, 7200.0], ids=["behind", "ahead"])
async def test_the_clock_of_a_replica_neither_ends_nor_prolongs_an_approval(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    real = time.time
    long, short = marker(), marker()
    rules = [
        {
            "id": "short",
            "match": {"server": "github", "args": {"/title": {"eq": short}}},
            "effect": "ask",
            "approval": {"timeout": "1s"},
        },
        *asks(timeout="30m"),
    ]
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        held = (await create(gateway, issue(long))).json()
        (approval,) = await pending(gateway, long)
        monkeypatch.setattr(time, "time", lambda: real() + skew)
        assert (await vote(gateway, approval)).json()["status"] == "approved"
        assert (await settled(gateway, held["id"]))["status"] == "completed"
        held = (await create(gateway, issue(short))).json()
        (approval,) = await pending(gateway, short)
        assert abs(approval["created_at"] - real()) < 60
        ended = await settled(gateway, held["id"])
        assert "This is not a human refusal." in text_of(ended)
        assert (await vote(gateway, approval)).status_code == 410
    assert len(await executed(stack, long)) == 1
    assert await executed(stack, short) == []


@pytest.mark.covers("APPR-4", "STATE-4")
@STORES
async def test_keys_may_rotate_while_an_approval_waits(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, store: bool
) -> None:
    word, sections = marker(), tenancy(stack)
    monkeypatch.setenv("TEST_NEXT_KEY", base64.b64encode(b"n" * 32).decode())
    old = {"id": "k1", "value": "env:TEST_ENCRYPTION_KEY"}
    new = {"id": "k2", "value": "env:TEST_NEXT_KEY"}
    with stack.gateway(**sections, encryption={"keys": [old, new]}) as gateway:
        held = (await create(gateway, issue(word), store=store)).json()
        (approval,) = await pending(gateway, word)
    with stack.gateway(**sections, encryption={"keys": [new, old]}) as gateway:
        assert (await vote(gateway, approval)).status_code == 200
        done = await settled(gateway, held["id"])
        assert output_types(done)[-2:] == ["mcp_call", "message"]
        after = await create(gateway, "/recall", previous_response_id=done["id"], store=store)
        assert "mcp calls: 1" in after.text
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-6", "APPR-7")
@pytest.mark.parametrize("ending", ["deny", "expire"])
async def test_what_was_not_approved_stays_so_when_the_rules_would_allow_it_now(
    stack: Stack, ending: str
) -> None:
    """The rules decide again before an answer is sent: they may withdraw, and never allow."""
    word, sections = marker(), tenancy(stack)
    terms = {"timeout": "1s"} if ending == "expire" else {}
    with stack.gateway(rules=asks(**terms), **sections) as gateway:
        held = (await create(gateway, issue(word))).json()
        (approval,) = await pending(gateway, word)
        async with gateway.http("auditor") as client:
            asked_by = (await client.get("/v1/policy")).json()["version"]
    with stack.gateway(rules=ALLOW, **sections) as gateway:
        if ending == "deny":
            assert (await vote(gateway, approval, "deny", reason="Never.")).status_code == 200
        done = await settled(gateway, held["id"])
        async with gateway.http("approver") as client:
            shown = (await client.get(approval["url"])).json()
        async with gateway.http("auditor") as client:
            assert (await client.get("/v1/policy")).json()["version"] != asked_by
    assert ("Never." if ending == "deny" else "not a human refusal") in text_of(done)
    assert shown["status"] == {"deny": "denied", "expire": "expired"}[ending]
    assert shown["policy"]["version"] == asked_by
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-7")
@pytest.mark.parametrize("change", ["url", "credential", "gone"])
async def test_an_approval_is_for_the_server_as_it_was_registered(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    word, sections = marker(), tenancy(stack)
    monkeypatch.setenv("TEST_OTHER_AUTH", "Bearer other-credential-7c1f")
    servers = {
        "url": [stack.mcp_server(url=stack.mcp_url + "?tenant=other")],
        "credential": [stack.mcp_server(headers={"Authorization": "env:TEST_OTHER_AUTH"})],
        "gone": [],
    }
    with stack.gateway(**sections) as gateway:
        held = (await create(gateway, issue(word))).json()
        (approval,) = await pending(gateway, word)
    rules = RULES if servers[change] else []
    with stack.gateway(**sections, mcp_servers=servers[change], rules=rules) as gateway:
        await vote(gateway, approval)
        done = await settled(gateway, held["id"])
        async with gateway.http("approver") as client:
            assert (await client.get(approval["url"])).json()["status"] == "superseded"
    assert "changed before a decision" in text_of(done)
    assert await executed(stack, word) == []


ODD = {
    "plain": '{"title": "WORD", "n": 1}',
    "duplicate": '{"title": "WORD", "title": "WORD"}',
    "nan": '{"title": "WORD", "n": NaN}',
    "infinite": '{"title": "WORD", "n": 1e999}',
    "huge": '{"title": "WORD", "n": ' + "9" * 5000 + "}",
    "long": '{"title": "WORD", "text": "' + "x" * 70_000 + '"}',
    "deep": '{"title": "WORD", "n": ' + "[" * 200 + "]" * 200 + "}",
    "lone": '{"title": "WORD", "n": "\\ud800"}',
    "no-json": '{"title": "WORD"',
}


@pytest.mark.covers("APPR-1", "APPR-13")
@pytest.mark.parametrize("odd", list(ODD))
async def test_arguments_that_readers_may_read_differently_are_not_allowed_by_a_rule(
    stack: Stack, odd: str
) -> None:
    word = marker()
    request = {**asked_for(word), "arguments": ODD[odd].replace("WORD", word)}
    answers: list[Any] = []

    def script(call: Call) -> list[dict[str, Any]]:
        if b"mcp_approval_response" not in call.body:
            return [request]
        answers.extend(call.json["input"])
        return [message("ok")]

    rules = [
        {
            "id": "titled",
            "match": {"server": "github", "args": {"/title": {"eq": word}}},
            "effect": "allow",
        }
    ]
    async with provider(saying(script)) as upstream:
        sections = {**tenancy(stack), "upstreams": [upstream.settings()], "rules": rules}
        with stack.gateway(**sections) as gateway:
            answer = (await create(gateway, "hi")).json()
            if answer["status"] == "in_progress":
                (approval,) = await pending(gateway, word)
                await vote(gateway, approval, "deny", reason="Odd.")
                answer = await settled(gateway, answer["id"])
    assert answer["status"] == "completed"
    assert [one["approve"] for one in answers] == [odd == "plain"]


@pytest.mark.covers("APPR-6")
@STORES
async def test_a_hold_without_end_ends_when_its_turn_is_kept_no_longer(
    stack: Stack, store: bool
) -> None:
    word = marker()
    rules = asks(timeout="1s", on_timeout="hold")
    with stack.gateway(rules=rules, **tenancy(stack, ttl="3s")) as gateway:
        held = (await create(gateway, issue(word), store=store)).json()
        async with gateway.http("approver") as client:
            approval = (await client.get(held["gateway"]["approvals"][0]["url"])).json()
            assert approval["expires_at"] - approval["created_at"] == pytest.approx(3)
            with anyio.fail_after(30):
                while (shown := (await client.get(approval["url"])).json())["status"] == "pending":
                    await anyio.sleep(0.05)
        assert shown["status"] == "expired", shown
        assert shown["decided_at"] - shown["created_at"] >= 3
        late = await vote(gateway, approval)
        assert (late.status_code, late.json()["error"]["code"]) == (410, "expired")
        ended = await settled(gateway, held["id"])
        assert ended["status"] == "completed", ended
        assert "not a human refusal" in text_of(ended)
    assert await executed(stack, word) == []
