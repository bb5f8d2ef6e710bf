"""Reading the configuration: environment over file over defaults, every fault on one line."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource, SettingsError

from gateway.domain.rules import InvalidRules, Rule, RuleFault
from gateway.settings.lines import Location, rule_line
from gateway.settings.model import Settings, inconsistencies
from gateway.settings.rules import Candidates
from gateway.settings.section import Section

_PREFIX = "GATEWAY_"
_DELIMITER = "__"


class ConfigError(Exception):
    """The configuration cannot be used.

    Attributes:
        faults: One line each, naming the source and the key; never a value that may be secret.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings (RUN-6).

    Args:
        path: The file; else `GATEWAY_CONFIG`; else `gateway.toml` if there is one.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    path = path or _default_path()
    text = _text(path)
    sources = _Sources(
        name=str(path or "settings"),
        text=text,
        file=_parsed(path, text),
        environment=_environment(),
    )
    faults = [*_misplaced_variables(sources), *_plain_password(sources)]
    try:
        settings = Settings(**_merge(sources.file, sources.environment))
    except ValidationError as exc:
        errors = _telling(exc.errors(include_url=False, include_input=False))
        raise ConfigError(faults + [_line(error, sources) for error in errors]) from None
    if faults:
        raise ConfigError(faults)
    return settings


@dataclass(frozen=True, slots=True)
class _Sources:
    """What each source says, so that a fault can be laid at the right door."""

    name: str
    text: str
    file: dict[str, Any]
    environment: dict[str, Any]

    def origin(self, location: Location) -> str:
        """Name the file, or the variable that set the value."""
        node: Any = self.environment
        variable: list[str] = []
        for part in location:
            if not isinstance(node, dict) or part not in node:
                break
            node = node[part]
            variable.append(str(part).upper())
        if not variable or (isinstance(node, dict) and len(variable) < len(location)):
            return self.name
        while variable and _PREFIX + _DELIMITER.join(variable) not in _upper_names():
            variable.pop()
        return "environment " + _PREFIX + _DELIMITER.join(variable) if variable else self.name


def _upper_names() -> set[str]:
    return {name.upper() for name in os.environ}


def _default_path() -> Path | None:
    named = os.environ.get("GATEWAY_CONFIG")
    if named:
        return Path(named)
    usual = Path("gateway.toml")
    return usual if usual.is_file() else None


