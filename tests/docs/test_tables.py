"""The tables of the documentation and the code say the same, in both directions."""

from __future__ import annotations

import ast
import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.adapters.metrics import PrometheusMeter
from gateway.adapters.redis import keys
from gateway.settings import Settings
from gateway.settings.fields import seconds
from tests.docs.markdown import DOCS, README, ROOT, code, rows, section
from tests.requirements import REQUIREMENTS

PAGES = [page.read_text() for page in (README, *sorted(DOCS.glob("**/*.md")))]


# Configuration


def models_of(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    if typing.get_origin(kind) is typing.Annotated:
        return models_of(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (tuple, typing.Union, types.UnionType):
        return [model for part in typing.get_args(kind) for model in models_of(part)]
    return []


def fields_of(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        models = models_of(field.annotation)
        listed = typing.get_origin(field.annotation) is tuple
        for inner in models:
            yield from fields_of(inner, f"{path}{name}{'[]' if listed else ''}.")
        if not models:
            yield path + name, field


FIELDS = dict(fields_of(Settings))
ROWS = {
    code(row[0]): row for row in rows((DOCS / "settings.md").read_text()) if row[-1] != "Default"
}


@pytest.mark.covers("RUN-6")
def test_every_setting_is_in_the_table_and_nothing_else_is() -> None:
    assert set(FIELDS) - set(ROWS) == set()
    assert set(ROWS) - set(FIELDS) == set()


@pytest.mark.covers("RUN-6")
@pytest.mark.parametrize("key", sorted(FIELDS))
def test_the_default_in_the_table_is_the_default(key: str) -> None:
    field, written = FIELDS[key], ROWS[key][-1]
    if field.is_required():
        assert written == "required"
    elif field.default is None:
        assert written == "none"
    else:
        value = tomllib.loads(f"value = {code(written)}")["value"]
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if isinstance(default, float):
            value = seconds(value)
        assert value == default


# Error codes


def codes_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "code":
            found |= texts(node.value)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == "default_code" and node.value:
                found |= texts(node.value)
            if isinstance(target, ast.Name) and target.id == "_CODES":
                assert isinstance(node.value, ast.Dict)
                for value in node.value.values:
                    assert isinstance(value, ast.Tuple)
                    found |= texts(value.elts[1])
        elif isinstance(node, ast.Tuple) and len(node.elts) == 3:  # (status, code, message)
            status = node.elts[0]
            if isinstance(status, ast.Constant) and isinstance(status.value, int):
                found |= texts(node.elts[1])
    return found


def texts(node: ast.expr) -> set[str]:
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp():
            return texts(node.body) | texts(node.orelse)
        case ast.JoinedStr():  # f"{key}_not_allowed", of where an MCP server is
            assert ast.unparse(node).endswith("_not_allowed'"), ast.unparse(node)
            return {f"{key}_not_allowed" for key in ("server_url", "connector_id", "tunnel_id")}
        case _:
            return set()


def raised() -> set[str]:
    folders = ("domain", "services", "web", "adapters", "server")
    paths = [path for folder in folders for path in (ROOT / "gateway" / folder).rglob("*.py")]
    return {text for path in paths for text in codes_of(path)}


@pytest.mark.covers("API-5")
def test_every_error_code_is_in_the_table_and_nothing_else_is() -> None:
    table = {code(row[0]) for row in rows((DOCS / "errors.md").read_text())}
    assert raised() - table == set()
    assert table - raised() == set()


@pytest.mark.covers("API-5")
def test_every_error_code_that_a_page_mentions_exists() -> None:
    mentioned = {code for page in PAGES for code in re.findall(r"\b[45]\d\d `([a-z_]+)`", page)}
    assert mentioned - raised() == set()
    assert len(mentioned) > 20


# Metrics


@pytest.mark.covers("OPS-1")
def test_every_metric_and_its_labels_are_in_the_table_and_nothing_else_is() -> None:
    meter = PrometheusMeter(models=(), servers=())
    exposed: dict[str, set[str]] = {}
    for metric in meter._registry._collector_to_names:
        name = metric._name + ("_total" if metric._type == "counter" else "")  # type: ignore[attr-defined]
        exposed[name] = set(metric._labelnames)  # type: ignore[attr-defined]
    table = {
        code(row[0]): {code(label) for label in row[1].split(",")}
        for row in rows((DOCS / "metrics.md").read_text())
    }
    assert table == exposed
    mentioned = {name for page in PAGES for name in re.findall(r"`(gateway_[a-z_]+)", page)}
    assert mentioned - set(exposed) == set()


# Other names


@pytest.mark.covers("RUN-6")
def test_every_setting_that_a_page_mentions_exists() -> None:
    sections = "|".join(Settings.model_fields)
    pattern = re.compile(rf"`((?:{sections})(?:\[\])?(?:\.[a-z_]+(?:\[\])?)+)`")
    mentioned = {key for page in PAGES for key in pattern.findall(page)}
    known = {key.replace("[]", "") for key in FIELDS}
    prefixes = {key.rpartition(".")[0] for key in known}
    others = {"gateway.toml"} | {
        f"policy.{event}" for event in ("loaded", "error", "shadow_decision")
    }
    lost = {key for key in mentioned if key.replace("[]", "") not in known | prefixes | others}
    assert lost == set()


def test_every_path_that_the_architecture_names_exists() -> None:
    page = (DOCS / "architecture.md").read_text()
    for name in re.findall(r"`((?:tests/)?[a-z_]+/[a-z_/]*(?:\.py|\.lua)?)`", page):
        assert (ROOT / name).exists() or (ROOT / "gateway" / name).exists(), name


@pytest.mark.covers("OPS-2")
def test_every_key_of_redis_is_in_the_architecture() -> None:
    page = (DOCS / "architecture.md").read_text()
    names = re.findall(r"^    gw:\{tenant\}:([a-z]+)", keys.__doc__ or "", re.MULTILINE)
    assert len(names) > 8
    assert {
        name for name in names if not re.search(rf"(?:gw:{{tenant}}|…):{name}\b", page)
    } == set()


# What fails open and closed


@pytest.mark.covers("OPS-4")
def test_every_row_says_open_or_closed() -> None:
    lines = section((DOCS / "security.md").read_text(), "## Open or closed").splitlines()
    table = [line for line in lines if line.startswith("|")][2:]
    assert len(table) > 15
    assert {line.rstrip("| ").rpartition(" ")[2] for line in table} == {"open", "closed"}


def test_what_is_for_later_is_among_the_limits() -> None:
    limits = section(README.read_text(), "## Limits of this version").lower()
    words = {
        "API-6": "websocket",
        "API-7": "images",
        "MCP-5": "tool pins",
        "MCP-6": "gateway-run",
        "APPR-8": "grants",
        "APPR-10": "console",
        "APPR-11": "audit",
        "APPR-12": "computer use",
        "LIMIT-1": "rate limits",
        "LIMIT-2": "azure admission",
        "STATE-3": "left-out reasoning",
    }
    later = {id_ for id_, requirement in REQUIREMENTS.items() if requirement.state == "later"}
    assert {id_ for id_ in later if words.get(id_, "(none)") not in limits} == set()
