"""`when` expressions in CEL, by the extra `cel` (APPR-13).

What an expression can cost is bounded when it is read: it knows a fixed list of variables and
functions, goes over a list once, and sees arguments of a bounded number of values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from typing_extensions import override

from gateway.domain.documents import count_exceeds
from gateway.domain.rules import Expression, Facts, RuleError

MAX_LENGTH = 2048
"""Longest expression, in characters."""

MAX_VALUES = 10_000
"""Most values in arguments that an expression looks at."""

VARIABLES = {
    "args": "the arguments",
    "server": "the server's label",
    "tool": "the tool's name",
    "trust": "the server's trust",
    "annotations": "what the tool says of itself; a key is missing where it does not",
    "principal": "tenant, subject, roles, groups, end_user",
    "chain": "saw_untrusted, saw_private",
}
"""The variables of an expression, with their meaning."""

_FUNCTIONS = frozenset(
    [
        "size",
        "contains",
        "startsWith",
        "endsWith",
        "matches",
        "string",
        "int",
        "uint",
        "double",
        "bytes",
        "dyn",
        "type",
        "has",
        "timestamp",
        "duration",
        "getFullYear",
        "getMonth",
        "getDate",
        "getDayOfMonth",
        "getDayOfWeek",
        "getDayOfYear",
        "getHours",
        "getMinutes",
        "getSeconds",
    ]
)
_TYPES = frozenset(["int", "uint", "double", "string", "bytes", "bool", "list", "map"])
_LITERAL = re.compile(
    r'"""(?:.|\n)*?"""|\'\'\'(?:.|\n)*?\'\'\'|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\''
)
_MACRO = re.compile(r"\.\s*(\w+)\s*\(\s*([A-Za-z_]\w*)\s*,")
_ONCE_OVER = frozenset({"all", "exists", "exists_one", "existsOne"})
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def compile_when(source: str) -> Expression:
    """Compile an expression.

    Raises:
        ValueError: It is not CEL, uses what is not there, could cost too much, or the extra is
            not installed.
    """
    try:
        import cel
    except ImportError:
        raise ValueError("needs the extra 'cel': install mcp-conversation-gateway[cel]") from None
    if len(source) > MAX_LENGTH:
        raise ValueError(f"must be at most {MAX_LENGTH} characters")
    try:
        program = cel.compile(source)
    except Exception as exc:  # noqa: BLE001  # whatever the parser raises; its first line names the place
        raise ValueError(f"is not a CEL expression: {_place(str(exc))}") from None
    for fault in _faults(source, program.variables(), program.functions()):
        raise ValueError(fault)
    return _CelExpression(source, program)


def _place(text: str) -> str:
    found = re.search(r"ERROR: <input>:(\d+:\d+: .*)", text)
    return found.group(1)[:200] if found else text.splitlines()[0][:200]


def _faults(source: str, variables: list[str], functions: list[str]) -> Iterator[str]:
    bare = _LITERAL.sub("''", source)
    macros = list(_MACRO.finditer(bare))
    for macro in macros:
        if macro.group(1) not in _ONCE_OVER:
            yield f"uses {macro.group(1)}(); over a list there is {', '.join(sorted(_ONCE_OVER))}"
        if _MACRO.search(bare, macro.end(), _end(bare, macro.end())):
            yield "goes over a list inside another such expression, which may take too long"
    known = VARIABLES.keys() | _TYPES | {macro.group(2) for macro in macros}
    for name in variables:
        if name not in known:
            yield f"uses the unknown variable {name}; there is {', '.join(VARIABLES)}"
    for name in functions:
        if name[0] in _PLAIN and name not in _FUNCTIONS | _ONCE_OVER:
            yield f"uses the unknown function {name}"


def _end(text: str, start: int) -> int:
    """Find where the call whose inside begins at `start` ends."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


@dataclass(slots=True)
class _CelExpression(Expression):
    _source: str
    _program: Any = field(compare=False, repr=False)

    @property
    @override
    def source(self) -> str:
        return self._source

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return compile_when, (self._source,)  # settings go to worker processes

    @override
    def holds(self, facts: Facts) -> bool:
        context = _contexts.of(facts)
        try:
            answer = self._program.execute(context)
        except BaseException as exc:  # a panic of the engine is no Exception
            if isinstance(exc, KeyboardInterrupt | SystemExit):
                raise
            raise RuleError(f"when: {_WHY.get(type(exc), 'the expression fails')}") from None
        if not isinstance(answer, bool):
            raise RuleError("when: the expression gives neither true nor false")
        return answer


_WHY: Mapping[type[BaseException], str] = {
    KeyError: "something it reads is missing",
    IndexError: "something it reads is missing",
    TypeError: "something it reads is of another type",
}


class _Contexts:
    """Keeps the context of the last call: to make one costs more than to evaluate."""

    def __init__(self) -> None:
        self._last: tuple[Facts, Any] | None = None

    def of(self, facts: Facts) -> Any:
        if self._last is None or self._last[0] is not facts:
            from cel import Context

            self._last = (facts, Context(variables=_variables(facts)))
        return self._last[1]


_contexts = _Contexts()


def _variables(facts: Facts) -> dict[str, Any]:
    if count_exceeds(facts.call.arguments.encode(), MAX_VALUES):
        raise RuleError(f"when: the arguments hold more than {MAX_VALUES:,} values")
    return facts.document(_plain(facts.arguments))


def _plain(value: Any) -> Any:
    """Write arguments with the numbers that CEL has."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case Decimal():
            return float(value)
        case bool():
            return value
        case int() if not -(2**63) <= value < 2**63:
            raise RuleError("when: an integer is beyond 64 bits")
        case _:
            return value
