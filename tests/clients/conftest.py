"""Foreign clients from the npm registry, pinned and installed once per machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.conftest import require

INSTALL_SECONDS = 600


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mcp-gateway-tests"


def _all_required() -> bool:
    return os.environ.get("GATEWAY_TEST_REQUIRE") == "all"


class Npm:
    """Installs packages outside the repository, each in exactly one version."""

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}

    def install(self, package: str, version: str, *, megabytes: int = 0) -> Path:
        """Return the `node_modules` that a package is in.

        A large one is fetched only where nothing may be skipped: nobody who tries the tests
        expects such a download.
        """
        require("node")
        wanted = f"{package}@{version}"
        place = _cache() / wanted.replace("/", "+")
        modules = place / "node_modules"
        if modules.is_dir():
            return modules
        if megabytes > 100 and not _all_required():
            pytest.skip(f"{wanted} has {megabytes} MB; GATEWAY_TEST_REQUIRE=all installs it")
        if wanted not in self._failed:
            self._failed[wanted] = _install(require("npm"), wanted, modules)
        if reason := self._failed[wanted]:
            if _all_required():
                pytest.fail(reason)
            pytest.skip(reason)
        return modules


def _install(npm: str, wanted: str, modules: Path) -> str:
    """Install, and return why that failed."""
    modules.parent.mkdir(parents=True, exist_ok=True)
    options = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--fetch-retries=1"]
    with tempfile.TemporaryDirectory(dir=modules.parent, prefix=".new-") as fresh:
        try:
            done = subprocess.run(
                [npm, "install", "--prefix", fresh, *options, wanted],
                cwd=fresh,
                capture_output=True,
                text=True,
                timeout=INSTALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"npm did not install {wanted} in {INSTALL_SECONDS} s"
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            return f"npm cannot install {wanted}: {said[0] if said else done.returncode}"
        try:  # moved when it is complete: an interrupted run leaves no half
            Path(fresh, "node_modules").rename(modules)
        except OSError:
            if not modules.is_dir():  # else another run was faster
                raise
    return ""


@pytest.fixture(scope="session")
def npm() -> Npm:
    """Where packages come from."""
    return Npm()
