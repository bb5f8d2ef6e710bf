"""Rules in full, through HTTP: arguments, trust, taint, shadow, CEL, OPA, simulate (APPR-13)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from gateway.emulator.serve import serving
from tests.support.approvals import (
    GITHUB,
    create,
    decide,
    executed,
    issue,
    marker,
    output_types,
    pending,
    sent,
    settled,
    tenancy,
    text_of,
)
from tests.support.stack import Gateway, Stack

ALLOW = {"id": "all", "effect": "allow"}
CORP = {
    "id": "corp",
    "match": {"tool": "send_payment", "args": {"/to": {"domain_of_email_in": ["corp.example"]}}},
    "effect": "allow",
}
LARGE = {
    "id": "large",
    "match": {"tool": "send_payment", "args": {"/amount": {"ge": 100}}},
    "effect": "deny",
    "reason": "Large payments are made by people.",
}


def pay(to: str, amount: object) -> str:
    return f"/call github.send_payment {json.dumps({'to': to, 'amount': amount})}"


def auditing(stack: Stack, **changes: Any) -> dict[str, Any]:
    sections = tenancy(stack, **changes)
    tenant = sections["tenants"][0]["id"]
    keys = [one for one in sections["api_keys"] if one["id"] != "second"]
    auditor = stack.key("second", tenant=tenant, subject="user:bob", roles=["auditor"])
    return {**sections, "api_keys": [*keys, auditor]}


@contextmanager
def ruled(stack: Stack, *rules: dict[str, Any], **sections: Any) -> Iterator[Gateway]:
    """A gateway with these rules alone; the key `second` is an auditor."""
    with stack.gateway(rules=list(rules), **auditing(stack), **sections) as gateway:
        yield gateway


async def metric(gateway: Gateway, start: str) -> float:
    async with gateway.http(None) as client:
        text = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(start))


async def asked(gateway: Gateway, path: str, body: Any = None, *, key: str = "second") -> Any:
    async with gateway.http(key) as client:
        answer = await (client.get(path) if body is None else client.post(path, json=body))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def entry(gateway: Gateway, event: str, error: str = "") -> Any:
    """Wait for the one entry of the audit about an event, with an error that begins like that."""
    with anyio.fail_after(30):
        while True:
            found = [
                one
                for one in (await asked(gateway, f"/v1/audit?event={event}"))["data"]
                if not error or one["detail"]["errors"][0].startswith(error)
            ]
            if found:
                (one,) = found
                return one
            await anyio.sleep(0.02)


# One call


@pytest.mark.covers("APPR-13")
async def test_arguments_decide_whether_a_call_runs_waits_or_is_refused(stack: Stack) -> None:
    word = marker()
    with ruled(stack, CORP, LARGE) as gateway:
        ran = await create(gateway, pay(f"{word}@corp.example", 10))
        assert "mcp_call" in output_types(ran.json())
        (request,) = [body for body in await sent(stack, word) if "tools" in body][:1]
        assert request["tools"][0]["require_approval"] == "always"  # it depends on the call
        refused = await create(gateway, pay(f"{word}-large@corp.example", 100))
        assert "Large payments are made by people." in text_of(refused.json())
        held = await create(gateway, pay(f"{word}-out@evil.example", 10))
        assert held.json()["status"] == "in_progress"
        await decide(gateway, word + "-out", "deny")
        await settled(gateway, held.json()["id"])
    assert [one["arguments"]["to"] for one in await executed(stack, word)] == [
        f"{word}@corp.example"
    ]


@pytest.mark.covers("APPR-1", "APPR-13")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('{"to": "WORD", "amount": "500"}', "args./amount is not a number"),
        ('{"to": "WORD"}', "args./amount is missing"),
        ('{"to": "WORD", "amount": 1e999}', "a number that is not finite"),
    ],
)
async def test_what_a_deny_rule_does_not_understand_is_not_let_through(
    stack: Stack, arguments: str, why: str
) -> None:
    word = marker()
    asks = {**LARGE, "on_error": "ask"}
    with ruled(stack, ALLOW, asks) as gateway:
        call = "/call github.send_payment " + arguments.replace("WORD", word)
        held = await create(gateway, call)
        (approval,) = await pending(gateway, word)
        assert (
            why in approval["policy"]["explain"]
            or "cannot be read" in (approval["policy"]["explain"])
        )
        await decide(gateway, word, "deny")
        await settled(gateway, held.json()["id"])
        assert await metric(gateway, 'gateway_policy_errors_total{rule="large"}') == 1
        noted = await entry(gateway, "policy.error", "large: ")  # the schema may fault it, too
        assert noted["detail"]["effect"] == "ask"
        assert word not in json.dumps(noted)
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-13")
async def test_trust_and_principal_decide(stack: Stack) -> None:
    word = marker()
    trusted = {"id": "trusted", "match": {"trust": ["reviewed"]}, "effect": "allow"}
    person = {"id": "robots", "match": {"principal": {"subjects": ["svc:*"]}}, "effect": "deny"}
    servers = [stack.mcp_server(), stack.mcp_server(label="other", trust="untrusted")]
    with ruled(stack, trusted, mcp_servers=servers) as gateway:
        ran = await create(gateway, issue(word))
        assert "mcp_call" in output_types(ran.json())
        other = {"type": "mcp", "server_label": "other"}
        call = issue(word + "-other").replace("github", "other")
        held = await create(gateway, call, tools=[other])
        await decide(gateway, word + "-other", "deny")
        await settled(gateway, held.json()["id"])
    with ruled(stack, trusted, person) as gateway:
        refused = await create(gateway, issue(word + "-robot"))
        assert output_types(refused.json())[-1] == "message"
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-13")
async def test_what_a_tool_says_of_itself_decides_where_its_server_is_vouched_for(
    stack: Stack,
) -> None:
    word = marker()
    reads = {"id": "reads", "match": {"annotations": {"read_only": True}}, "effect": "allow"}
    search = f'/call github.search_issues {{"query": "{word}"}}'
    servers = [stack.mcp_server(), stack.mcp_server(label="web", trust="untrusted")]
    with ruled(stack, reads, mcp_servers=servers) as gateway:
        ran = await create(gateway, search)
        assert "mcp_call" in output_types(ran.json())
        web = {"type": "mcp", "server_label": "web"}
        held = await create(gateway, search.replace("github", "web"), tools=[web])
        assert held.json()["status"] == "in_progress"
        await decide(gateway, word, "deny")
        await settled(gateway, held.json()["id"])
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-13")
async def test_what_a_chain_has_seen_is_remembered_in_its_next_turns(stack: Stack) -> None:
    """Private data read, then an untrusted tool: from then on, what leaves is asked for."""
    word = marker()
    leak = {
        "id": "leak",
        "match": {"tool": "create_issue", "chain": {"saw_untrusted": True, "saw_private": True}},
        "effect": "deny",
        "reason": "Private data could leave by it.",
    }
    servers = [
        stack.mcp_server(private=True),
        stack.mcp_server(label="web", trust="untrusted"),
    ]
    tools = [GITHUB, {"type": "mcp", "server_label": "web"}]
    with ruled(stack, ALLOW, leak, mcp_servers=servers) as gateway:

        async def turn(text: str, **more: Any) -> Any:
            return (await create(gateway, text, tools=tools, **more)).json()

        first = await turn(f'/call github.search_issues {{"query": "{word}"}}')
        private = await turn(issue(word + "-1"), previous_response_id=first["id"])
        assert "mcp_call" in output_types(private)
        web = await turn(
            f'/call web.search_issues {{"query": "{word}"}}', previous_response_id=private["id"]
        )
        both = await turn(issue(word + "-2"), previous_response_id=web["id"])
        assert "Private data could leave by it." in text_of(both)
        fork = await turn(issue(word + "-3"), previous_response_id=private["id"])
        assert "mcp_call" in output_types(fork)  # that branch saw nothing untrusted
    titles = [one["arguments"].get("title") for one in await executed(stack, word)]
    assert word + "-2" not in titles
    assert {word + "-1", word + "-3"} <= set(titles)


@pytest.mark.covers("APPR-13")
async def test_a_rule_in_shadow_is_reported_and_decides_nothing(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    word = marker()
    with ruled(stack, CORP, {**LARGE, "mode": "shadow"}) as gateway:
        with caplog.at_level("INFO", logger="gateway.policy"):
            ran = await create(gateway, pay(f"{word}@corp.example", 500))
        assert "mcp_call" in output_types(ran.json())
        (line,) = [one for one in caplog.records if one.message == "policy.shadow_decision"]
        told = {name: getattr(line, name) for name in ("effective", "shadow", "rule", "tool")}
        assert told == {
            "effective": "allow",
            "shadow": "deny",
            "rule": "large",
            "tool": "send_payment",
        }
        assert word not in str(line.__dict__)
        series = (
            'gateway_policy_shadow_decisions_total{effective="allow",rule="large",shadow="deny"}'
        )
        assert await metric(gateway, series) == 1
        noted = await entry(gateway, "policy.shadow_decision")
        assert noted["detail"] == {
            "rule": "large",
            "effective": "allow",
            "shadow": "deny",
            "version": (await asked(gateway, "/v1/policy"))["version"],
        }
        assert (noted["actor"], noted["subject"]) == ("policy:corp", "github.send_payment")
        shown = await asked(gateway, "/v1/policy")
        assert [(one["id"], one["mode"], one["hits"]) for one in shown["rules"]] == [
            ("corp", "enforce", 1),
            ("large", "shadow", 1),
        ]
    assert len(await executed(stack, word)) == 1


@pytest.mark.covers("APPR-13")
async def test_a_cel_expression_decides_and_fails_closed(stack: Stack) -> None:
    pytest.importorskip("cel")
    word = marker()
    small = {
        "id": "small",
        "match": {"tool": "send_payment"},
        "when": "args.amount < 100 && args.to.endsWith('@corp.example') && principal.subject == 'svc:caller'",
        "effect": "allow",
    }
    with ruled(stack, small) as gateway:
        ran = await create(gateway, pay(f"{word}@corp.example", 10.5))
        assert "mcp_call" in output_types(ran.json())
        for amount in (100, "10", None, [1]):
            held = await create(gateway, pay(f"{word}-held@corp.example", amount))
            assert held.json()["status"] == "in_progress"
            await decide(gateway, word + "-held", "deny")
            await settled(gateway, held.json()["id"])
    assert len(await executed(stack, word)) == 1


# OPA beside the rules


@contextmanager
def opa(answer: Callable[[Any], Awaitable[tuple[int, bytes]]]) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers as Open Policy Agent does; it is not ours."""
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        heard.append({"headers": dict(scope["headers"]), "body": json.loads(body)})
        status, content = await answer(heard[-1]["body"])
        start = {"type": "http.response.start", "status": status}
        location = [(b"location", b"/elsewhere")] if status == 302 else []
        await send({**start, "headers": [(b"content-type", b"application/json"), *location]})
        await send({"type": "http.response.body", "body": content})

    with serving(app) as url:
        yield url + "/v1/data/gateway/decision", heard


