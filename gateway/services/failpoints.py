"""Named places at which a test ends the process, as a crash would (APPR-5).

`GATEWAY_FAILPOINT=after-claim:exit` with `GATEWAY_FAILPOINT_TEST=1` kills the process the first
time it comes to that place. The variables are read once; without them a place costs a call that
does nothing, and with the first alone the gateway refuses to start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from enum import Enum

VARIABLE = "GATEWAY_FAILPOINT"
SWITCH = "GATEWAY_FAILPOINT_TEST"


class Point(Enum):
    """The places, in the order in which a held turn comes to them."""

    BEFORE_OPEN_BATCH = "before-open-batch"
    AFTER_OPEN_BATCH = "after-open-batch"
    AFTER_VOTE = "after-vote"
    BEFORE_CLAIM = "before-claim"
    AFTER_CLAIM = "after-claim"
    BEFORE_DISPATCH = "before-dispatch"
    AFTER_DISPATCH = "after-dispatch"
    AFTER_POST = "after-post"
    BEFORE_FINISH = "before-finish"
    BEFORE_TERMINAL = "before-terminal"
    AFTER_TERMINAL = "after-terminal"
    BEFORE_DONE = "before-done"


def fault(environment: Mapping[str, str]) -> str | None:
    """Say what is wrong with the variables, in a line for the operator."""
    if VARIABLE not in environment:
        return None
    if environment.get(SWITCH) != "1":
        return f"{VARIABLE}: is for tests, and ends the gateway; take it out of the environment"
    name, _, action = environment[VARIABLE].partition(":")
    if action != "exit" or name not in {point.value for point in Point}:
        return f"{VARIABLE}: must be NAME:exit, with NAME of {', '.join(p.value for p in Point)}"
    return None


def _nothing(point: Point) -> None:
    """Go on."""


def _armed(environment: Mapping[str, str]) -> Callable[[Point], None]:
    if VARIABLE not in environment or fault(environment) is not None:
        return _nothing
    chosen = Point(environment[VARIABLE].partition(":")[0])

    def reached(point: Point) -> None:
        if point is chosen:
            os.kill(os.getpid(), signal.SIGKILL)  # no `finally` runs, as in a real crash

    return reached


reached = _armed(os.environ)
"""Tell that the process has come to a place."""
