"""`when` expressions: what is refused when they are read, and that errors are no answers."""

from __future__ import annotations

import builtins
import json
import pickle
import re
from typing import Any

import pytest

from gateway.adapters.cel import MAX_LENGTH, compile_when
from gateway.domain.calls import Annotations, Call, ChainFacts
from gateway.domain.rules import Facts, RuleError

pytest.importorskip("cel", reason="needs the extra cel")


def facts(**arguments: Any) -> Facts:
    call = Call(
        tenant="acme",
        subject="svc:web",
        server="erp",
        server_identity="i",
        tool="pay",
        arguments=json.dumps(arguments),
        groups=frozenset({"finance"}),
        trust="reviewed",
        annotations=Annotations(destructive=True, verified=True),
        chain=ChainFacts(saw_private=True),
    )
    return Facts(call)


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("args.amount > 100", True),
        ("args.amount == 100.5", True),
        ("server == 'erp' && tool == 'pay' && trust == 'reviewed'", True),
        ("'finance' in principal.groups && principal.tenant == 'acme'", True),
        ("principal.subject.startsWith('svc:') && principal.end_user == ''", True),
        ("annotations.destructive && annotations.verified && !has(annotations.read_only)", True),
        ("chain.saw_private && !chain.saw_untrusted", True),
        ("args.to.all(x, x.endsWith('@corp.example'))", False),
        ("args.to.exists(x, x.matches('^[a-z]+@corp[.]example$'))", True),
        ("size(args.to) == 2 && !has(args.cc)", True),
        ("args.note == null || args.note == '.map(x, y)'", True),
        ("has(args.cc) && args.cc == 'x'", False),
    ],
)
def test_an_expression_sees_the_whole_call(source: str, expected: bool) -> None:
    given = facts(amount=100.5, to=["ann@corp.example", "eve@evil.example"], note=None)
    when = compile_when(source)
    assert when.holds(given) is expected
    assert pickle.loads(pickle.dumps(when)).holds(given) is expected


@pytest.mark.covers("APPR-1", "APPR-13")
@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("args.amount > 100", {}),
        ("args.amount > 100", {"amount": "500"}),
        ("args.amount > 100", {"amount": None}),
        ("args.amount", {"amount": 1}),
        ("args.flag", {"flag": "true"}),
        ("args.amount", {"amount": None}),
        ("args.amount > 100", {"amount": 2**70}),
        ("args.list[5] == 1", {"list": [1]}),
        ("1 / args.zero == 1", {"zero": 0}),
        ("args.text.matches(args.pattern)", {"text": "x", "pattern": "("}),
        ("args.list.all(x, x > 0)", {"list": [1] * 10_001}),
        ("int(args.text) > 1", {"text": "x"}),
        ("annotations.read_only", {}),
    ],
)
def test_an_error_or_an_answer_of_another_kind_is_no_answer(
    source: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(RuleError) as caught:
        compile_when(source).holds(facts(**arguments))
    assert "500" not in str(caught.value)


@pytest.mark.covers("APPR-13")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("args.amount >", "is not a CEL expression: 1:14:"),
        ("", "is not a CEL expression"),
        ("request.amount > 1", "unknown variable request; there is args, server"),
        ("amount > 1", "unknown variable amount"),
        ("timestamp('2020-01-01T00:00:00Z') < now()", "unknown function now"),
        ("args.a.lowerAscii() == 'x'", "unknown function lowerAscii"),
        ("args.l.map(x, x).size() > 0", "uses map()"),
        ("args.l.filter(x, x > 0).size() > 0", "uses filter()"),
        ("args.l.all(x, args.l.all(y, x == y))", "inside another"),
        ("args.l . exists ( x , args.l.all(y, x == y))", "inside another"),
        ("args.a == '" + "x" * MAX_LENGTH + "'", "at most"),
    ],
)
def test_what_could_never_be_evaluated_or_costs_too_much_is_refused(source: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        compile_when(source)


@pytest.mark.covers("APPR-13")
def test_without_the_extra_a_rule_with_when_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cel":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="needs the extra 'cel'"):
        compile_when("true")