def result(**said: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"result": said, "decision_id": "x"}).encode()


@pytest.mark.covers("APPR-13")
async def test_opa_is_asked_and_the_more_restrictive_wins(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_OPA_TOKEN", "Bearer opa-canary")
    word = marker()

    async def answer(body: Any) -> tuple[int, bytes]:
        if body["input"]["args"].get("title", "").endswith("-no"):
            return result(effect="deny", rule="titles", reason="OPA says no.")
        if body["input"]["args"].get("title", "").endswith("-ask"):
            return result(effect="ask", approval={"approvers": ["subject:user:ann"]})
        return result(effect="allow")

    with opa(answer) as (url, heard):
        policy = {
            "engine": "opa",
            "url": url,
            "headers": {"Authorization": "env:TEST_OPA_TOKEN"},
            "timeout": "30s",
        }
        with ruled(stack, ALLOW, LARGE, policy=policy) as gateway:
            ran = await create(gateway, issue(word))
            assert "mcp_call" in output_types(ran.json())
            (first, *_) = await sent(stack, word)
            assert first["tools"][0]["require_approval"] == "always"  # OPA has to be asked
            question = heard[0]["body"]["input"]
            assert heard[0]["headers"][b"authorization"] == b"Bearer opa-canary"
            assert question["args"] == {"title": word}
            assert (question["server"], question["tool"]) == ("github", "create_issue")
            assert question["principal"]["subject"] == "svc:caller"
            assert question["chain"] == {"saw_untrusted": False, "saw_private": False}
            refused = await create(gateway, issue(word + "-no"))
            assert "OPA says no." in text_of(refused.json())
            held = await create(gateway, issue(word + "-ask"))
            (approval,) = await pending(gateway, word + "-ask")
            assert approval["approvers"] == ["subject:user:ann"]
            await decide(gateway, word + "-ask")
            await settled(gateway, held.json()["id"])
            before = len(heard)
            floor = await create(gateway, pay(word + "-large", 500))
            assert "made by people" in text_of(floor.json())
            assert len(heard) == before  # a deny of the rules needs no second opinion
    titles = [one["arguments"].get("title") for one in await executed(stack, word)]
    assert titles == [word, word + "-ask"]


async def down(_: Any) -> tuple[int, bytes]:
    return 503, b"{}"


async def slow(_: Any) -> tuple[int, bytes]:
    await anyio.sleep(3)
    return result(effect="allow")


def saying(status: int, body: bytes) -> Callable[[Any], Awaitable[tuple[int, bytes]]]:
    async def answer(_: Any) -> tuple[int, bytes]:
        return status, body

    return answer


BROKEN = {
    "down": down,
    "slow": slow,
    "redirects": saying(302, b""),
    "not JSON": saying(200, b"allow"),
    "undefined": saying(200, b"{}"),
    "a boolean": saying(200, b'{"result": true}'),
    "another effect": saying(200, b'{"result": {"effect": "permit"}}'),
    "an unknown key": saying(200, b'{"result": {"effect": "allow", "unless": 1}}'),
    "no approvers": saying(
        200, b'{"result": {"effect": "ask", "approval": {"approvers": ["bob"]}}}'
    ),
    "too long": saying(200, b'{"result": {"effect": "allow"}}' + b" " * 70_000),
    "too many": saying(201, b'{"result": {"effect": "allow"}}'),
}


@pytest.mark.covers("APPR-1", "APPR-13")
@pytest.mark.parametrize("kind", BROKEN)
async def test_opa_without_a_proper_answer_never_allows(stack: Stack, kind: str) -> None:
    word = marker()
    with opa(BROKEN[kind]) as (url, _):
        policy = {"engine": "opa", "url": url, "timeout": "200ms"}
        with ruled(stack, ALLOW, policy=policy) as gateway:
            refused = await create(gateway, issue(word))
            assert "The policy engine gave no answer" in text_of(refused.json())
            assert await metric(gateway, 'gateway_policy_errors_total{rule="opa"}') == 1
        with ruled(stack, ALLOW, policy={**policy, "on_error": "ask"}) as gateway:
            held = await create(gateway, issue(word))
            (approval,) = await pending(gateway, word)
            assert "The policy engine gave no answer" in approval["policy"]["explain"]
            await decide(gateway, word, "deny")
            await settled(gateway, held.json()["id"])
    assert await executed(stack, word) == []


@pytest.mark.covers("APPR-13")
async def test_opa_that_is_not_there_never_allows(stack: Stack) -> None:
    word = marker()
    policy = {"engine": "opa", "url": "http://127.0.0.1:9/v1/data/x"}
    with ruled(stack, ALLOW, policy=policy) as gateway:
        refused = await create(gateway, issue(word))
        assert "The policy engine gave no answer" in text_of(refused.json())
    assert await executed(stack, word) == []


# The policy API


@pytest.mark.covers("APPR-13")
async def test_simulate_tells_what_would_happen_and_why(stack: Stack) -> None:
    shadow = {"id": "soon", "match": {"tool": "search_*"}, "effect": "deny", "mode": "shadow"}
    finance = {
        "id": "finance",
        "match": {"tool": "send_payment", "principal": {"groups": ["finance"]}},
        "effect": "ask",
        "approval": {"approvers": ["role:approver"], "quorum": 2},
    }
    with ruled(stack, CORP, LARGE, finance, shadow) as gateway:
        call = {
            "server": "github",
            "tool": "send_payment",
            "arguments": {"to": "ann@corp.example", "amount": 1},
            "principal": {"groups": ["finance"]},
        }
        (one,) = (await asked(gateway, "/v1/policy/simulate", {"call": call}))["data"]
        assert (one["effect"], one["rule"], one["offered"]) == ("ask", "finance", True)
        assert one["approval"]["quorum"] == 2
        assert [(rule["id"], rule["outcome"]) for rule in one["rules"]] == [
            ("corp", "matched"),
            ("large", "not_matched"),
            ("finance", "matched"),
            ("soon", "not_matched"),
        ]
        assert one["rules"][1]["why"] == "not: args./amount ge 100"
        calls = [
            {**call, "arguments": '{"to": "ann@corp.example", "amount": "1"}'},
            {"server": "github", "tool": "search_issues"},
            {"server": "nowhere", "tool": "x"},
        ]
        wrong, search, nowhere = (await asked(gateway, "/v1/policy/simulate", {"calls": calls}))[
            "data"
        ]
        assert wrong["effect"] == "deny"
        assert wrong["errors"] == ["large: args./amount is not a number"]
        assert wrong["rules"][1] == {
            "id": "large",
            "effect": "deny",
            "mode": "enforce",
            "outcome": "error",
            "why": "args./amount is not a number",
        }
        assert (search["effect"], search["rule"]) == ("ask", "default")
        assert (search["shadow"]["effect"], search["shadow"]["rule"]) == ("deny", "soon")
        assert (nowhere["effect"], nowhere["offered"]) == ("deny", False)
        twice = {**call, "arguments": '{"amount": 1, "amount": 500}'}
        (unclear,) = (await asked(gateway, "/v1/policy/simulate", {"call": twice}))["data"]
        assert unclear["effect"] == "deny"
        assert unclear["errors"][-1] == (
            "default: the arguments are unclear: they hold a key twice in one object"
        )
        mild = {"id": "mild", "match": {"tool": "send_payment"}, "effect": "allow"}
        body = {"call": call, "rules": [mild]}
        (other,) = (await asked(gateway, "/v1/policy/simulate", body))["data"]
        assert (other["effect"], other["rule"]) == ("allow", "mild")
        assert other["version"] != one["version"]
        shown = await asked(gateway, "/v1/policy", key="admin")
        assert shown["version"] == one["version"]
        assert [rule["hits"] for rule in shown["rules"]] == [0, 0, 0, 0]  # nothing really happened


@pytest.mark.covers("APPR-13")
async def test_simulated_annotations_are_believed_as_far_as_the_server_is(stack: Stack) -> None:
    safe = {"id": "safe", "match": {"annotations": {"read_only": True}}, "effect": "allow"}
    servers = [stack.mcp_server(), stack.mcp_server(label="web", trust="untrusted")]
    with ruled(stack, safe, mcp_servers=servers) as gateway:
        calls = [
            {"server": label, "tool": "x", "annotations": {"read_only": True}}
            for label in ("github", "web")
        ]
        found = (await asked(gateway, "/v1/policy/simulate", {"calls": calls}))["data"]
        assert [one["effect"] for one in found] == ["allow", "ask"]


@pytest.mark.covers("APPR-13")
async def test_validate_names_every_fault_with_its_place(stack: Stack) -> None:
    with ruled(stack, ALLOW) as gateway:
        bad = {"id": "a", "effect": "deny", "match": {"args": {"/x": {"gee": 1}}}}
        lost = {"id": "b", "effect": "deny", "match": {"server": "gitlab"}}
        said = await asked(gateway, "/v1/policy/validate", {"rules": [bad, {"effect": "ask"}]})
        assert said["valid"] is False
        assert said["faults"] == [
            {
                "path": "rules[0].match.args./x.gee",
                "rule": "a",
                "line": None,
                "message": "unknown predicate; did you mean ge?",
            },
            {"path": "rules[1].id", "rule": None, "line": None, "message": "is required"},
        ]
        said = await asked(gateway, "/v1/policy/validate", {"rules": [lost]})
        assert said["faults"][0]["message"] == '"gitlab" matches no mcp_servers label'
        text = '# mine\n[[rules]]\nid = "a"\neffect = "ask"\nmatch = { tol = "x" }\n'
        said = await asked(gateway, "/v1/policy/validate", {"rules": text}, key="admin")
        (fault,) = said["faults"]
        assert (fault["line"], fault["path"], fault["rule"]) == (5, "rules[0].match.tol", "a")
        for wrong in ("[[rules", "[server]\nport = 1", 7, {"id": "a"}):
            said = await asked(gateway, "/v1/policy/validate", {"rules": wrong})
            assert (said["valid"], len(said["faults"])) == (False, 1)
        good = await asked(gateway, "/v1/policy/validate", {"rules": [ALLOW]})
        assert (good["valid"], good["faults"]) == (True, [])
        assert good["version"] == (await asked(gateway, "/v1/policy"))["version"]


@pytest.mark.covers("APPR-13", "AUTH-2")
async def test_the_policy_is_for_auditors_and_shows_no_other_tenants_rules(stack: Stack) -> None:
    rival = {"id": "rival", "match": {"principal": {"tenants": ["somebody-else"]}}, "effect": "ask"}
    with ruled(stack, ALLOW, rival) as gateway:
        for key in ("caller", "approver"):
            async with gateway.http(key) as client:
                answers = [
                    await client.get("/v1/policy"),
                    await client.post("/v1/policy/simulate", json={}),
                    await client.post("/v1/policy/validate", json={}),
                ]
            assert [one.status_code for one in answers] == [403, 403, 403]
        shown = await asked(gateway, "/v1/policy")
        assert [rule["id"] for rule in shown["rules"]] == ["all"]
        body = {"call": {"server": "github", "tool": "x"}}
        (one,) = (await asked(gateway, "/v1/policy/simulate", body))["data"]
        assert [rule["id"] for rule in one["rules"]] == ["all"]


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"),
        ({"call": {"server": "a", "tool": "b"}, "calls": []}, "missing_required_parameter"),
        ({"call": {"server": "a"}}, "invalid_value"),
        ({"call": {"server": "a", "tool": "b", "tenant": "rival"}}, "invalid_value"),
        ({"calls": [{"server": "a", "tool": "b"}] * 101}, "invalid_value"),
        ({"call": {"server": "a", "tool": "b"}, "rules": [{"id": "x"}]}, "invalid_rules"),
    ],
)
async def test_a_simulation_that_makes_no_sense_is_refused(
    gateway: Gateway, body: Any, code: str
) -> None:
    async with gateway.http("admin") as client:
        answer = await client.post("/v1/policy/simulate", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, "a=" + "9" * 5000], ids=["deep", "long"])
async def test_toml_that_cannot_be_read_is_a_fault_and_no_error(stack: Stack, text: str) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        said = await asked(gateway, "/v1/policy/validate", {"rules": text}, key="admin")
    assert said["valid"] is False
    assert said["faults"][0]["message"].startswith("not valid TOML")
