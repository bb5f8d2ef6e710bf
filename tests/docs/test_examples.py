"""The JSON of the documentation has the fields that the gateway really sends and takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.domain.approvals import Approval
from gateway.domain.webhooks import approval_event, payload
from tests.docs.markdown import DOCS, blocks, section
from tests.support.approvals import decide, issue, marker
from tests.support.stack import RULES, Gateway, Stack

GITHUB = {"type": "mcp", "server_label": "github"}
CREATE = {
    "model": "gpt-4.1",
    "input": '/call github.create_issue {"title": "Hello"}',
    "tools": [GITHUB],
}


def example(page: str, heading: str, place: int = 0) -> Any:
    text = section((DOCS / page).read_text(), heading)
    found = [block for block in blocks(text) if block.language == "json"]
    return json.loads(found[place].text)


def shape(value: Any) -> Any:
    """Reduce a document to its keys, at every depth."""
    if isinstance(value, dict):
        return {key: shape(part) for key, part in value.items()}
    return [shape(part) for part in value] if isinstance(value, list) else None


@pytest.mark.covers("APPR-3", "APPR-6")
async def test_a_pending_response_and_its_approval_look_as_the_page_says(
    gateway: Gateway,
) -> None:
    async with gateway.http() as caller, gateway.http("approver") as approver:
        answer = await caller.post("/v1/responses", json=CREATE)
        assert answer.headers["gateway-approval"] == "pending"
        written = example("api.md", "## The `gateway` field")
        assert written["status"] == answer.json()["status"]
        assert shape(written["gateway"]) == shape(answer.json()["gateway"])

        listed = (await approver.get("/v1/approvals?status=pending")).json()
        assert shape(example("approvals.md", "## Read and decide")) == shape(listed)

        one = listed["data"][0]
        decision = example("approvals.md", "## Read and decide", 1) | {
            "fingerprint": one["fingerprint"]
        }
        answer = await approver.post(f"/v1/approvals/{one['id']}/decision", json=decision)
        assert (answer.status_code, answer.json()["status"]) == (200, "denied")


@pytest.mark.covers("APPR-1", "APPR-6")
async def test_the_callers_own_answer_is_sent_as_the_page_says(stack: Stack) -> None:
    own = {
        "id": "own",
        "match": {"server": "github", "tool": "create_*"},
        "effect": "ask",
        "approval": {"by": "caller"},
    }
    with stack.gateway(rules=[*RULES[:1], own]) as gateway:
        async with gateway.http() as caller:
            asked = (await caller.post("/v1/responses", json=CREATE)).json()
            request = asked["output"][-1]
            assert request["type"] == "mcp_approval_request"
            answer = example("approvals.md", "## The caller decides itself")
            answer["previous_response_id"] = asked["id"]
            answer["input"][0]["approval_request_id"] = request["id"]
            done = (await caller.post("/v1/responses", json=answer)).json()
    assert [item["type"] for item in done["output"]] == ["mcp_call", "message"]


@pytest.mark.covers("APPR-9")
def test_a_webhook_looks_as_the_page_says() -> None:
    written = example("webhooks.md", "## What is sent")
    approval = Approval(
        id="apr_…",
        tenant="acme",
        batch_id="resp_…",
        turn_id="resp_…",
        response_id="resp_…",
        request_id="mcpr_…",
        upstream="sweden",
        server="github",
        server_identity="",
        tool="create_issue",
        arguments="{}",
        fingerprint="sha256:…",
        requester="svc:web",
        rule="writes",
        created_at=1795183643.772,
        expires_at=1795185443.772,
    )
    at = 1795183643.772
    event = approval_event(approval, id="evt_…", type="approval.requested", occurred_at=at)
    sent = payload(event, public_url="https://gateway.example.com")
    assert json.loads(sent) == written


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize("decision", ["approve", "deny"])
async def test_a_decision_that_is_repeated_is_answered_alike(
    gateway: Gateway, decision: str
) -> None:
    async with gateway.http() as caller, gateway.http("approver") as approver:
        word = marker()
        await caller.post("/v1/responses", json={**CREATE, "input": issue(word)})
        first = await decide(gateway, word, decision)
        body = {"decision": decision, "fingerprint": first["fingerprint"], "reason": "checked"}
        again = await approver.post(f"/v1/approvals/{first['id']}/decision", json=body)
    assert (again.status_code, again.json()) == (200, first)
