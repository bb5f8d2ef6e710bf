"""Foreign clients from npm and PyPI: pinned, outside the repository, installed once per machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.clients.catalog import Client
from tests.conftest import require
from tests.docs.markdown import DOCS, blocks, section
from tests.support.stack import Gateway

INSTALL_SECONDS = 600
LOCKS = Path(__file__).with_name("locks")
SCRIPTS = LOCKS.with_name("scripts")
OFFLINE = LOCKS.with_name("offline.py")

SECONDS = 120
"""How long one scenario may take, with the start of the client."""

CODEX_SETTINGS = next(
    block.text
    for block in blocks(section((DOCS / "api.md").read_text(), "## Addresses and credentials"))
    if block.language == "toml"
)

Run = Callable[..., Awaitable[Any]]

_QUIET = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mcp-gateway-tests"


def all_required() -> bool:
    """Tell whether no test may be skipped (RUN-3)."""
    return os.environ.get("GATEWAY_TEST_REQUIRE") == "all"


class Installer:
    """Runs each installation once, and remembers for the session which ones failed."""

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}

    def need(self, wanted: str, place: Path, *commands: list[str], inputs: Path | None) -> None:
        """Fill a place, or skip; where nothing may be skipped, fail.

        Args:
            commands: Run one after another, in a fresh directory that becomes the place when it
                is complete: an interrupted run leaves no half.
            inputs: A directory whose files the commands find there.
        """
        if wanted not in self._failed:
            self._failed[wanted] = _install(wanted, place, commands, inputs)
        if reason := self._failed[wanted]:
            if all_required():
                pytest.fail(reason)
            pytest.skip(reason)


class Npm(Installer):
    """Installs npm packages, each in exactly one version."""

    def install(self, package: str, version: str, *, megabytes: int = 0) -> Path:
        """Return the `node_modules` that a package is in.

        A large one is fetched only where nothing may be skipped: nobody who tries the tests
        expects such a download.
        """
        require("node")
        wanted = f"{package}@{version}"
        place = _cache() / wanted.replace("/", "+")
        if not (place / "node_modules").is_dir():
            if megabytes > 100 and not all_required():
                pytest.skip(f"{wanted} has {megabytes} MB; GATEWAY_TEST_REQUIRE=all installs it")
            command = [require("npm"), "install", "--prefix", ".", "--no-save", *_QUIET, wanted]
            self.need(wanted, place, command, inputs=None)
        return place / "node_modules"

    def locked(self, name: str) -> Path:
        """Return the `node_modules` of `locks/NAME/package-lock.json`."""
        require("node")
        lock = LOCKS / name / "package-lock.json"
        place = _cache() / f"{name}-{_digest(lock)}"
        if not (place / "node_modules").is_dir():
            self.need(
                name, place, [require("npm"), "ci", "--prefix", ".", *_QUIET], inputs=lock.parent
            )
        return place / "node_modules"


class Pypi(Installer):
    """Installs packages from PyPI, each client into a virtual environment of its own."""

    def locked(self, name: str) -> Path:
        """Return the Python whose packages are those of `locks/NAME.txt` and nothing else."""
        uv = os.environ.get("UV") or require("uv")
        lock = LOCKS / f"{name}.txt"
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        place = _cache() / f"{name}-{_digest(lock)}-py{running}"
        if not place.is_dir():
            fill = [
                uv,
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--only-binary",
                ":all:",
                "--compile-bytecode",
            ]
            self.need(
                name,
                place,
                [uv, "venv", "-q", "--relocatable", "--python", sys.executable, "env"],
                [*fill, "--python", "env/bin/python", "-r", str(lock)],
                inputs=None,
            )
        return place / "env" / "bin" / "python"


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:12]


def _install(wanted: str, place: Path, commands: tuple[list[str], ...], inputs: Path | None) -> str:
    """Install, and return why that failed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".new-") as directory:
        fresh = Path(directory, "fresh")
        fresh.mkdir()
        if inputs is not None:
            shutil.copytree(inputs, fresh, dirs_exist_ok=True)
        for command in commands:
            try:
                done = subprocess.run(
                    command, cwd=fresh, capture_output=True, text=True, timeout=INSTALL_SECONDS
                )
            except subprocess.TimeoutExpired:
                return f"{wanted} was not installed in {INSTALL_SECONDS} s"
            if done.returncode != 0:
                said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
                return f"{wanted} cannot be installed: {said[0] if said else done.returncode}"
        try:
            fresh.rename(place)
        except OSError:
            if not place.is_dir():  # else another run was faster
                raise
    return ""


