"""The audit tells every decision once, in order, and a chain that was touched is found (APPR-11)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from gateway.adapters.logs import JSONFormatter
from gateway.cli.commands import cli
from tests.support.approvals import (
    create,
    decide,
    issue,
    marker,
    pending,
    refused,
    settled,
    tenancy,
    vote,
)
from tests.support.stack import Gateway, Stack


async def audit(gateway: Gateway, *, key: str = "auditor", **query: Any) -> list[dict[str, Any]]:
    """The entries that a query finds, oldest first."""
    async with gateway.http(key) as client:
        answer = await client.get("/v1/audit", params={"order": "asc", "limit": 1000, **query})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])


async def verified(gateway: Gateway) -> dict[str, Any]:
    async with gateway.http("auditor") as client:
        return dict((await client.get("/v1/audit/verify")).json())


@pytest.mark.covers("APPR-11")
async def test_a_decision_is_told_with_rule_actor_fingerprint_and_outcome(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        word = marker()
        held = (await create(gateway, issue(word))).json()
        approval = await decide(gateway, word)
        await settled(gateway, held["id"])
        entries = await audit(gateway)
        assert [entry["event"] for entry in entries] == [
            "policy.loaded",
            "approval.requested",
            "approval.voted",
            "approval.resolved",
            "continuation.claimed",
            "continuation.dispatched",
            "continuation.completed",
        ]
        resolved = entries[3]
        assert resolved["actor"] == "subject:user:ann"
        assert resolved["outcome"] == "approved"
        assert resolved["rule"] == "writes"
        assert resolved["reason"] == "checked"
        assert resolved["fingerprint"] == approval["fingerprint"]
        assert resolved["requester"] == "subject:svc:caller"
        assert word not in json.dumps(entries)
        found = await verified(gateway)
        assert (found["ok"], found["entries"], found["last"]) == (True, 7, 7)
        assert found["head_hash"] == entries[-1]["hash"]


@pytest.mark.covers("APPR-11")
async def test_what_rules_and_time_decide_is_told_once(stack: Stack) -> None:
    rules = [
        {"id": "reads", "match": {"server": "github", "tool": "search_*"}, "effect": "allow"},
        {"id": "no", "match": {"server": "github", "tool": "send_*"}, "effect": "deny"},
        {
            "id": "quick",
            "match": {"server": "github", "tool": "create_*"},
            "effect": "ask",
            "approval": {"approvers": ["role:approver"], "timeout": "1s"},
        },
    ]
    with stack.gateway(rules=rules, **tenancy(stack)) as gateway:
        word = marker()
        held = (await create(gateway, issue(word))).json()
        await settled(gateway, held["id"])
        resolved = await audit(gateway, event="approval.resolved")
        assert [(one["outcome"], one["actor"], one["rule"]) for one in resolved] == [
            ("expired", "timeout", "quick")
        ]
        (loaded,) = await audit(gateway, event="policy.loaded")
        assert {"rule": "no", "effect": "deny", "mode": "enforce"} in loaded["detail"]["rules"]


@pytest.mark.covers("APPR-11", "APPR-6")
async def test_refused_decisions_are_told_as_well(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        held = (await create(gateway, issue(marker()), key="second")).json()
        (approval,) = await pending(gateway, "")
        wrong = {**approval, "fingerprint": "sha256:" + "0" * 64}
        answers = [
            await vote(gateway, approval, key="second"),
            await vote(gateway, wrong),
            await vote(gateway, approval, "deny"),
            await vote(gateway, approval, key="admin"),
        ]
        assert [answer.status_code for answer in answers] == [403, 409, 200, 409]
        forged = {"type": "mcp_approval_response", "approve": True, "approval_request_id": "mcpr_x"}
        status, _ = await refused(gateway, [forged])
        assert status == 404
        await settled(gateway, held["id"], key="second")
        refusals = await audit(gateway, event="approval.refused")
        told = [(one["actor"], one["detail"]["code"], one.get("subject")) for one in refusals]
        assert told == [
            ("subject:user:bob", "self_approval", approval["id"]),
            ("subject:user:ann", "fingerprint_mismatch", approval["id"]),
            ("subject:user:root", "already_decided", approval["id"]),
            ("subject:svc:caller", "approval_request_not_found", None),
        ]
        assert refusals[3]["detail"]["approval_request_ids"] == ["mcpr_x"]


@pytest.mark.covers("APPR-11")
async def test_a_continuation_is_told_with_the_upstreams_request_id(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        word = marker()
        held = (await create(gateway, issue(word))).json()
        await decide(gateway, word)
        await settled(gateway, held["id"])
        (completed,) = await audit(gateway, event="continuation.completed")
        assert completed["upstream_request_id"].startswith("req_")
        assert completed["next_response_id"].startswith("resp_")
        assert completed["response_id"] == held["id"]


@pytest.mark.covers("APPR-11")
async def test_a_plain_turn_leaves_nothing_in_the_audit(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        before = await audit(gateway)
        assert (await create(gateway, "Hello", tools=[])).status_code == 200
        assert await audit(gateway) == before


@pytest.mark.covers("APPR-11", "AUTH-1", "AUTH-2")
async def test_only_auditors_and_admins_read_and_only_their_own_tenants(stack: Stack) -> None:
    sections = tenancy(stack)
    rival = sections["tenants"][1]["id"]
    sections["api_keys"] = [
        {**key, "roles": ["auditor"]} if key["tenant"] == rival else key
        for key in sections["api_keys"]
    ]
    with stack.gateway(**sections) as gateway:
        await create(gateway, issue(marker()))
        for path in ("/v1/audit", "/v1/audit/verify", "/v1/audit/export"):
            for key in ("caller", "approver"):
                async with gateway.http(key) as client:
                    answer = await client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_role")
            async with gateway.http(None) as client:
                assert (await client.get(path)).status_code == 401
        assert [one["event"] for one in await audit(gateway, key="admin")] == [
            "policy.loaded",
            "approval.requested",
        ]
        theirs = await audit(gateway, key="other")
        assert [(one["tenant"], one["event"]) for one in theirs] == [(rival, "policy.loaded")]


@pytest.mark.covers("APPR-11")
async def test_lists_are_filtered_and_paged(stack: Stack) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        approvals = []
        for _ in range(2):
            word = marker()
            await create(gateway, issue(word))
            approvals.append(await decide(gateway, word, "deny"))
            await settled(gateway, approvals[-1]["response_id"])
        entries = await audit(gateway)
        async with gateway.http("auditor") as client:
            first = (await client.get("/v1/audit", params={"limit": 3})).json()
            second = (
                await client.get("/v1/audit", params={"limit": 1000, "after": first["last_id"]})
            ).json()
        assert first["object"] == "list"
        assert (first["has_more"], second["has_more"]) == (True, False)
        assert first["first_id"] == entries[-1]["id"]
        assert [*first["data"], *second["data"]] == entries[::-1]
        assert await audit(gateway, after=entries[0]["id"]) == entries[1:]
        events = [one["event"] for one in await audit(gateway, event="approval.*")]
        assert events == ["approval.requested", "approval.voted", "approval.resolved"] * 2
        assert len(await audit(gateway, actor="subject:user:ann")) == 4
        of_one = await audit(gateway, approval=approvals[0]["id"])
        assert [one["event"] for one in of_one][-1] == "continuation.completed"
        assert len(of_one) == 6
        middle = entries[7]["time"]
        later = await audit(gateway, since=middle)
        earlier = await audit(gateway, until=middle)
        assert [*earlier, *later] == entries
        assert 0 < len(earlier) < len(entries)
        assert await audit(gateway, since="4000000000") == []
        async with gateway.http("auditor") as client:
            for name, value in [
                *(("limit", "0"), ("limit", "1001"), ("after", "apr_1"), ("order", "up")),
                *(("since", "yesterday"), ("until", "2026-11-20T12:00:00"), ("who", "ann")),
            ]:
                answer = await client.get("/v1/audit", params={name: value})
                error = answer.json()["error"]
                assert (answer.status_code, error["param"]) == (400, name), error


def check(lines: list[dict[str, Any]]) -> None:
    """Verify an export as an auditor would, by docs/audit.md alone."""
    previous = lines[0]["previous"]
    for line in lines[:-1]:
        text = {name: value for name, value in line.items() if name != "hash"}
        plain = json.dumps(text, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert line["hash"] == "sha256:" + hashlib.sha256(plain.encode()).hexdigest()
        assert line["previous"] == previous
        previous = line["hash"]
    assert lines[-1]["object"] == "audit.checkpoint"
    assert lines[-1]["hash"] == previous


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["audit", "verify", *arguments])
    return result.exit_code, result.output


@pytest.mark.covers("APPR-11", "RUN-5")
async def test_an_export_verifies_without_keys_and_a_touched_one_does_not(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.gateway(**tenancy(stack)) as gateway:
        word = marker()
        held = (await create(gateway, issue(word))).json()
        async with gateway.http("approver") as client:
            (approval,) = await pending(gateway, word)
            reason = "Grüße, ann \u202e 👍"
            decision = {"decision": "deny", "fingerprint": approval["fingerprint"]}
            await client.post(approval["url"] + "/decision", json={**decision, "reason": reason})
        await settled(gateway, held["id"])
        async with gateway.http("auditor") as client:
            answer = await client.get("/v1/audit/export")
        found = await verified(gateway)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    check(lines)
    assert reason in [line.get("reason") for line in lines]

    def write(kept: list[dict[str, Any]]) -> str:
        path = tmp_path / "audit.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
        return str(path)

    code, text = run("--file", write(lines), "--expect-head", found["head_hash"])
    assert (code, "OK" in text) == (0, True), text
    changed = [dict(line) for line in lines]
    changed[3]["outcome"] = "approved"
    swapped = [lines[0], lines[2], lines[1], *lines[3:]]
    for kept, at in [
        (changed, 4),
        (swapped, 2),
        ([*lines[:2], *lines[3:]], 3),
        (lines[:-1], len(lines)),
        ([*lines[:-2], lines[-1]], len(lines) - 1),
        ([lines[0], {"hello": 1}, *lines[1:]], 2),
    ]:
        code, text = run("--file", write(kept))
        assert (code, f"BROKEN at entry {at}:" in text, len(text.splitlines())) == (1, True, 1), (
            text
        )
    code, text = run("--file", write(lines), "--expect-head", "sha256:" + "1" * 64)
    assert (code, "no entry has the hash" in text) == (1, True)
    (tmp_path / "audit.jsonl").write_text("no json\n")
    assert run("--file", str(tmp_path / "audit.jsonl"))[0] == 1


@pytest.mark.covers("APPR-11", "RUN-5")
async def test_the_command_verifies_redis_against_the_logs(stack: Stack, tmp_path: Path) -> None:
    sections = tenancy(stack)
    tenant = sections["tenants"][0]["id"]
    log = tmp_path / "gateway.log"
    handler = logging.FileHandler(log)
    handler.setFormatter(JSONFormatter())
    with stack.gateway(**sections) as gateway:
        logging.getLogger("gateway.audit").addHandler(handler)
        word = marker()
        held = (await create(gateway, issue(word))).json()
        await decide(gateway, word)
        await settled(gateway, held["id"])
    logging.getLogger("gateway.audit").removeHandler(handler)
    handler.close()
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[redis]\nurl = "{stack.redis_url}"\n'
        '[encryption]\nkeys = [{ id = "k1", value = "env:TEST_ENCRYPTION_KEY" }]\n'
        '[[upstreams]]\nname = "a"\nkind = "openai"\nbase_url = "https://example.com/v1/"\n'
        'auth = { type = "api_key", value = "env:TEST_UPSTREAM_KEY" }\n'
        f'[[tenants]]\nid = "{tenant}"\n'
    )
    arguments = ("--config", str(config), "--checkpoints", str(log))
    code, text = await asyncio.to_thread(run, *arguments)
    assert (code, text.startswith(f"{tenant}: OK, 7 entries, head 7 sha256:")) == (0, True), text
    client: Any = redis.Redis.from_url(stack.redis_url)
    prefix = f"gw:{{{tenant}}}:audit"
    for name in client.scan_iter(prefix.replace("{", "\\{") + "*"):
        client.delete(name)  # the chain is gone, whole: only the log still knows of it
    client.close()
    code, text = await asyncio.to_thread(run, *arguments)
    assert (code, "entries 1 to 7 are missing at the end" in text) == (1, True), text
    empty = tmp_path / "empty.log"
    empty.write_text("nothing\n")
    code, text = await asyncio.to_thread(run, *arguments[:2], "--checkpoints", str(empty))
    assert (code, "holds no audit checkpoint" in text) == (1, True)
