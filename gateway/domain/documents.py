"""JSON as it came: strict checks, and documents whose values stay raw bytes (API-3, LIMIT-3).

A document is a mapping of key to raw JSON. Only what must change is decoded, so numbers, key
order inside values and unknown fields leave exactly as they came.
"""

from __future__ import annotations

import json
import re
from array import array
from itertools import accumulate
from typing import Any, NoReturn, TypeVar

import msgspec

from gateway.domain.errors import BadRequest

Raw = msgspec.Raw
Document = dict[str, msgspec.Raw]
"""A JSON object: keys decoded, values raw."""

NULL = Raw(b"null")
MAX_VALUES = 500_000
"""Most values in a body: to check millions of tiny ones takes seconds that all wait (LIMIT-3)."""

T = TypeVar("T")

_document = msgspec.json.Decoder(Document)
_raws = msgspec.json.Decoder(list[Raw])
_encoder = msgspec.json.Encoder()

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = bytes.maketrans(b"[]{}", b"\x01\xff\x01\xff")


class _DuplicateKey(ValueError):
    pass


def _check_pairs(pairs: list[tuple[str, Any]]) -> None:
    # Returns nothing on purpose: the check builds no tree, only looks.
    keys = {key for key, _ in pairs}
    if len(keys) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKey(key)
            seen.add(key)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_checker = json.JSONDecoder(object_pairs_hook=_check_pairs, parse_constant=_refuse_constant)


def parse_request(body: bytes, *, max_depth: int) -> Document:
    """Check a request body and return it as a document.

    Two readers may disagree about a repeated key, and what the rules saw would then not be what
    the upstream does; so duplicate keys are refused at every level.

    Raises:
        BadRequest: Not UTF-8, not JSON, NaN or Infinity, a duplicate key, nested deeper than
            `max_depth`, more than `MAX_VALUES` values, or not an object; code `invalid_json`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise _invalid(f"The body is not valid UTF-8 (byte {exc.start}).") from exc
    if count_exceeds(body, MAX_VALUES):
        raise _invalid(f"The body holds more than {MAX_VALUES:,} values.")
    if depth_exceeds(body, max_depth):
        raise _invalid(f"The body is nested deeper than {max_depth} levels.")
    try:
        _checker.decode(text)
    except _DuplicateKey as exc:
        raise _invalid(f"The body holds the key {str(exc)!r} twice in one object.") from exc
    except json.JSONDecodeError as exc:
        raise _invalid(f"The body is not valid JSON: {exc.msg} (character {exc.pos}).") from exc
    except (ValueError, RecursionError) as exc:
        raise _invalid(f"The body is not valid JSON: {exc}.") from exc
    try:
        return _document.decode(body)
    except msgspec.ValidationError as exc:
        raise _invalid("The body must be a JSON object.") from exc
    except msgspec.DecodeError as exc:
        raise _invalid(f"The body is not valid JSON: {exc}.") from exc


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, code="invalid_json")


def count_exceeds(body: bytes, limit: int) -> bool:
    """Tell whether JSON text holds more than about `limit` values, without parsing it."""
    if body.count(b'"') - body.count(b'\\"') > 4 * limit:  # a key and a text for each value
        return True
    if _separators(body) <= limit:
        return False
    return _separators(_STRING.sub(b"", body)) > limit


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def depth_exceeds(body: bytes, limit: int) -> bool:
    """Tell whether JSON text is nested deeper than `limit`, without parsing it."""
    if body.count(b"{") + body.count(b"[") <= limit:
        return False
    brackets = _STRING.sub(b"", body).translate(_STEP, _NOT_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0) > limit


def parse_document(data: bytes | Raw) -> Document:
    """Decode a JSON object of the gateway or an upstream.

    Raises:
        msgspec.DecodeError: It is not a JSON object.
    """
    return _document.decode(data)


def parse_array(data: bytes | Raw) -> list[Raw]:
    """Decode a JSON array, its elements raw."""
    return _raws.decode(data)


def encode(value: object) -> bytes:
    """Encode a value; raw parts go out as they are."""
    return _encoder.encode(value)


def raw(value: object) -> Raw:
    """Encode a value as a raw part of a document."""
    return Raw(_encoder.encode(value))


def field(document: Document, key: str, kind: type[T], *, param: str | None = None) -> T | None:
    """Decode one optional field; absent and null are both `None`.

    Raises:
        BadRequest: The value has another type; names the field.
    """
    value = document.get(key)
    if value is None or bytes(value) == b"null":
        return None
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.ValidationError as exc:
        name = param or key
        raise BadRequest(
            f"Invalid type for '{name}': {_reason(exc)}.", code="invalid_type", param=name
        ) from exc


def _reason(exc: msgspec.ValidationError) -> str:
    text = str(exc)
    return text[0].lower() + text[1:]
