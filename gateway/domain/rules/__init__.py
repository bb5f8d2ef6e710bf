"""Rules: who decides whether an MCP tool may run (APPR-1, APPR-13, MCP-4).

The most restrictive match wins: deny beats ask, ask beats allow. A known server without a match
asks; an unknown server is denied. A rule that cannot be evaluated never allows.

    model        what a rule says            predicates   tests of one argument
    arguments    arguments, read strictly    conditions   what must be true for a rule to match
    ruleset      deciding by all rules
"""

from gateway.domain.rules.arguments import MISSING, Pointer, parse_arguments
from gateway.domain.rules.conditions import Facts
from gateway.domain.rules.model import (
    ArgumentTest,
    Effect,
    Expression,
    InvalidRules,
    Match,
    PrincipalMatch,
    Rule,
    RuleError,
    RuleFault,
    Ruling,
    strictest,
)
from gateway.domain.rules.predicates import PREDICATES, Predicate, make_predicate
from gateway.domain.rules.ruleset import Finding, RuleSet, as_document

__all__ = [
    "MISSING",
    "PREDICATES",
    "ArgumentTest",
    "Effect",
    "Expression",
    "Facts",
    "Finding",
    "InvalidRules",
    "Match",
    "Pointer",
    "Predicate",
    "PrincipalMatch",
    "Rule",
    "RuleError",
    "RuleFault",
    "RuleSet",
    "Ruling",
    "as_document",
    "make_predicate",
    "parse_arguments",
    "strictest",
]