def _text(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not valid TOML: the file is not UTF-8"]) from None
    except OSError as exc:
        raise ConfigError(
            [f"{path}: cannot be read: {exc.strerror or type(exc).__name__}"]
        ) from None


def _parsed(path: Path | None, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError([f"{path}: not valid TOML: {exc}"]) from None


def _environment() -> dict[str, Any]:
    source = EnvSettingsSource(
        Settings, env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER, case_sensitive=False
    )
    try:
        return source()
    except SettingsError as exc:
        raise ConfigError([_bad_json() or f"environment: {exc}"]) from None


def _bad_json() -> str | None:
    """Find the variable whose JSON cannot be read; its value is not repeated."""
    for name, value in sorted(os.environ.items()):
        section, *inner = name.upper().removeprefix(_PREFIX).split(_DELIMITER)
        if not name.upper().startswith(_PREFIX) or section.lower() not in Settings.model_fields:
            continue
        if inner and not value.lstrip().startswith(("[", "{")):
            continue
        try:
            json.loads(value)
        except ValueError:
            return f"environment {name}: {'.'.join([section, *inner]).lower()}: must be JSON"
    return None


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        merged[key] = _merge(known, value) if both else value  # type: ignore[arg-type]  # checked
    return merged


def _misplaced_variables(sources: _Sources) -> Iterator[str]:
    """Refuse `GATEWAY_SERVR__PORT`: it was meant as a setting, and would change nothing.

    A name without `__` may be anything: a secret, or what Kubernetes adds for a service.
    """
    referenced = {value[4:].strip().upper() for value in _texts(sources) if value[:4] == "env:"}
    for name in sorted(_upper_names()):
        section, delimiter, _ = name.removeprefix(_PREFIX).partition(_DELIMITER)
        if not name.startswith(_PREFIX) or not delimiter or name in referenced:
            continue
        if section.lower() not in Settings.model_fields:
            hint = _hint(section.lower(), Settings.model_fields)
            yield f"environment {name}: unknown setting{hint}"


def _texts(node: object) -> Iterator[str]:
    if isinstance(node, _Sources):
        yield from _texts([node.file, node.environment])
    elif isinstance(node, dict):
        yield from _texts(list(node.values()))
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item)
    elif isinstance(node, str):
        yield node


def _plain_password(sources: _Sources) -> Iterator[str]:
    """Refuse a password in the file's Redis URL; the environment is a place for secrets."""
    redis = sources.file.get("redis")
    url = redis.get("url") if isinstance(redis, dict) else None
    if not isinstance(url, str):
        return
    try:
        secret = urlsplit(url).password
    except ValueError:
        return
    if secret:
        yield (
            f"{sources.name}: redis.url: must not hold a password; write a reference to the whole "
            "URL: env:NAME, file:PATH or keyvault:NAME"
        )


def _telling(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out "too short" of a list whose items are the fault."""
    inner = {error["loc"][:length] for error in errors for length in range(len(error["loc"]))}
    return [error for error in errors if error["type"] != "too_short" or error["loc"] not in inner]


def _line(error: ErrorDetails, sources: _Sources) -> str:
    merged = _merge(sources.file, sources.environment)
    location = _key_path(error["loc"], merged, missing=error["type"] == "missing")
    origin = sources.origin(location)
    fault = _rule_fault(location, error, merged)
    if fault is None:
        return f"{origin}: {_written(location)}: {_message(error)}"
    line = rule_line(sources.text, location) if origin == sources.name else None
    place = f"{origin}:{line}" if line else origin
    return ": ".join(filter(None, (f"{place}: {named_rule(fault)}", fault.path, fault.message)))


def _rule_fault(
    location: Location, error: ErrorDetails, data: Mapping[str, Any]
) -> RuleFault | None:
    """Read a fault inside a rule; its path begins below the rule."""
    if len(location) < 2 or location[0] != "rules" or not isinstance(location[1], int):
        return None
    rule = data["rules"][location[1]]
    name = rule.get("id") if isinstance(rule, dict) else None
    return RuleFault(
        path=_written(location[2:]) if len(location) > 2 else "",
        message=_message(error),
        index=location[1],
        rule=name if isinstance(name, str) else None,
    )


def named_rule(fault: RuleFault) -> str:
    """Name the rule of a fault: `rules[3] "writes"`."""
    return f'rules[{fault.index}] "{fault.rule}"' if fault.rule else f"rules[{fault.index}]"


def read_rules(rules: object, *, known: Settings) -> tuple[Rule, ...]:
    """Read candidates for the rules of a configuration (APPR-13).

    Args:
        rules: A list of JSON objects, or TOML text with `[[rules]]` tables.
        known: The configuration that they are for.

    Raises:
        InvalidRules: Some rule cannot be used.
    """
    text = rules if isinstance(rules, str) else ""
    data = {"rules": _tables(text) if isinstance(rules, str) else rules}
    try:
        candidates = Candidates(**data)
    except ValidationError as exc:
        errors = _telling(exc.errors(include_url=False, include_input=False))
        raise InvalidRules([_candidate_fault(error, data, text) for error in errors]) from None
    settings = known.model_copy(update={"rules": candidates.rules})
    faults = [
        _candidate_fault({"loc": loc, "msg": message, "type": "reference"}, data, text)
        for loc, message in inconsistencies(settings)
        if loc[0] == "rules"
    ]
    if faults:
        raise InvalidRules(faults)
    return settings.to_rules()


def _tables(text: str) -> object:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRules([RuleFault(path="", message=f"not valid TOML: {exc}")]) from None
    unknown = sorted(document.keys() - {"rules"})
    if unknown:
        message = f"{unknown[0]} is not part of the rules; only [[rules]] tables may be given"
        raise InvalidRules([RuleFault(path="", message=message)])
    return document.get("rules", [])


def _candidate_fault(error: Any, data: Mapping[str, Any], text: str) -> RuleFault:
    location = _key_path(error["loc"], data, missing=error["type"] == "missing")
    fault = _rule_fault(location, error, data)
    if fault is None:
        return RuleFault(path=_written(location), message=_message(error))
    return replace(fault, line=rule_line(text, location) if text else None)


def _key_path(location: Location, data: object, *, missing: bool) -> Location:
    """Leave out of a location what is no key: the tags of unions and the marks of dict keys."""
    kept: list[str | int] = []
    for place, part in enumerate(location):
        last = place == len(location) - 1
        known, data = _step(data, part)
        if known or (last and missing):
            kept.append(part)
    return tuple(kept)


def _step(data: object, part: str | int) -> tuple[bool, object]:
    if isinstance(data, dict) and part in data:
        return True, data[part]
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return True, data[part]
    return False, data


def _written(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(all)"


def _message(error: ErrorDetails) -> str:
    kind, text = error["type"], error["msg"]
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "unknown setting" + _hint(str(error["loc"][-1]), _all_names())
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(error.get("ctx", {}).get("pattern", ""), text)
    if kind.startswith("union_tag"):
        return 'must have type = "entra" or type = "api_key"'
    return text.removeprefix("Value error, ").replace("Input should", "must")


_PATTERNS = {
    r"^sha256:[0-9a-f]{64}$": "must be sha256: and 64 hex digits, as `gateway keys new` prints it",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$": (
        "must be 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9_.:@/+-]{0,254}$": (
        "must be letters, digits and . _ : @ / + -, the first a letter or digit"
    ),
}


def _hint(name: str, known: Mapping[str, object] | set[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _all_names() -> set[str]:
    models: list[type[BaseModel]] = [Settings, *Section.__subclasses__()]
    return {name for model in models for name in model.model_fields}
