"""Values in arguments that nobody who decides has to read (APPR-6, APPR-10).

A rule names places (`redact`), and values that look like secrets are found by their form. Both are
masked where people look; the call itself, its fingerprint and the rules know the whole text. Only
values are masked, as narrowly as can be: a password in an address, not the address. What is not
masked stands there as the model wrote it, character by character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.domain.pointers import names_of, pointer_to

SIGN = "⟦masked, "
"""How each mask begins."""

_DEEPEST = 128
_SHORTEST = 4
_BLANKS = " \t\n\r"
_READ = json.JSONDecoder(strict=False).raw_decode
_LINE = r"\r?\n[A-Za-z0-9+/=]"
_SECRET = re.compile(
    "|".join(
        (
            # Only lines that can be key material: a mask must not hide a command.
            rf"-----BEGIN [A-Z ]{{0,30}}PRIVATE KEY-----(?:{_LINE}{{16,76}})*(?:{_LINE}{{1,76}})?",
            r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*",  # JSON Web Token
            r"\b[spr]k[-_][\w-]{20,}",  # OpenAI, Anthropic, Stripe
            r"\bgh[opsur]_\w{36,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}",
            r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
            r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[\w-]{35}",  # AWS, Google
            r"\bgw_[\w.-]{1,63}_[A-Za-z0-9]{43}\b",  # this gateway
            r"(?<=[Bb]earer )[\w+/.~=-]{16,}|(?<=[Bb]asic )[\w+/=-]{16,}",
            # Password of an address; what a shell would run, or who is written to, stays in sight.
            r"(?P<before>://[\w%.~+-]{0,256}:)[\w%.~*+=!-]{1,256}(?=@[\w.-]+(?:[:/?\s]|$))",
        )
    ),
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Masked:
    """Arguments for showing.

    Attributes:
        text: JSON, or what the model wrote instead.
        places: JSON pointers to what is masked, in order; "" is the whole text.
        hidden: The texts and numbers in values that a rule masks.
    """

    text: str
    places: Sequence[str] = ()
    hidden: Sequence[str] = field(default=(), repr=False)


def mask(arguments: str, redact: Sequence[str]) -> Masked:
    """Mask the raw arguments of a call.

    Args:
        redact: JSON pointers; the part `*` stands for any name or index.
    """
    if not redact and "\\" not in arguments and _SECRET.search(arguments) is None:
        return Masked(arguments)
    writer = _Writer(arguments, [names_of(pointer) for pointer in redact])
    try:
        return writer.write()
    except (ValueError, IndexError, RecursionError):
        pass  # no JSON, so that no place in it can be found
    if redact:
        return Masked(_mask(len(arguments)), ("",))
    shown = _SECRET.sub(_of_match, arguments)
    return Masked(shown, ("",) if shown != arguments else ())


def mask_prose(text: str, masked: Masked) -> str:
    """Mask what somebody else wrote about a call, wherever it says what is masked in the call."""
    if masked.places == ("",):
        return _mask(len(text))
    for one in sorted(masked.hidden, key=len, reverse=True):
        text = text.replace(one, _mask(len(one)))
    return _SECRET.sub(_of_match, text)


def is_masked(text: str) -> bool:
    """Tell whether a text was copied from a masked one."""
    return SIGN in text or json.dumps(SIGN)[1:-1] in text


def _mask(length: int) -> str:
    return f"{SIGN}{length} characters⟧"


def _of_match(match: re.Match[str]) -> str:
    before = match["before"] or ""
    return before + _mask(len(match.group()) - len(before))


class _Writer:
    """Copies JSON and puts masks in, without rewriting anything else."""

    def __init__(self, text: str, redact: Sequence[tuple[str, ...]]) -> None:
        self._text = text
        self._redact = redact
        self._out: list[str] = []
        self._places: dict[str, None] = {}
        self._hidden: list[str] = []

    def write(self) -> Masked:
        """Copy the whole text.

        Raises:
            ValueError, IndexError: It is no JSON, or nested too deeply.
        """
        end = self._blanks(self._value(self._blanks(0), ()))
        if end != len(self._text):
            raise ValueError("more than one value")
        return Masked("".join(self._out), tuple(self._places), tuple(self._hidden))

    def _value(self, at: int, path: tuple[str, ...]) -> int:
        if len(path) > _DEEPEST:
            raise ValueError("nested too deeply")
        if not any(_points_to(pointer, path) for pointer in self._redact):
            return self._shown(at, path)
        value, end = _READ(self._text, at)
        self._hidden += _leaves(value)
        length = len(value) if isinstance(value, str) else end - at
        self._put(json.dumps(_mask(length), ensure_ascii=False), path)
        return end

    def _shown(self, at: int, path: tuple[str, ...]) -> int:
        match self._text[at]:
            case "{":
                return self._members(at, path, "}")
            case "[":
                return self._members(at, path, "]")
            case '"':
                return self._string(at, path)[1]
            case _:
                _, end = _READ(self._text, at)
                self._out.append(self._text[at:end])
                return end

    def _members(self, at: int, path: tuple[str, ...], closing: str) -> int:
        at = self._blanks(self._sign(at, self._text[at]))
        index = 0
        while self._text[at] != closing or index:
            name = str(index)
            if closing == "}":
                name, at = self._string(at, path)
                at = self._blanks(self._sign(self._blanks(at), ":"))
            at = self._blanks(self._value(at, (*path, name)))
            index += 1
            if self._text[at] == closing:
                break
            at = self._blanks(self._sign(at, ","))
        return self._sign(at, closing)

    def _string(self, at: int, path: tuple[str, ...]) -> tuple[str, int]:
        if self._text[at] != '"':
            raise ValueError("a name is a text")
        said, end = _READ(self._text, at)
        shown = _SECRET.sub(_of_match, said)
        if shown == said:
            self._out.append(self._text[at:end])
        else:
            self._put(json.dumps(shown, ensure_ascii=False), path)
        return said, end

    def _put(self, masked: str, path: tuple[str, ...]) -> None:
        self._out.append(masked)
        self._places[pointer_to(_SECRET.sub(_of_match, part) for part in path)] = None

    def _sign(self, at: int, sign: str) -> int:
        if self._text[at] != sign:
            raise ValueError(f"no {sign}")
        self._out.append(sign)
        return at + 1

    def _blanks(self, at: int) -> int:
        begun = at
        while at < len(self._text) and self._text[at] in _BLANKS:
            at += 1
        if at > begun:
            self._out.append(self._text[begun:at])
        return at


def _leaves(value: Any) -> Iterator[str]:
    """Give the texts and numbers of a value that are long enough to be told from others."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif not isinstance(value, bool | None) and len(said := str(value).strip()) >= _SHORTEST:
        yield said


def _points_to(pointer: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(pointer) == len(path) and all(
        wanted in ("*", part) for wanted, part in zip(pointer, path, strict=True)
    )
