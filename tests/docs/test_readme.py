"""README and tour are run as a newcomer runs them, and must print what they say; links lead somewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import require
from tests.docs.markdown import DOCS, README, ROOT, Block, anchors, blocks, section

LIMIT = 60.0


class Terminal:
    """An interpreter that is typed into, as a person pastes blocks into it."""

    def __init__(self, command: list[str], echo: str, environment: dict[str, str]) -> None:
        self._echo = echo
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        self._printed = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._blocks = 0

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._printed += line

    def paste(self, text: str) -> str:
        """Paste a block, and return the mark that is printed when it is done."""
        self._blocks += 1
        mark = f"[end of block {self._blocks}]"
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n" + self._echo.format(mark=mark) + "\n")
        self._process.stdin.flush()
        return mark

    def until(self, mark: str) -> str:
        """Return what was printed up to a mark since the mark before it."""
        deadline = time.monotonic() + LIMIT
        while mark not in self._printed:
            assert time.monotonic() < deadline, f"no end: {self._printed}"
            time.sleep(0.01)
        before = self._printed.partition(mark)[0]
        return re.sub(r"^.*\[end of block \d+\]\n", "", before, flags=re.DOTALL)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join(60)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


class Tour:
    """The terminals of the tour beside a running `gateway dev`."""

    def __init__(self, environment: dict[str, str], replaced: dict[str, str]) -> None:
        self._environment = environment
        self._replaced = replaced
        python = [sys.executable, "-q", "-i", "-u", "-c", "import sys; sys.ps1 = sys.ps2 = ''"]
        self._terminals = {
            "python": Terminal(python, "print('{mark}')", environment),
            "bash": Terminal(["bash"], "echo '{mark}'", environment),
        }
        self._waiting: dict[str, tuple[Terminal, str]] = {}
        self._last: tuple[Terminal, str] | None = None

    def run(self, block: Block) -> None:
        """Run a block; one with a name is left running."""
        text = self._here(block.text)
        terminal = self._terminals[block.language]
        mark = terminal.paste(text)
        if block.name:
            self._waiting[block.name] = (terminal, mark)
        else:
            terminal.until(mark)
            self._last = (terminal, mark)
        if block.name or "turn = client.responses.create" in text:
            self._await_approval()

    def check(self, block: Block) -> None:
        """Compare an output block with what its block printed."""
        found = self._waiting.pop(block.name) if block.name else self._last
        assert found is not None
        terminal, mark = found
        printed = terminal.until(mark)
        assert matches(self._here(block.text), printed), (
            f"the block at line {block.line} prints:\n{printed}"
        )

    def _here(self, text: str) -> str:
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def _await_approval(self) -> None:
        """A person looks a moment later."""
        environment = self._environment
        request = urllib.request.Request(
            environment["GATEWAY_URL"] + "/v1/approvals",
            headers={"Authorization": f"Bearer {environment['GATEWAY_APPROVER_KEY']}"},
        )
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            with urllib.request.urlopen(request) as answer:
                if b'"apr_' in answer.read():
                    return
            time.sleep(0.02)
        raise AssertionError("nothing waits for an approval")

    def close(self) -> None:
        for terminal in self._terminals.values():
            terminal.close()


def matches(expected: str, printed: str) -> bool:
    """Compare texts; `…` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[Tour]:
    for program in ("bash", "curl", "python3"):
        require(program)
    port, state = free_port(), tmp_path / "state"
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "OPENAI_", "AZURE_", "REDIS_"))
    }
    clean["COLUMNS"] = "160"
    clean["TMPDIR"] = str(tmp_path)
    with (tmp_path / "dev.log").open("w") as log:
        dev = subprocess.Popen(
            [sys.executable, "-m", "gateway", "dev", "--port", str(port), "--state-dir", state],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=clean,
        )
    try:
        _await_ready(dev, f"http://127.0.0.1:{port}/readyz")
        environment = clean | {
            "GATEWAY_URL": f"http://127.0.0.1:{port}",
            "GATEWAY_KEY": (state / "caller.key").read_text().strip(),
            "GATEWAY_APPROVER_KEY": (state / "approver.key").read_text().strip(),
            "PROVIDER_URL": (state / "emulator.log").read_text().partition(" ready on ")[2].strip(),
        }
        replaced = {"uv run gateway": f"{sys.executable} -m gateway", "8098": str(free_port())}
        running = Tour(environment, replaced)
        try:
            yield running
        finally:
            running.close()
    finally:
        dev.send_signal(signal.SIGINT)
        try:
            dev.wait(60)
        finally:
            dev.kill()
            dev.wait()


def _await_ready(dev: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        assert dev.poll() is None, "gateway dev ended"
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("gateway dev is not ready")


@pytest.mark.covers("RUN-1", "RUN-5", "APPR-2", "APPR-3", "STATE-1")
def test_the_readme_and_the_tour_print_what_they_say(tour: Tour) -> None:
    pages = (README, DOCS / "tour.md")
    steps = [
        block
        for page in pages
        for block in blocks(page.read_text())
        if block.use in ("tour", "output")
    ]
    assert len(steps) > 15
    for step in steps:
        if step.use == "tour":
            tour.run(step)
        else:
            tour.check(step)


@pytest.mark.covers("RUN-1", "RUN-3")
def test_the_two_lines_are_there() -> None:
    start = section(README.read_text(), "## Start")
    lines = [block.text.strip() for block in blocks(start)]
    assert lines == ["pip install uv && uv run gateway dev", "pip install uv && uv run pytest"]


PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("[!.]*/README.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_or_heading_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set[Path](), [README]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", page.read_text())
        found = {(page.parent / link).resolve() for link in links if "://" not in link}
        ahead += found - reached
    assert {page for page in PAGES if page not in reached} == set()
