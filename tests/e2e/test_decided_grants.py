"""Grants that come with a decision, and calls that a person revises (APPR-8)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.e2e.test_grants import asking, now, outcome, running
from tests.support.approvals import (
    create,
    executed,
    issue,
    marker,
    pending,
    settled,
    tenancy,
    text_of,
    vote,
)
from tests.support.stack import Gateway, Stack

pytestmark = [pytest.mark.anyio, pytest.mark.covers("APPR-8")]

WIDE = {"max_scope": "server", "max_scope_destructive": "server"}


@pytest.fixture(scope="module")
def wide(stack: Stack) -> Iterator[Gateway]:
    """A gateway whose rule lets people grant everything."""
    with running(stack, asking(**WIDE)) as gateway:
        yield gateway


def many(quorum: int, **grants: Any) -> list[dict[str, Any]]:
    """The same rule, for which several people must approve."""
    (rule,) = asking(**WIDE, **grants)
    return [{**rule, "approval": {**rule["approval"], "quorum": quorum}}]


async def ask(gateway: Gateway, text: str, word: str) -> tuple[Any, dict[str, Any]]:
    """Call a tool that a person decides; return the response and the approval."""
    held = (await create(gateway, text)).json()
    (approval,) = await pending(gateway, word)
    return held, approval


async def test_an_approval_for_the_chain_answers_the_rest_of_it_and_nothing_else(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    text = f"{issue(word + ' 1')}\n/echo next\n{issue(word + ' 2')}"
    held, approval = await ask(wide, text, word)
    assert approval["grants"]["max_scope"] == "server"
    answer = await vote(wide, approval, grant={"scope": "tool"}, reason="Go on.")
    assert answer.status_code == 200, answer.text
    given = answer.json()["grant"]
    assert (given["status"], given["bound_to"], given["scope"]) == ("active", "chain", "tool")
    assert given["chain_id"] == held["id"]
    assert given["created_by"] == {"subject": "user:ann", "approval": approval["id"]}
    assert (await settled(wide, held["id"]))["status"] == "completed"
    assert len(await executed(stack, word)) == 2
    again = await outcome(wide, word + " 3", previous_response_id=held["id"])
    assert again == "ran"
    assert await outcome(wide, word + " 4") == "asked"  # another chain


async def test_a_grant_of_the_very_call_is_for_its_arguments_in_any_spelling(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    wanted = {"scope": "once", "bound_to": "principal", "ttl": 60}
    assert (await vote(wide, approval, grant=wanted)).status_code == 200
    await settled(wide, held["id"])
    found = [await outcome(wide, word) for _ in range(2)]
    assert found == ["ran", "asked"]


async def test_deleting_a_response_ends_what_was_granted_for_its_chain(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    given = (await vote(wide, approval, grant={"scope": "tool"})).json()["grant"]
    await settled(wide, held["id"])
    second = (await create(wide, "/echo hi", previous_response_id=held["id"])).json()
    async with wide.http() as client:
        assert (await client.delete(f"/v1/responses/{second['id']}")).status_code == 200
    read = await now(wide, given["id"])
    assert (read["status"], read["ended"]["cause"]) == ("dropped", "chain")
    assert await outcome(wide, word, previous_response_id=held["id"]) == "asked"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"scope": "all"}, "invalid_grant"),
        ({"scope": "once", "uses": 2}, "invalid_grant"),
        ({"scope": "once", "ttl": 3601}, "invalid_grant"),
        ({"scope": "once", "color": 1}, "invalid_grant"),
        ("once", "invalid_grant"),
        ({"scope": "tool"}, "grant_scope_too_wide"),
    ],
)
async def test_a_grant_that_cannot_be_decides_nothing(
    gateway: Gateway, wanted: Any, code: str
) -> None:
    word = marker()
    _, approval = await ask(gateway, issue(word), word)
    answer = await vote(gateway, approval, grant=wanted)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, code)
    (still,) = await pending(gateway, word)
    assert still["votes"] == []


async def test_a_grant_goes_with_an_approval_only(gateway: Gateway) -> None:
    word = marker()
    _, approval = await ask(gateway, issue(word), word)
    answer = await vote(gateway, approval, "deny", grant={"scope": "once"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_grant")


async def test_a_vote_that_does_not_count_grants_nothing(stack: Stack, wide: Gateway) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    wanted = {"scope": "tool", "bound_to": "principal"}
    other = {**approval, "fingerprint": "sha256:" + "0" * 64}
    assert (await vote(wide, other, grant=wanted)).status_code == 409
    stale = {"if-match": '"v99"'}
    assert (await vote(wide, approval, grant=wanted, headers=stale)).status_code == 412
    assert (await vote(wide, approval)).status_code == 200  # the same person, without a grant
    await settled(wide, held["id"])
    assert await outcome(wide, word) == "asked"


async def test_a_late_grant_by_somebody_whose_vote_was_not_needed_is_none(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    _, approval = await ask(wide, issue(word), word)
    assert (await vote(wide, approval, key="second")).status_code == 200
    answer = await vote(wide, approval, grant={"scope": "tool", "bound_to": "principal"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "already_decided")
    assert await outcome(wide, word) == "asked"


async def test_one_of_several_approvers_cannot_grant_alone(stack: Stack) -> None:
    with running(stack, many(2)) as gateway:
        word = marker()
        _, approval = await ask(gateway, issue(word), word)
        assert approval["grants"]["max_scope"] == "none"
        answer = await vote(gateway, approval, grant={"scope": "once"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "grant_not_allowed")


@pytest.mark.parametrize("last", ["approve", "deny"])
async def test_where_the_rule_lets_one_grant_it_counts_once_all_have_approved(
    stack: Stack, last: str
) -> None:
    with running(stack, many(2, with_quorum=True)) as gateway:
        word = marker()
        held, approval = await ask(gateway, issue(word), word)
        wanted = {"scope": "exact_args", "bound_to": "principal"}
        given = (await vote(gateway, approval, grant=wanted)).json()["grant"]
        assert given["status"] == "waiting"
        assert await outcome(gateway, word) == "asked"
        assert (await vote(gateway, approval, last, key="second")).status_code == 200
        await settled(gateway, held["id"])
        assert await outcome(gateway, word) == ("ran" if last == "approve" else "asked")


async def test_a_grant_that_is_revoked_while_another_call_waits_runs_nothing(
    stack: Stack, wide: Gateway
) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    wanted = {"scope": "exact_args", "bound_to": "principal"}
    given = (await vote(wide, approval, grant=wanted)).json()["grant"]
    await settled(wide, held["id"])
    both = f"{issue(word)}\n{issue(word + ' other')}"
    held, other = await ask(wide, both, word + " other")
    async with wide.http("approver") as client:
        assert (await client.delete(f"/v1/grants/{given['id']}")).json()["status"] == "revoked"
    assert (await vote(wide, other)).status_code == 200
    ended = await settled(wide, held["id"])
    assert ended["status"] == "completed"
    assert len(await executed(stack, word)) == 2  # the first, and the one that a person approved


async def test_a_revised_call_runs_once_as_the_person_wants_it(stack: Stack, wide: Gateway) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    answer = await vote(wide, approval, "revise", arguments={"title": word, "body": "polite"})
    assert (answer.status_code, answer.json()["status"]) == (200, "denied"), answer.text
    given = answer.json()["grant"]
    assert (given["scope"], given["bound_to"]) == ("once", "chain")
    assert given["expires_at"] - given["created_at"] == pytest.approx(600)
    ended = await settled(wide, held["id"])
    assert ended["status"] == "completed", ended
    (ran,) = await executed(stack, word)
    assert ran["arguments"] == {"title": word, "body": "polite"}
    assert (await now(wide, given["id"]))["status"] == "used_up"
    assert "Created issue" in text_of(ended)
    text = f'/call github.create_issue {{"title": "{word}", "body": "polite"}}'
    again = await create(wide, text, previous_response_id=held["id"])
    assert again.json()["status"] == "in_progress"  # once


async def test_a_revision_that_the_rules_deny_is_refused(stack: Stack) -> None:
    bad = {
        "id": "bad",
        "match": {"args": {"/title": {"glob": "*forbidden*"}}},
        "effect": "deny",
    }
    with running(stack, [*asking(), bad]) as gateway:
        word = marker()
        _, approval = await ask(gateway, issue(word), word)
        title = {"title": f"{word} forbidden"}
        answer = await vote(gateway, approval, "revise", arguments=title)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "revision_denied")
        assert len(await pending(gateway, word)) == 1


@pytest.mark.parametrize("approvers", [["group:cfo"], ["role:approver"]])
async def test_a_revision_that_others_decide_is_asked_of_them(
    stack: Stack, approvers: list[str]
) -> None:
    quorum = 1 if approvers == ["group:cfo"] else 2
    large = {
        "id": "large",
        "match": {"args": {"/amount": {"ge": 100}}},
        "effect": "ask",
        "approval": {"approvers": approvers, "quorum": quorum, "grants": WIDE},
    }
    with running(stack, [large, *asking(**WIDE)]) as gateway:
        word = marker()
        text = f'/call github.send_payment {{"to": "{word}", "amount": 1}}'
        held, approval = await ask(gateway, text, word)
        new = {"to": word, "amount": 100}
        answer = await vote(gateway, approval, "revise", arguments=new)
        assert (answer.status_code, answer.json()["grant"]) == (200, None), answer.text
        (asked,) = await pending(gateway, '"amount":100')
        assert (asked["response_id"], asked["policy"]["rule"]) == (held["id"], "large")
        assert await executed(stack, word) == []


async def test_grants_are_in_the_audit_and_the_metrics(stack: Stack, wide: Gateway) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    wanted = {"scope": "exact_args", "bound_to": "principal"}
    given = (await vote(wide, approval, grant=wanted)).json()["grant"]
    await settled(wide, held["id"])
    assert await outcome(wide, word) == "ran"
    async with wide.http("admin") as client:
        await client.delete(f"/v1/grants/{given['id']}")
        with anyio.fail_after(30):
            found: list[dict[str, Any]] = []
            while len(found) < 3:
                listed = (await client.get("/v1/audit?event=grant.*&limit=1000")).json()["data"]
                found = [one for one in listed if one.get("subject") == given["id"]]
                await anyio.sleep(0.05)
        metrics = (await client.get("/metrics")).text
    told = {one["event"]: one for one in found}
    assert told["grant.issued"]["actor"] == "subject:user:ann"
    assert told["grant.issued"]["detail"]["approval_id"] == approval["id"]
    assert told["grant.used"]["actor"] == "subject:svc:caller"
    assert told["grant.revoked"]["actor"] == "subject:user:root"
    assert word not in json.dumps(found)
    for line in (
        'gateway_grants_total{event="used",server="github"}',
        'gateway_approval_dwell_seconds_count{outcome="approved",server="github"}',
        'gateway_approval_hasty_total{server="github"}',
    ):
        assert line in metrics


async def test_the_audit_tells_what_is_granted_and_not_what_a_repeat_wishes(wide: Gateway) -> None:
    word = marker()
    held, approval = await ask(wide, issue(word), word)
    first = (await vote(wide, approval, grant={"scope": "once"})).json()["grant"]
    again = await vote(wide, approval, grant={"scope": "server", "bound_to": "tenant"})
    assert (again.json()["grant"]["id"], again.json()["grant"]["scope"]) == (first["id"], "once")
    await settled(wide, held["id"])
    async with wide.http("admin") as client:
        await client.delete(f"/v1/grants/{first['id']}")
        await vote(wide, approval, grant={"scope": "server", "bound_to": "tenant"})
        with anyio.fail_after(30):
            found: list[dict[str, Any]] = []
            while not any(one["event"] == "grant.revoked" for one in found):
                listed = (await client.get("/v1/audit?event=grant.*&limit=1000")).json()["data"]
                found = [one for one in listed if one.get("subject") == first["id"]]
                await anyio.sleep(0.05)
    issued = [one["detail"] for one in found if one["event"] == "grant.issued"]
    assert {(one["scope"], one["bound_to"]) for one in issued} == {("once", "chain")}
    assert found[0]["event"] == "grant.revoked"  # nothing was issued after it


async def test_what_a_grant_answered_does_not_run_when_another_rule_has_come_to_ask(
    stack: Stack,
) -> None:
    """It waits beside a call that nobody granted; meanwhile the rules have changed."""
    granted, written = marker(), marker()
    sections = tenancy(stack)
    key = {"server": "github", "tool": "create_issue", "subject": "svc:caller"}
    with stack.gateway(**{**sections, "rules": asking(**WIDE)}) as before:
        await create(before, "/echo hi")  # the tool is seen, and pinned
        async with before.http("approver") as client:
            wish = {**key, "scope": "exact_args", "arguments": {"title": granted}}
            assert (await client.post("/v1/grants", json=wish)).status_code == 200
        held = (await create(before, f"{issue(granted)}\n{issue(written)}")).json()
        (approval,) = await pending(before, written)
    other = [{"id": "stricter", "match": {"server": "github"}, "effect": "ask"}]
    with stack.gateway(**{**sections, "rules": other}) as after:
        await vote(after, approval)
        await settled(after, held["id"])
    assert await executed(stack, granted) == []
    assert len(await executed(stack, written)) == 1
