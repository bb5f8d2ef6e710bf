"""Arguments of a call against the pinned input schema of its tool (MCP-5).

Schemas come from servers that may be hostile, so nothing is fetched, patterns run in linear time,
and a schema that could take long is not used. What cannot be checked is never allowed by a rule
alone: a person is asked, and told why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from gateway.domain.documents import NULL, Raw, depth_exceeds
from gateway.domain.pointers import names_of
from gateway.domain.rules import RuleError, parse_arguments

MOST_STEPS = 2000
"""Most parts of a schema with each `$ref` written out: references to references multiply."""

MOST_WORK = 2_000_000
"""Most bytes of arguments times parts of the schema: each may be held against each."""

_DEEPEST_SCHEMA = 48
_PATTERN_BYTES = 1 << 17
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
)


class UnusableSchema(Exception):
    """A schema that arguments are not checked against; the text is its named reason."""


def arguments_fault(arguments: str, schema: Raw) -> str | None:
    """Say what is wrong with the arguments of a call, or that it cannot be known.

    Args:
        arguments: The raw JSON text from the upstream.
        schema: The pinned input schema; null where it was too large to be kept.

    Returns:
        `None` where they are as the tool says; else `<reason>: <where and what>`, which holds no
        value of the arguments.
    """
    try:
        value = parse_arguments(arguments or "{}")
    except RuleError as exc:
        return f"arguments_invalid: The arguments cannot be read: {exc}."
    try:
        validator, steps = _validator(bytes(schema))
    except UnusableSchema as exc:
        return str(exc)
    if len(arguments) * steps > MOST_WORK:
        return "arguments_too_large: They are too long to be checked against this schema."
    try:
        validator.validate(value)  # only the first fault: all of them may be millions
    except jsonschema_rs.ValidationError as error:
        pointer = "".join(f"/{part}" for part in error.instance_path)
        keyword = str(error.schema_path[-1]) if error.schema_path else "false"
        return f"arguments_invalid: '{pointer or '/'}' does not fit '{keyword}' of the schema."
    return None


@lru_cache(maxsize=1024)
def _validator(schema: bytes) -> tuple[jsonschema_rs.Validator, int]:
    if schema == bytes(NULL):
        raise UnusableSchema("schema_too_large: The schema is too large to be kept.")
    if depth_exceeds(schema, _DEEPEST_SCHEMA):
        raise UnusableSchema("schema_too_complex: The schema is nested too deeply.")
    document = msgspec.json.decode(schema)
    _check_references(document, top=True)
    steps = _steps(document, document, ())
    if steps > MOST_STEPS:
        raise UnusableSchema("schema_too_complex: The schema is too large to be checked against.")
    try:
        validator = jsonschema_rs.validator_for(
            document,
            offline=True,
            validate_formats=False,
            pattern_options=jsonschema_rs.RegexOptions(
                size_limit=_PATTERN_BYTES, dfa_size_limit=_PATTERN_BYTES
            ),
        )
    except (ValueError, TypeError) as exc:
        raise UnusableSchema("schema_invalid: The schema cannot be used.") from exc
    return validator, steps


def _check_references(node: Any, *, top: bool = False) -> None:
    """Refuse references to anything but a place in the schema itself.

    Raises:
        UnusableSchema: `schema_ref_not_allowed`.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and not _stays_inside(key, value, top=top):
                raise UnusableSchema(
                    f"schema_ref_not_allowed: '{key}' of the schema leads out of it."
                )
    for part in _parts(node):
        _check_references(part)


def _stays_inside(key: str, value: str, *, top: bool) -> bool:
    match key:
        case "$ref":
            return value == "#" or value.startswith("#/")
        case "$dynamicRef" | "$recursiveRef":
            return False
        case "$id":  # would give the references below it another base
            return top
        case "$schema":
            return top and value.rstrip("#") in _DRAFTS
        case _:
            return True


def _parts(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        yield from node.values()
    elif isinstance(node, list):
        yield from node


def _steps(node: Any, root: Any, within: tuple[str, ...]) -> int:
    """Count the parts of a schema with every reference written out; a circle has no end."""
    steps = 1
    if isinstance(node, dict) and isinstance(target := node.get("$ref"), str):
        if target in within or len(within) >= _DEEPEST_SCHEMA:
            raise UnusableSchema("schema_too_complex: The schema refers to itself, or too deep.")
        steps += _steps(_resolved(root, target), root, (*within, target))
    for part in _parts(node):
        steps += _steps(part, root, within)
        if steps > MOST_STEPS:
            break
    return steps


def _resolved(root: Any, target: str) -> Any:
    node = root
    for key in names_of(target):
        if isinstance(node, list) and _INDEX.fullmatch(key) and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, dict) and key in node:
            node = node[key]
        else:
            raise UnusableSchema("schema_ref_not_allowed: '$ref' of the schema leads nowhere.")
    return node
