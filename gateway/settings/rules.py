"""The rules of the configuration (APPR-1, APPR-13)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from gateway.adapters.cel import compile_when
from gateway.domain.grants import GrantTerms, Scope
from gateway.domain.identity import Role
from gateway.domain.registry import Trust
from gateway.domain.rules import (
    ArgumentTest,
    Effect,
    Expression,
    Match,
    Pointer,
    PrincipalMatch,
    Rule,
    make_predicate,
)
from gateway.domain.terms import ApprovalTerms, Escalation, OnTimeout, ReasonRequired
from gateway.settings.fields import (
    Approver,
    Count,
    Duration,
    HeaderName,
    Identifier,
    Name,
    Reference,
    WebUrl,
)
from gateway.settings.section import Section


class AnnotationsSettings(Section):
    """What a tool says of itself, or MCP's default where it is silent."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


class PrincipalSettings(Section):
    """For whom a call is; see `gateway.domain.rules.PrincipalMatch`."""

    tenants: tuple[Identifier, ...] | None = Field(None, min_length=1)
    groups: tuple[Name, ...] | None = Field(None, min_length=1)
    roles: tuple[Role, ...] | None = Field(None, min_length=1)
    subjects: tuple[Name, ...] | None = Field(None, min_length=1)
    end_users: tuple[Name, ...] | None = Field(None, min_length=1)

    def to_domain(self) -> PrincipalMatch:
        """Make the domain object."""
        return PrincipalMatch(
            tenants=None if self.tenants is None else frozenset(self.tenants),
            groups=None if self.groups is None else frozenset(self.groups),
            roles=None if self.roles is None else frozenset(self.roles),
            subjects=self.subjects,
            end_users=self.end_users,
        )


class ChainSettings(Section):
    """What the chain has seen (taint)."""

    saw_untrusted: bool | None = None
    saw_private: bool | None = None


def _arguments(value: object) -> tuple[ArgumentTest, ...]:
    """Read `{ "/amount" = { ge = 100 } }`, and report every fault with its place."""
    if not isinstance(value, dict):
        raise PydanticCustomError("rule", "must be a table of JSON pointers")
    tests: list[ArgumentTest] = []
    faults: list[InitErrorDetails] = []

    def fault(text: str, *loc: str) -> None:
        error = PydanticCustomError("rule", "{text}", {"text": text})
        faults.append(InitErrorDetails(type=error, loc=loc, input=None))

    for text, wanted in value.items():
        predicates = []
        try:
            pointer = Pointer.parse(text)
        except ValueError as exc:
            fault(str(exc), text)
            continue
        if not isinstance(wanted, dict) or not wanted:
            fault("must be a table of predicates such as { ge = 100 }", text)
            continue
        for name, operand in wanted.items():
            try:
                predicates.append(make_predicate(name, operand))
            except ValueError as exc:
                fault(str(exc), text, name)
        tests.append(ArgumentTest(pointer, tuple(predicates)))
    if faults:
        raise ValidationError.from_exception_data("args", faults, hide_input=True)
    return tuple(tests)


def _written_arguments(tests: tuple[ArgumentTest, ...] | None) -> dict[str, Any]:
    return {str(test.pointer): test.document for test in tests or ()}


Arguments = Annotated[Any, PlainValidator(_arguments), PlainSerializer(_written_arguments)]


def _flags(section: AnnotationsSettings | ChainSettings) -> tuple[tuple[str, bool], ...]:
    return tuple(
        (name, value)
        for name in type(section).model_fields
        if (value := getattr(section, name)) is not None
    )


class MatchSettings(Section):
    """Which calls a rule is about; see `gateway.domain.rules.Match`."""

    server: Name = "*"
    tool: Name = "*"
    args: Arguments = None
    annotations: AnnotationsSettings = AnnotationsSettings()
    trust: tuple[Trust, ...] | None = Field(None, min_length=1)
    principal: PrincipalSettings = PrincipalSettings()
    chain: ChainSettings = ChainSettings()

    def to_domain(self, when: Expression | None) -> Match:
        """Make the domain object."""
        return Match(
            server=self.server,
            tool=self.tool,
            args=self.args or (),
            annotations=_flags(self.annotations),
            trust=frozenset(self.trust or ()),
            principal=self.principal.to_domain(),
            chain=_flags(self.chain),
            when=when,
        )


class EscalationSettings(Section):
    """Who else may decide once nobody has for a while."""

    after: Duration
    to: tuple[Approver, ...] = Field(min_length=1)

    def to_domain(self) -> Escalation:
        """Make the domain object."""
        return Escalation(after=self.after, to=self.to)


MaxScope = Literal["none", "once", "exact_args", "tool", "server"]


