"""A process that ends with its parent, even when the parent is killed (RUN-1)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Bind this process to the life of `parent`, the id of the process that started it.

    Linux sends `number` when the parent's thread that started us ends; elsewhere a thread looks
    every half second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    else:
        watch = threading.Thread(target=_watch, args=(parent, number), daemon=True)
        watch.start()
    if os.getppid() != parent:  # it ended before we were bound
        os._exit(1)


def _watch(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), number)