@pytest.fixture(scope="session")
def npm() -> Npm:
    """Where packages for Node come from."""
    return Npm()


@pytest.fixture(scope="session")
def pypi() -> Pypi:
    """Where packages for Python come from."""
    return Pypi()


class Programs:
    """The scripts in Python, each ready to run: see `scripts/each.py`."""

    def __init__(self) -> None:
        self._ready: dict[tuple[str, str], subprocess.Popen[str]] = {}

    async def run(self, python: str, script: str, **wanted: Any) -> tuple[int, str, str]:
        """Run a script; return its status, its output and its errors."""
        program = self._ready.get((python, script)) or self._start(python, script)
        try:
            line = await anyio.to_thread.run_sync(_ask, program, wanted, abandon_on_cancel=True)
        except BaseException:
            program.kill()  # its answer would be taken for that of the next
            raise
        answer = json.loads(line)
        return answer["status"], answer["out"], answer["err"]

    def _start(self, python: str, script: str) -> subprocess.Popen[str]:
        program = self._ready[python, script] = subprocess.Popen(
            [python, SCRIPTS / "each.py", SCRIPTS / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        return program

    def end(self) -> None:
        """End them all."""
        for program in self._ready.values():
            with program:
                program.kill()


def _ask(program: subprocess.Popen[str], wanted: dict[str, Any]) -> str:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(json.dumps(wanted) + "\n")
    program.stdin.flush()
    return program.stdout.readline()


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}


@pytest.fixture(scope="module")
def programs() -> Iterator[Programs]:
    """The programs of a module, which end with it."""
    running = Programs()
    yield running
    running.end()


@pytest.fixture
def run(
    client: Client, scenario: str, npm: Npm, pypi: Pypi, programs: Programs, tmp_path: Path
) -> Run:
    """Run the scenario with the client as a program of its own."""
    environment: dict[str, str] = {}
    if client.offline:
        ((package, version),) = client.packages.items()
        modules = npm.install(package, version, megabytes=404)
        environment |= {"CODEX": str(modules / ".bin" / "codex"), "SCRATCH": str(tmp_path)}
    if client.language == "node":
        program = require("node")
        environment["CLIENT_MODULES"] = str(npm.locked(client.lock))
    else:
        program = str(pypi.locked(client.lock)) if client.lock else sys.executable

    async def run(gateway: Gateway, word: str = "") -> Any:
        arguments = [scenario, word, *client.arguments]
        given = {
            **environment,
            "GATEWAY_URL": gateway.url,
            "GATEWAY_KEY": gateway.keys["caller"],
            "CODEX_SETTINGS": CODEX_SETTINGS.replace("https://gateway.example.com", gateway.url),
        }
        with anyio.fail_after(SECONDS):
            if client.language == "python" and not client.offline:
                status, out, err = await programs.run(
                    program, client.script, arguments=arguments, environment=given
                )
            else:
                port = gateway.url.rpartition(":")[2]
                before = [sys.executable, str(OFFLINE), port] if client.offline else []
                done = await anyio.run_process(
                    [*before, program, str(SCRIPTS / client.script), *arguments],
                    check=False,
                    env=_environment() | given,
                )
                status, out, err = done.returncode, done.stdout.decode(), done.stderr.decode()
        assert status == 0, err[-3000:]
        return json.loads(out.splitlines()[-1])

    return run
