"""Pure laws of rules, tools, fingerprints and scrubbing, for all inputs that hypothesis finds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.approvals import Approval, ApprovalStatus, answer, fingerprint, may_decide
from gateway.domain.attaching import attach
from gateway.domain.documents import raw
from gateway.domain.errors import GatewayError
from gateway.domain.identity import Principal, Role, Tenant
from gateway.domain.registry import McpServer
from gateway.domain.rules import Effect, Match, Rule, RuleSet
from gateway.domain.scrubbing import Scrubber
from gateway.domain.terms import ApprovalTerms
from gateway.domain.tools import Tools

NAMES = ["read", "write", "pay", "read_all", "*", "r*", "?ay"]
TOOLS = ["read", "write", "pay", "read_all", "other"]
TENANT = Tenant(id="t")

rules = st.lists(
    st.builds(
        Rule,
        id=st.just("r"),
        match=st.builds(
            Match, server=st.sampled_from(["s", "*", "x"]), tool=st.sampled_from(NAMES)
        ),
        effect=st.sampled_from(Effect),
        approval=st.builds(ApprovalTerms, by=st.sampled_from(["approver", "caller"])),
    ),
    max_size=6,
)
names = st.none() | st.lists(st.sampled_from(TOOLS), max_size=5)
filters = st.fixed_dictionaries({"tool_names": st.lists(st.sampled_from(TOOLS), max_size=4)})
wishes = st.sampled_from([None, "always", "never"]) | st.fixed_dictionaries(
    {}, optional={"always": st.none() | filters, "never": st.none() | filters}
)

STRICTNESS = {Effect.ALLOW: 0, Effect.ASK: 1, Effect.DENY: 2}


def tried(
    ruleset: RuleSet,
    offered: list[str] | None,
    tool: dict[str, Any],
    server: McpServer | None = None,
) -> Tools | None:
    server = server or McpServer(
        label="s", url="https://s.test", allowed_tools=None if offered is None else tuple(offered)
    )
    document = {"type": "mcp", "server_label": "s", **tool}
    try:
        return attach(
            [raw(document)], tenant=TENANT, servers={"s": server}, rules=ruleset, headers={}
        )
    except GatewayError:
        return None


@pytest.mark.covers("APPR-1", "MCP-4")
@given(rules, st.sampled_from(TOOLS))
def test_the_strictest_match_decides_and_no_rule_never_allows(found: list[Rule], tool: str) -> None:
    from fnmatch import fnmatchcase

    ruling = RuleSet(found, servers=["s"]).decide("s", tool)
    matching = [
        rule.effect
        for rule in found
        if fnmatchcase("s", rule.match.server) and fnmatchcase(tool, rule.match.tool)
    ]
    expected = max(matching, key=STRICTNESS.__getitem__) if matching else Effect.ASK
    assert ruling.effect is expected
    assert RuleSet(found, servers=[]).decide("s", tool).effect is Effect.DENY


@pytest.mark.covers("MCP-1", "MCP-4")
@given(rules, names, names, wishes)
def test_no_wish_of_a_caller_widens_what_rules_and_registry_say(
    found: list[Rule], offered: list[str] | None, narrowed: list[str] | None, wish: Any
) -> None:
    ruleset = RuleSet(found, servers=["s"])
    tools = tried(ruleset, offered, {"allowed_tools": narrowed, "require_approval": wish})
    if tools is None:
        return
    part = tools.attachment("s")
    assert part is not None
    sent = {key: json.loads(bytes(value)) for key, value in part.tool.items()}
    approval, allowed = sent["require_approval"], sent.get("allowed_tools")
    free = approval["never"]["tool_names"] if isinstance(approval, dict) else []
    assert approval == "always" or list(approval) == ["never"]
    for tool in free:
        assert ruleset.decide("s", tool).effect is Effect.ALLOW
        assert allowed is None or tool in allowed
    for tool in allowed or ():
        assert ruleset.decide("s", tool).effect is not Effect.DENY
        assert offered is None or tool in offered
        assert narrowed is None or tool in narrowed
    for tool in TOOLS:
        mine, theirs = part.ruling(ruleset, tool).effect, ruleset.decide("s", tool).effect
        assert STRICTNESS[mine] >= STRICTNESS[theirs]
        if tool in free:
            assert mine is Effect.ALLOW


@pytest.mark.covers("APPR-7", "MCP-4")
@given(rules, rules, names, names)
def test_tools_written_again_offer_nothing_new_and_free_only_what_is_allowed_now(
    before: list[Rule], after: list[Rule], offered: list[str] | None, later: list[str] | None
) -> None:
    tools = tried(RuleSet(before, servers=["s"]), offered, {})
    if tools is None:
        return
    now = RuleSet(after, servers=["s"])
    part = tools.recompiled(now, TENANT).attachment("s")
    assert part is not None
    sent = {key: json.loads(bytes(value)) for key, value in part.tool.items()}
    free = sent["require_approval"]
    for tool in free["never"]["tool_names"] if isinstance(free, dict) else ():
        assert now.decide("s", tool).effect is Effect.ALLOW
    was = tools.attachments[0].offered
    assert was is None or (part.offered or frozenset()) <= was
    closed = Tenant(id="t", mcp_servers=frozenset())
    assert tools.recompiled(now, closed).attachments == ()


text = st.text(max_size=12)


@pytest.mark.covers("APPR-7")
@given(st.lists(text, min_size=10, max_size=10), st.lists(text, min_size=10, max_size=10))
def test_different_calls_have_different_fingerprints(left: list[str], right: list[str]) -> None:
    keys = [
        "tenant",
        "principal",
        "chain_id",
        "response_id",
        "request_id",
        "server",
        "server_identity",
        "tool",
        "definition_hash",
        "arguments",
    ]
    one = fingerprint(**dict(zip(keys, left, strict=True)))
    two = fingerprint(**dict(zip(keys, right, strict=True)))
    assert (one == two) == (left == right)


def approval(**changes: Any) -> Approval:
    values: dict[str, Any] = dict.fromkeys(
        [
            "id",
            "tenant",
            "batch_id",
            "turn_id",
            "response_id",
            "request_id",
            "upstream",
            "server",
            "server_identity",
            "tool",
            "arguments",
            "fingerprint",
        ],
        "x",
    )
    return Approval(**{**values, "requester": "ann", "approvers": ("role:approver",), **changes})


@pytest.mark.covers("APPR-6")
@given(
    st.sampled_from(["ann", "bob", "eve"]),
    st.frozensets(st.sampled_from(Role)),
    st.sampled_from(["approver", "caller", "policy"]),
    st.sampled_from(["", "bob"]),
    st.booleans(),
)
def test_who_may_decide(
    subject: str, roles: frozenset[Role], by: Any, end_user: str, allow_self: bool
) -> None:
    actor = Principal(tenant="x", subject=subject, roles=roles)
    cause = may_decide(approval(by=by, end_user=end_user, allow_self=allow_self), actor)
    if by == "policy":
        assert cause == "not_an_approver"
    elif by == "caller":
        assert (cause is None) == (subject == "ann")
    elif not roles & {Role.APPROVER, Role.ADMIN}:
        assert cause == "not_an_approver"
    else:
        mine = subject in ("ann", end_user)
        assert cause == ("self_approval" if mine and not allow_self else None)


@pytest.mark.covers("APPR-6")
@pytest.mark.parametrize("status", [one for one in ApprovalStatus if one != "pending"])
def test_only_an_approval_is_told_as_one(status: ApprovalStatus) -> None:
    approve, reason = answer(approval(status=status))
    assert approve == (status is ApprovalStatus.APPROVED)
    assert approve or reason


secret_texts = st.text(
    st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=8, max_size=40
)


@pytest.mark.covers("MCP-3")
@given(secret_texts, st.sampled_from(["", "Bearer ", "token "]), st.booleans())
def test_a_secret_is_scrubbed_however_json_spells_it(
    secret: str, scheme: str, slashes: bool
) -> None:
    scrubber = Scrubber([scheme + secret])
    once = json.dumps({"a": f"x {secret} y"})
    twice = json.dumps({"a": once})
    for spelled in (once, twice):
        if slashes:
            spelled = spelled.replace("/", "\\/")
        scrubbed = scrubber.scrub(spelled.encode())
        inner = json.loads(scrubbed)["a"]
        assert secret not in inner or secret in "x [redacted] y"
        assert "[redacted]" in inner
    assert scrubber.scrub_raw(raw("nothing")) == raw("nothing")
