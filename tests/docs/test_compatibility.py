"""docs/compatibility.md says what the tests run: each client, its version, what it can do."""

from __future__ import annotations

import json
import re
import sys
import tomllib

import pytest

from tests.clients import test_clients, test_codex
from tests.clients.catalog import CLIENTS, PROVED, SCENARIOS, Client
from tests.clients.conftest import LOCKS
from tests.docs.markdown import DOCS, ROOT, code, rows, section

PAGE = (DOCS / "compatibility.md").read_text()


@pytest.mark.covers("API-1")
def test_each_client_has_a_row_with_its_versions_and_what_it_can_do() -> None:
    written = {code(row[0]): row[1:] for row in rows(section(PAGE, "## Clients"))}
    assert written == {
        client.name: [
            ", ".join(f"{name} {version}" for name, version in client.packages.items()),
            *("no" if scenario in client.cannot else "yes" for scenario in SCENARIOS),
        ]
        for client in CLIENTS
    }
    (heading,) = [line for line in PAGE.splitlines() if line.startswith("| Client | Version | P")]
    assert heading.strip("| ").split(" | ")[2:] == list(SCENARIOS.values())


@pytest.mark.covers("API-1")
def test_each_cell_that_says_yes_is_a_test() -> None:
    assert {test_clients.__name__, test_codex.__name__} <= set(sys.modules)
    assert {
        (client.id, scenario)
        for client in CLIENTS
        for scenario in SCENARIOS
        if scenario not in client.cannot
    } == PROVED


@pytest.mark.covers("API-1")
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
def test_the_page_says_why_a_client_cannot_do_something(client: Client) -> None:
    _, _, notes = PAGE.partition(f"- **{client.name}**\n")
    notes = re.split(r"^(?:- |#)", notes, maxsplit=1, flags=re.MULTILINE)[0]
    for scenario, reason in client.cannot.items():
        assert f"{SCENARIOS[scenario]}: {reason}." in notes
    assert ("mcp_call" in client.repeats) == ("leaves MCP calls out of the history" not in notes)


@pytest.mark.covers("API-1")
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)
def test_the_lock_has_the_versions_that_are_named(client: Client) -> None:
    if client.offline:
        return  # one package, installed in the version that the catalog names
    if client.language == "node":
        lock = json.loads((LOCKS / client.lock / "package-lock.json").read_text())
        pins = {
            path.removeprefix("node_modules/"): one.get("version")
            for path, one in lock["packages"].items()
        }
    elif client.lock:
        lines = (LOCKS / f"{client.lock}.txt").read_text().splitlines()
        pins = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
    else:
        lock = tomllib.loads((ROOT / "uv.lock").read_text())
        pins = {one["name"]: one.get("version") for one in lock["package"]}
    assert {name: pins[name] for name in client.packages} == client.packages