class GrantSettings(Section):
    """What people may grant; see `gateway.domain.grants.GrantTerms` (APPR-8)."""

    max_scope: MaxScope = "exact_args"
    max_scope_destructive: MaxScope = "exact_args"
    max_ttl: Duration = 3600.0
    max_uses: Count | None = None
    with_quorum: bool = False

    def to_domain(self) -> GrantTerms:
        """Make the domain object."""
        return GrantTerms(
            max_scope=_scope(self.max_scope),
            max_scope_destructive=_scope(self.max_scope_destructive),
            max_ttl=self.max_ttl,
            max_uses=self.max_uses,
            with_quorum=self.with_quorum,
        )


def _scope(name: MaxScope) -> Scope | None:
    return None if name == "none" else Scope(name)


def _redact(pointers: tuple[str, ...]) -> tuple[str, ...]:
    for text in pointers:
        Pointer.parse(text)
    return pointers


class ApprovalSettings(Section):
    """How a person decides; see `gateway.domain.terms.ApprovalTerms`.

    Attributes:
        redact: Pointers; the part `*` stands for any name or index.
    """

    by: Literal["approver", "caller"] = "approver"
    approvers: tuple[Approver, ...] = Field(("role:approver",), min_length=1)
    quorum: Count = 1
    allow_self: bool = False
    timeout: Duration = 30 * 60.0
    on_timeout: OnTimeout = "deny"
    escalate: tuple[EscalationSettings, ...] = ()
    max_extensions: int = Field(3, ge=0, le=100)
    reason_required: ReasonRequired = "never"
    grants: GrantSettings = GrantSettings()
    redact: Annotated[tuple[str, ...], AfterValidator(_redact)] = Field((), max_length=100)

    @model_validator(mode="after")
    def _can_be_decided(self) -> Self:
        terms = self.to_domain()
        named = {name for name in terms.everyone if name.startswith("subject:")}
        if len(named) == len(terms.everyone) < self.quorum:
            raise PydanticCustomError(
                "rule",
                "quorum is {quorum}, but approvers and escalate name only {count} subject(s)",
                {"quorum": self.quorum, "count": len(named)},
            )
        times = [level.after for level in self.escalate]
        if times != sorted(set(times)):
            raise PydanticCustomError("rule", "escalate must be in the order of after, each once")
        if times and times[-1] >= self.timeout and self.on_timeout != "hold":
            raise PydanticCustomError("rule", "escalate comes too late: timeout is over by then")
        return self

    def to_domain(self) -> ApprovalTerms:
        """Make the domain object."""
        return ApprovalTerms(
            by=self.by,
            approvers=self.approvers,
            quorum=self.quorum,
            allow_self=self.allow_self,
            timeout=self.timeout,
            on_timeout=self.on_timeout,
            escalate=tuple(level.to_domain() for level in self.escalate),
            max_extensions=self.max_extensions,
            reason_required=self.reason_required,
            grants=self.grants.to_domain(),
            redact=self.redact,
        )


def _source(value: object) -> object:
    return getattr(value, "source", value)


def _expression(value: object) -> Expression:
    if not isinstance(value, str):
        raise PydanticCustomError("rule", "must be a CEL expression as text")
    return compile_when(value)


When = Annotated[Any, PlainValidator(_expression), PlainSerializer(_source)]


class RuleSettings(Section):
    """A rule (APPR-1, APPR-13); the most restrictive match wins.

    Attributes:
        when: A CEL expression that must also hold; needs the extra `cel`.
        mode: "shadow" evaluates and reports the rule, and decides nothing by it.
        on_error: What a call gets that the rule cannot be evaluated for; absent: deny where a
            deny rule meets a tool that may destroy, else ask.
    """

    id: Identifier
    match: MatchSettings = MatchSettings()
    when: When | None = None
    effect: Effect
    approval: ApprovalSettings = ApprovalSettings()
    reason: str | None = None
    mode: Literal["enforce", "shadow"] = "enforce"
    on_error: Literal["ask", "deny"] | None = None

    def to_domain(self) -> Rule:
        """Make the domain object."""
        return Rule(
            id=self.id,
            match=self.match.to_domain(self.when),
            effect=self.effect,
            approval=self.approval.to_domain(),
            reason=self.reason,
            mode=self.mode,
            on_error=self.on_error,
        )


class PolicySettings(Section):
    """An engine that is asked beside the rules; the more restrictive of both wins.

    Attributes:
        url: Where Open Policy Agent answers: `http://127.0.0.1:8181/v1/data/gateway/decision`.
        headers: Header name to the reference of its whole value.
        on_error: What a call gets that the engine has no answer for; absent: deny where the tool
            may destroy, else ask.
    """

    engine: Literal["rules", "opa"] = "rules"
    url: WebUrl | None = None
    timeout: Annotated[Duration, Field(le=30)] = 1.0
    headers: dict[HeaderName, Reference] = {}
    on_error: Literal["ask", "deny"] | None = None


class Candidates(Section):
    """Rules that are not in force."""

    rules: Annotated[tuple[RuleSettings, ...], Field(max_length=1000)]
