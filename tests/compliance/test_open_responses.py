"""The compliance suite of Open Responses against the gateway; `nox -s compliance` runs it.

It is not published as a package, so OPEN_RESPONSES_SUITE names a checkout of
github.com/openresponses/openresponses. Nothing is written there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Npm
from tests.conftest import require
from tests.support.stack import Stack

CHECKOUT = "OPEN_RESPONSES_SUITE"
RUNNER = Path("bin", "compliance-test.ts")
FEWEST = 17
"""Tests of the suite of 2026-07; a checkout with fewer is not the suite that we mean."""

OURS = {
    # We promise more: chains outlive their socket (API-6) ...
    "websocket-reconnect-store-false-recovery",
    # ... and a turn may be continued again whatever became of another continuation (CHAIN-4).
    "websocket-failed-continuation-evicts-cache",
}
KEEPING_NOTHING = {
    # With `cache = "off"` nothing is kept of such a turn, in memory neither (STATE-4).
    "websocket-continuation",
}

Run = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="session")
def npm() -> Npm:
    return Npm()


@pytest.fixture(scope="session")
def suite(npm: Npm, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the whole suite against a base URL, with a key."""
    checkout = Path(os.environ.get(CHECKOUT, ""))
    if not os.environ.get(CHECKOUT) or not (checkout / RUNNER).is_file():
        pytest.fail(
            f"{CHECKOUT} must name a checkout of github.com/openresponses/openresponses; "
            f"{str(checkout) if os.environ.get(CHECKOUT) else 'nothing'} has no {RUNNER}"
        )
    place = tmp_path_factory.mktemp("suite")
    for part in ("bin", "src"):
        shutil.copytree(checkout / part, place / part)
    for file in (checkout / "package.json", Path(__file__).with_name("websocket.mjs")):
        shutil.copy(file, place)
    (place / "node_modules").symlink_to(npm.locked("open-responses"))

    def run(base_url: str, key: str) -> dict[str, Any]:
        done = subprocess.run(
            [
                require("node"),
                *("--import", "tsx", "--import", "./websocket.mjs"),
                *(str(RUNNER), "--json", "--base-url", base_url, "--model", "gpt-4.1"),
            ],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=150,
            env={"PATH": os.environ["PATH"], "OPENRESPONSES_API_KEY": key},
        )
        assert done.stdout.startswith("{"), done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def failures(report: dict[str, Any]) -> dict[str, list[str]]:
    """Return what failed and why, of a run that left nothing out."""
    results = {one["id"]: one for one in report["results"]}
    assert len(results) >= FEWEST
    assert {one["status"] for one in results.values()} <= {"passed", "failed"}
    return {name: one["errors"] for name, one in results.items() if one["status"] == "failed"}


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        ({}, OURS),
        ({"stateless": True}, OURS),
        ({"stateless": True, "cache": "off"}, KEEPING_NOTHING),
        ({"cache": "off"}, KEEPING_NOTHING),
    ],
    ids=["stored", "stateless", "stateless-keeping-nothing", "keeping-nothing"],
)
def test_every_test_passes_but_where_our_contract_says_otherwise(
    suite: Run, stack: Stack, tenant: dict[str, Any], expected: set[str]
) -> None:
    with stack.gateway(
        tenants=[{"id": "acme", **tenant}], api_keys=[stack.key("caller")]
    ) as gateway:
        failed = failures(suite(gateway.url + "/v1", gateway.keys["caller"]))
    assert set(failed) == expected, failed


@contextmanager
def development(state: Path) -> Iterator[str]:
    """Run `gateway dev`, and return its base URL."""
    command = [sys.executable, "-m", "gateway", "dev", "--port", "0", "--state-dir", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            shown = (re.search(r"gateway +(http://\S+/v1)", line) for line in process.stdout)
            yield next(found[1] for found in shown if found)
        finally:
            process.send_signal(signal.SIGINT)
            process.stdout.read()


def test_it_is_the_same_for_what_a_newcomer_starts(suite: Run, tmp_path: Path) -> None:
    with development(tmp_path) as base_url:
        failed = failures(suite(base_url, (tmp_path / "caller.key").read_text().strip()))
    assert set(failed) == OURS, failed
