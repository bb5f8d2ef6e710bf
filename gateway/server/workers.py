"""Several serving processes behind one listening socket, each replaced when it dies.

uvicorn's own supervisor keeps the socket open while its workers drain, so that late connections
hang; this one closes its copy at once, and the workers close theirs after the lame duck.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from gateway.settings import Settings

_log = logging.getLogger("gateway.server")
_spawn = multiprocessing.get_context("spawn")

_START_FAILED = 3  # uvicorn's status for an application that did not start
_METRICS = "PROMETHEUS_MULTIPROC_DIR"


@dataclass(slots=True)
class _Worker:
    process: SpawnProcess
    started: float


class Supervisor:
    """Starts workers and watches over them until a signal.

    Args:
        settings: Given to each worker; holds references of secrets, never the secrets.
        listener: The bound socket that all of them accept on.
        workers: How many.
        work: What each process does, importable by name: settings, socket, the supervisor's id.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        *,
        workers: int,
        work: Callable[[Settings, socket.socket, int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._count = workers
        self._work = work or work_on_app
        self._workers: list[_Worker] = []
        self._signals = 0
        self._failed = False

    def run(self) -> int:
        """Serve until a signal; return the process's status."""
        with _metrics_directory(), self._wakeup() as wakeup:
            for _ in range(self._count):
                self._start()
            while not self._signals and not self._failed:
                self._wait(wakeup, timeout=None)
                self._replace_dead()
            self._stop(wakeup)
        return 1 if self._failed else 0

    def _start(self) -> None:
        arguments = (self._settings, self._listener, os.getpid())
        process = _spawn.Process(target=self._work, args=arguments, name="gateway-worker")
        process.start()
        self._workers.append(_Worker(process, time.monotonic()))

    @contextlib.contextmanager
    def _wakeup(self) -> Iterator[socket.socket]:
        """Let a signal end a wait: Python writes a byte for each into the socket."""
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            old = {
                number: signal.signal(number, self._on_signal)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                yield reader
            finally:
                for number, handler in old.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _wait(self, wakeup: socket.socket, timeout: float | None) -> None:
        wait([wakeup, *(worker.process.sentinel for worker in self._workers)], timeout)
        with contextlib.suppress(BlockingIOError):
            wakeup.recv(64)

    def _replace_dead(self) -> None:
        for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
            self._bury(worker)
            if worker.process.exitcode == _START_FAILED:
                self._failed = True  # the next one would fail the same way
            if self._signals or self._failed:
                return
            if time.monotonic() - worker.started < 1.0:
                time.sleep(0.5)  # do not spin on a worker that dies as it starts
            _log.error("A worker ended with %s and is replaced", worker.process.exitcode)
            self._start()

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        self._workers.remove(worker)
        if _METRICS in os.environ and worker.process.pid is not None:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]

    def _stop(self, wakeup: socket.socket) -> None:
        self._listener.close()
        server = self._settings.server
        deadline = time.monotonic() + server.lame_duck + server.grace_period + 10.0
        told = 0
        while self._workers:
            if told < max(self._signals, 1):  # a second signal is passed on, too
                told = max(self._signals, 1)
                self._tell(signal.SIGTERM)
            if time.monotonic() > deadline:
                self._tell(signal.SIGKILL)
            self._wait(wakeup, timeout=1.0)
            for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
                self._bury(worker)

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                if worker.process.pid is not None:
                    os.kill(worker.process.pid, number)


def work_on_app(settings: Settings, listener: socket.socket, parent: int) -> None:
    """Serve the gateway in a worker."""
    from gateway.server.process import serve

    bind_worker(parent)
    serve(settings, listener, signals=(signal.SIGTERM,))


def bind_worker(parent: int) -> None:
    """Leave the terminal's SIGINT to the supervisor, which tells us, and end with it."""
    from gateway.server.parent import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent, signal.SIGTERM)


@contextlib.contextmanager
def _metrics_directory() -> Iterator[None]:
    """Give the workers' metrics a common directory (OPS-1), unless the operator gave one."""
    if _METRICS in os.environ:
        yield
        return
    directory = tempfile.mkdtemp(prefix="gw-metrics-")
    os.environ[_METRICS] = directory
    try:
        yield
    finally:
        del os.environ[_METRICS]
        shutil.rmtree(directory, ignore_errors=True)


if sys.platform == "win32":  # pragma: no cover
    raise ImportError("several workers need a POSIX system")
