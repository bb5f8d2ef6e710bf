"""docs/compatibility.md says what the tests run: each framework, its version, what it can do."""

from __future__ import annotations

import json
import re

import pytest

from tests.clients.conftest import LOCKS
from tests.clients.frameworks import FRAMEWORKS, SCENARIOS, Framework
from tests.docs.markdown import DOCS, code, rows, section

PAGE = (DOCS / "compatibility.md").read_text()


@pytest.mark.covers("API-1")
def test_each_framework_has_a_row_with_its_versions_and_what_it_can_do() -> None:
    written = {code(row[0]): row[1:] for row in rows(section(PAGE, "## Frameworks"))}
    assert written == {
        framework.name: [
            ", ".join(f"{name} {version}" for name, version in framework.packages.items()),
            *("no" if scenario in framework.cannot else "yes" for scenario in SCENARIOS),
        ]
        for framework in FRAMEWORKS
    }
    (heading,) = [line for line in PAGE.splitlines() if line.startswith("| Client | Version | P")]
    assert heading.strip("| ").split(" | ")[2:] == list(SCENARIOS.values())


@pytest.mark.covers("API-1")
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.lock)
def test_the_page_says_why_a_framework_cannot_do_something(framework: Framework) -> None:
    _, _, notes = PAGE.partition(f"- **{framework.name}**\n")
    notes = re.split(r"^(?:- |#)", notes, maxsplit=1, flags=re.MULTILINE)[0]
    for scenario, reason in framework.cannot.items():
        assert f"{SCENARIOS[scenario]}: {reason}." in notes
    assert ("mcp_call" in framework.repeats) == ("leaves MCP calls out of the history" not in notes)


@pytest.mark.covers("API-1")
@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.lock)
def test_the_lock_has_the_versions_that_are_named(framework: Framework) -> None:
    if framework.language == "node":
        lock = json.loads((LOCKS / framework.lock / "package-lock.json").read_text())
        locked = {
            name: lock["packages"][f"node_modules/{name}"]["version"] for name in framework.packages
        }
    else:
        lines = (LOCKS / f"{framework.lock}.txt").read_text().splitlines()
        pins = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
        locked = {name: pins[name] for name in framework.packages}
    assert locked == framework.packages
