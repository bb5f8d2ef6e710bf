"""Rules for one call, against an oracle that knows no cache and no compilation (APPR-13)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.calls import Annotations, Call, ChainFacts
from gateway.domain.registry import McpServer
from gateway.domain.rules import Effect, Rule, RuleError, RuleSet, make_predicate
from gateway.domain.rules.arguments import MAX_BYTES, MISSING, Pointer, parse_arguments
from gateway.settings import RuleSettings

STRICTNESS = {Effect.ALLOW: 0, Effect.ASK: 1, Effect.DENY: 2}
NO_ANSWER = "no answer"

# Predicates


def said(name: str, operand: Any, value: Any) -> bool | str:
    try:
        return make_predicate(name, operand)(value)
    except RuleError:
        return NO_ANSWER


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("name", "operand", "value", "expected"),
    [
        ("eq", "a", "a", True),
        ("eq", "a", "A", False),
        ("eq", 1, 1, True),
        ("eq", 1, Decimal("1.0"), True),
        ("eq", 1, True, NO_ANSWER),
        ("eq", True, 1, NO_ANSWER),
        ("eq", "1", 1, NO_ANSWER),
        ("eq", "e\u0301", "\u00e9", False),
        ("eq", 9007199254740993, 9007199254740992, False),
        ("ne", "a", "b", True),
        ("ne", "a", "a", False),
        ("ne", "a", None, NO_ANSWER),
        ("ne", "a", MISSING, NO_ANSWER),
        ("in", ["a", "b"], "b", True),
        ("in", ["a", "b"], "c", False),
        ("in", ["a", "b"], ["a"], NO_ANSWER),
        ("in", [1, "a"], True, NO_ANSWER),
        ("ge", 100, 100, True),
        ("gt", 100, 100, False),
        ("gt", 100.1, Decimal("100.1"), False),
        ("ge", 0.3, Decimal("0.30000000000000004"), True),
        ("le", 0.3, Decimal("0.30000000000000004"), False),
        ("lt", 100, Decimal("99.999"), True),
        ("lt", 100, "5", NO_ANSWER),
        ("lt", 100, True, NO_ANSWER),
        ("lt", 100, None, NO_ANSWER),
        ("lt", 100, MISSING, NO_ANSWER),
        ("glob", "src/*", "src/a/b", True),
        ("glob", "src/*", "SRC/a", False),
        ("glob", "*", "x" * 9000, NO_ANSWER),
        ("glob", "*", 1, NO_ANSWER),
        ("regex", "[a-z]+", "abc", True),
        ("regex", "[a-z]+", "abc1", False),
        ("regex", ".*evil.*", "a\nevil\n", True),
        ("regex", "(a+)+", "a" * 8000 + "b", False),
        ("regex", "(?i)abc", "ABC", True),
        ("len", 2, "ab", True),
        ("len", {"le": 2}, [1, 2, 3], False),
        ("len", {"ge": 1, "le": 2}, {"a": 1}, True),
        ("len", 2, 12, NO_ANSWER),
        ("exists", True, MISSING, False),
        ("exists", False, MISSING, True),
        ("exists", True, None, True),
    ],
)
def test_a_predicate_has_one_answer_or_none(
    name: str, operand: Any, value: Any, expected: bool | str
) -> None:
    assert said(name, operand, value) == expected


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://api.corp.example/x", True),
        ("HTTPS://API.CORP.EXAMPLE:8443/x?y#z", True),
        ("https://api.corp.example.", True),
        ("wss://deep.er.corp.example", True),
        ("https://corp.example/", False),
        ("https://apex.example/", True),
        ("https://evil.example/?api.corp.example", False),
        ("https://api.corp.example.evil.example", False),
        ("https://evilcorp.example", False),
        ("https://10.0.0.1/", True),
        ("https://167772161/", NO_ANSWER),
        ("https://0x0a.1/", NO_ANSWER),
        ("https://10.0.1/", NO_ANSWER),
        ("https://010.0.0.1/", NO_ANSWER),
        ("https://[::1]/", True),
        ("https://[0:0:0:0:0:0:0:1]/", True),
        ("https://[::g]/", NO_ANSWER),
        ("https://api.corp.example@evil.example/", NO_ANSWER),
        ("https://evil.example\\@api.corp.example/", NO_ANSWER),
        ("https://api.corp.example%2eevil.example/", NO_ANSWER),
        ("https://api。corp.example/", NO_ANSWER),
        (" https://api.corp.example/", NO_ANSWER),
        ("https:/api.corp.example/", NO_ANSWER),
        ("//api.corp.example/", NO_ANSWER),
        ("javascript:alert(1)", NO_ANSWER),
        ("https://a..corp.example/", NO_ANSWER),
        ("https://api.corp.example/\nx", NO_ANSWER),
        ("", NO_ANSWER),
        (7, NO_ANSWER),
    ],
)
def test_a_host_is_read_in_one_way_only(url: Any, expected: bool | str) -> None:
    assert said("host_in", ["*.corp.example", "apex.example", "10.0.0.1", "[::1]"], url) == expected


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ann@corp.example", True),
        ("ann@CORP.example", True),
        ("ann@mail.corp.example", False),
        ("ann@eu.sub.example", True),
        ("ann@sub.example", False),
        ("ann@corp.example.evil.example", False),
        ("ann@corp.example, eve@evil.example", NO_ANSWER),
        ("eve@evil.example@corp.example", NO_ANSWER),
        ('"ann@corp.example" <eve@evil.example>', NO_ANSWER),
        ("ann@corp.example\neve@evil.example", NO_ANSWER),
        ("ann@corp.example\n", NO_ANSWER),
        (["ann@corp.example"], NO_ANSWER),
    ],
)
def test_the_domain_of_an_address_is_exact_or_below(address: Any, expected: bool | str) -> None:
    assert said("domain_of_email_in", ["corp.example", "*.sub.example"], address) == expected


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/srv/data", True),
        ("/srv/data/", True),
        ("/srv/data/a.b/..c", True),
        ("/srv/database", False),
        ("/etc/passwd", False),
        ("/", False),
        ("/srv/data/../../etc/passwd", NO_ANSWER),
        ("/srv/data/./x", NO_ANSWER),
        ("/srv//data", NO_ANSWER),
        ("/srv/data/%2e%2e/%2e%2e/etc", NO_ANSWER),
        ("/srv/data/..%2fetc", NO_ANSWER),
        ("/srv/data/%252e%252e/etc", NO_ANSWER),
        ("/srv/data\\..\\..\\etc", NO_ANSWER),
        ("/srv/data/\uff0e\uff0e/etc", NO_ANSWER),
        ("/srv/data/\u2025/etc", NO_ANSWER),
        ("/srv/data/\x00/etc", NO_ANSWER),
        ("srv/data", NO_ANSWER),
        ("../srv/data", NO_ANSWER),
        ("file:///srv/data", NO_ANSWER),
        ("~/x", NO_ANSWER),
        ("/srv/data/été", True),
        (["/srv/data"], NO_ANSWER),
    ],
)
def test_a_path_cannot_climb_out(path: Any, expected: bool | str) -> None:
    assert said("under_path", "/srv/data", path) == expected
    assert said("under_path", "/srv/data/", path) == expected


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("name", "operand", "text"),
    [
        ("gee", 1, "did you mean ge?"),
        ("wholly_unlike", 1, "there is eq, ne, in"),
        ("ge", "1", "must be a number"),
        ("ge", True, "must be a number"),
        ("ge", float("inf"), "finite"),
        ("eq", None, "must be a string, number or boolean"),
        ("eq", [1], "must be a string, number or boolean"),
        ("in", [], "must be a list"),
        ("regex", "(", "RE2"),
        ("regex", "(?=a)b", "RE2"),
        ("regex", r"(a)\1", "RE2"),
        ("glob", "", "1 to 256"),
        ("len", -1, "whole number"),
        ("len", {"near": 1}, "whole number"),
        ("len", True, "whole number"),
        ("exists", "yes", "true or false"),
        ("host_in", ["https://corp.example"], "names such as"),
        ("host_in", ["*"], "names such as"),
        ("domain_of_email_in", "corp.example", "list of strings"),
        ("under_path", "data", "absolute path"),
        ("under_path", "/srv/../etc", "absolute path"),
    ],
)
def test_an_operand_that_does_not_fit_is_refused(name: str, operand: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("?", r"\?")):
        make_predicate(name, operand)


# Arguments

MALFORMED = [
    '{"a": 1, "a": 2}',
    '{"b": {"a": 1, "\\u0061": 2}}',
    '{"a": NaN}',
    '{"a": -Infinity}',
    '{"a": 1e999}',
    '{"a": 1e-99999999999999999999}',
    '{"a": ' + "9" * 400 + "}",
    '{"a": ' + "9" * 5000 + "}",
    '{"a": "' + "x" * MAX_BYTES + '"}',
    '{"a": ' + "[" * 100 + "]" * 100 + "}",
    '{"a": "\\ud800"}',
    '{"a": "\ud800"}',
    '{"\\udc00": 1}',
    "[1]",
    '"text"',
    "null",
    "",
    "{",
    '{"a": 1} {"a": 2}',
    "{'a': 1}",
    '{"a": 01}',
]


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize("text", MALFORMED)
def test_arguments_that_readers_may_read_differently_are_not_read(text: str) -> None:
    with pytest.raises(RuleError):
        parse_arguments(text)


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("pointer", "expected"),
    [
        ("/a", 1),
        ("/list/1", "y"),
        ("/list/01", MISSING),
        ("/list/-", MISSING),
        ("/list/2", MISSING),
        ("/a~1b", 2),
        ("/m~0n", 3),
        ("/", 4),
        ("/a/b", MISSING),
        ("/none", None),
        ("/nothing", MISSING),
    ],
)
def test_a_pointer_finds_what_rfc_6901_says(pointer: str, expected: Any) -> None:
    document = {"a": 1, "list": ["x", "y"], "a/b": 2, "m~n": 3, "": 4, "none": None}
    assert Pointer.parse(pointer).find(document) is expected or (
        Pointer.parse(pointer).find(document) == expected
    )


# Rules

flag = st.booleans()
ids = st.uuids().map(lambda one: "r" + one.hex[:8])
NUMBER = st.sampled_from([0, 99, 100, 100.5, 101])
arguments_wanted = st.dictionaries(
    st.sampled_from(["/amount", "/to"]),
    st.fixed_dictionaries(
        {}, optional={"ge": NUMBER, "lt": NUMBER, "exists": flag, "eq": st.sampled_from(["x", 100])}
    ).filter(bool),
    max_size=2,
)
matches = st.fixed_dictionaries(
    {},
    optional={
        "server": st.sampled_from(["s", "*", "t"]),
        "tool": st.sampled_from(["pay", "p*", "*", "read"]),
        "args": arguments_wanted,
        "annotations": st.dictionaries(
            st.sampled_from(["read_only", "destructive", "open_world"]), flag, max_size=2
        ),
        "trust": st.lists(
            st.sampled_from(["first_party", "reviewed", "untrusted"]), min_size=1, unique=True
        ),
        "principal": st.fixed_dictionaries(
            {},
            optional={
                "groups": st.just(["finance"]),
                "subjects": st.sampled_from([["svc:*"], ["user:*"]]),
                "end_users": st.just(["ann"]),
                "tenants": st.just(["acme"]),
                "roles": st.just(["caller"]),
            },
        ),
        "chain": st.dictionaries(
            st.sampled_from(["saw_untrusted", "saw_private"]), flag, max_size=2
        ),
    },
)
documents: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.fixed_dictionaries(
        {"id": ids, "match": matches, "effect": st.sampled_from(["allow", "ask", "deny"])},
        optional={
            "mode": st.sampled_from(["enforce", "shadow"]),
            "on_error": st.sampled_from(["ask", "deny"]),
            "approval": st.fixed_dictionaries(
                {"by": st.sampled_from(["approver", "caller"]), "quorum": st.integers(1, 3)}
            ),
        },
    ),
    max_size=5,
    unique_by=lambda rule: str(rule["id"]),
)
said_of_a_tool = st.none() | flag
claims_of_tools = st.builds(
    Annotations,
    read_only=said_of_a_tool,
    destructive=said_of_a_tool,
    open_world=said_of_a_tool,
    verified=flag,
)
well_formed = st.fixed_dictionaries(
    {},
    optional={
        "amount": st.sampled_from([0, 99, 100, 100.5, 101, "100", None, True]),
        "to": st.sampled_from(["x", "y", 100, ["x"]]),
    },
).map(json.dumps)
TRUST: dict[str, Any] = {"s": "reviewed", "t": "untrusted"}


@st.composite
def calls(draw: Any, arguments: Any = well_formed) -> Call:
    server = draw(st.sampled_from(["s", "t"]))
    return Call(
        tenant=draw(st.sampled_from(["acme", "rival"])),
        subject=draw(st.sampled_from(["svc:web", "user:ann"])),
        server=server,
        server_identity="i",
        tool=draw(st.sampled_from(["pay", "read"])),
        arguments=draw(arguments),
        roles=draw(st.sampled_from([frozenset({"caller"}), frozenset()])),
        groups=draw(st.sampled_from([frozenset({"finance", "x"}), frozenset()])),
        end_user=draw(st.sampled_from(["", "ann"])),
        trust=TRUST[server],
        annotations=draw(claims_of_tools),
        chain=ChainFacts(saw_untrusted=draw(flag), saw_private=draw(flag)),
    )


def made(found: list[dict[str, Any]]) -> list[Rule]:
    return [RuleSettings(**one).to_domain() for one in found]


def naive(found: list[dict[str, Any]], call: Call, *, shadow: bool = False) -> Effect:
    """Decide by the documents themselves, the plain way."""
    effects = []
    for rule in found:
        if rule.get("mode") == "shadow" and not shadow:
            continue
        answers = list(naive_answers(rule, call))
        if False in answers:
            continue
        if NO_ANSWER in answers:
            effects.append(naive_doubt(rule, call))
        else:
            effects.append(Effect(rule["effect"]))
    try:
        parse_arguments(call.arguments)
    except RuleError:
        effects.append(Effect.ASK)
    return max(effects, key=STRICTNESS.__getitem__) if effects else Effect.ASK


def naive_doubt(rule: dict[str, Any], call: Call) -> Effect:
    if "on_error" in rule:
        return Effect(rule["on_error"])
    said = call.annotations
    harmless = said.verified and (said.read_only is True or said.destructive is False)
    return Effect.DENY if rule["effect"] == "deny" and not harmless else Effect.ASK


def naive_answers(rule: dict[str, Any], call: Call) -> Iterator[bool | str]:
    match = rule["match"]
    yield fnmatchcase(call.server, match.get("server", "*"))
    yield fnmatchcase(call.tool, match.get("tool", "*"))
    if "trust" in match:
        yield call.trust in match["trust"]
    principal = match.get("principal", {})
    own: dict[str, Any] = {"groups": call.groups, "roles": call.roles, "tenants": {call.tenant}}
    for kind, have in own.items():
        if kind in principal:
            yield any(name in have for name in principal[kind])
    for kind, name in (("subjects", call.subject), ("end_users", call.end_user)):
        if kind in principal:
            yield any(fnmatchcase(name, glob) for glob in principal[kind])
    for name, value in match.get("chain", {}).items():
        yield getattr(call.chain, name) == value
    for name, value in match.get("annotations", {}).items():
        yield naive_annotation(call.annotations, name, value, rule["effect"])
    for pointer, predicates in match.get("args", {}).items():
        for name, operand in predicates.items():
            yield naive_predicate(call, pointer, name, operand)


def naive_annotation(said: Annotations, name: str, value: bool, effect: str) -> bool:
    default = {"read_only": False, "destructive": True, "open_world": True}[name]
    claim = getattr(said, name)
    if said.verified:
        return (default if claim is None else claim) == value
    return effect != "allow" and (claim == value or default == value)


def naive_predicate(call: Call, pointer: str, name: str, operand: Any) -> bool | str:
    try:
        arguments = parse_arguments(call.arguments)
    except RuleError:
        return NO_ANSWER
    value = arguments.get(pointer[1:], MISSING)
    if name == "exists":
        return bool((value is not MISSING) == operand)
    if value is MISSING:
        return NO_ANSWER
    number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    if number != (not isinstance(operand, str)) or (not number and not isinstance(value, str)):
        return NO_ANSWER
    bound = Decimal(str(operand)) if number else operand
    return bool({"ge": value >= bound, "lt": value < bound, "eq": value == bound}[name])


any_arguments = well_formed | st.sampled_from(MALFORMED) | st.text(max_size=20)


@pytest.mark.covers("APPR-13")
@given(documents, st.lists(calls(any_arguments), min_size=1, max_size=4))
def test_compiled_and_cached_rules_say_what_a_naive_reading_says(
    found: list[dict[str, Any]], asked: list[Call]
) -> None:
    rules = RuleSet(made(found), servers=TRUST)
    for call in [*asked, *asked]:  # the second time from the cache
        ruling = rules.judge(call)
        assert ruling.effect is naive(found, call)
        with_shadow = naive(found, call, shadow=True)
        assert (ruling.shadow.effect if ruling.shadow else ruling.effect) is with_shadow
        findings = rules.explain(call)
        assert ruling.matched == tuple(one.rule.id for one in findings if one.outcome == "matched")
        assert [finding.rule.id for finding in findings] == [rule["id"] for rule in found]


@pytest.mark.covers("APPR-1", "APPR-13")
@given(documents, calls(any_arguments))
def test_what_cannot_be_evaluated_is_never_allowed(found: list[dict[str, Any]], call: Call) -> None:
    ruling = RuleSet(made(found), servers=TRUST).judge(call)
    assert not (ruling.errors and ruling.effect is Effect.ALLOW)
    if call.arguments in MALFORMED:
        assert ruling.errors
    enforced = [rule for rule in found if rule.get("mode") != "shadow"]
    for rule in enforced:
        answers = list(naive_answers(rule, call))
        if NO_ANSWER in answers and False not in answers:
            assert any(error.startswith(rule["id"] + ": ") for error in ruling.errors)


@pytest.mark.covers("MCP-4", "APPR-13")
@given(documents, calls())
def test_what_is_said_once_and_for_all_holds_for_each_call(
    found: list[dict[str, Any]], call: Call
) -> None:
    rules = RuleSet(made(found), servers=TRUST)
    once, now = rules.decide(call.server, call.tool), rules.judge(call)
    if once.effect is not Effect.ASK:
        assert now.effect is once.effect
    engine = RuleSet(made(found), servers=TRUST, engine="opa")
    assert engine.decide(call.server, call.tool).effect is (
        Effect.ASK if once.effect is Effect.ALLOW else once.effect
    )


@pytest.mark.covers("APPR-13")
@given(documents, calls(), claims_of_tools)
def test_no_claim_of_an_untrusted_server_makes_a_ruling_laxer(
    found: list[dict[str, Any]], call: Call, claims: Annotations
) -> None:
    rules = RuleSet(made(found), servers=TRUST)
    claims = msgspec.structs.replace(claims, verified=False)
    silent = rules.judge(with_annotations(call, Annotations()))
    assert rules.judge(with_annotations(call, claims)).strictness[0] >= silent.strictness[0]


def with_annotations(call: Call, said: Annotations) -> Call:
    return replace(call, annotations=said)


@pytest.mark.covers("APPR-13")
@given(documents, calls(any_arguments))
def test_rules_in_shadow_decide_nothing(found: list[dict[str, Any]], call: Call) -> None:
    without = [rule for rule in found if rule.get("mode") != "shadow"]
    shadowed, bare = RuleSet(made(found), servers=TRUST), RuleSet(made(without), servers=TRUST)
    one, other = shadowed.judge(call), bare.judge(call)
    assert (one.effect, one.rule, one.errors) == (other.effect, other.rule, other.errors)
    decided = [rules.decide(call.server, call.tool) for rules in (shadowed, bare)]
    assert decided[0].effect is decided[1].effect


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("server", "untrusted", "private"),
    [
        (McpServer(label="a", url="u", trust="first_party"), False, False),
        (McpServer(label="a", url="u", trust="untrusted"), True, False),
        (McpServer(label="a", url="u", trust="reviewed", private=True), False, True),
        (None, True, True),
    ],
)
def test_a_chain_remembers_what_it_has_seen(
    server: McpServer | None, untrusted: bool, private: bool
) -> None:
    facts = ChainFacts(id="resp_1", rounds=2).after(server)
    assert facts == ChainFacts(id="resp_1", rounds=2, saw_untrusted=untrusted, saw_private=private)
    calm = McpServer(label="b", url="u", trust="first_party")
    assert facts.after(calm) == facts  # nothing is ever forgotten


@pytest.mark.covers("APPR-13")
def test_the_version_changes_with_what_is_decided_by() -> None:
    rule = {"id": "a", "match": {"args": {"/x": {"ge": 1}}}, "effect": "ask"}
    other = {"id": "a", "match": {"args": {"/x": {"ge": 2}}}, "effect": "ask"}
    versions = {
        RuleSet(made([rule]), servers=TRUST).version,
        RuleSet(made([other]), servers=TRUST).version,
        RuleSet(made([{**rule, "mode": "shadow"}]), servers=TRUST).version,
        RuleSet(made([rule]), servers=TRUST, engine="opa").version,
        RuleSet(made([rule]), servers={**TRUST, "t": "reviewed"}).version,
    }
    assert len(versions) == 5
    assert RuleSet(made([rule]), servers=TRUST).version in versions
