"""Measure the gateway beside nginx and the bare upstream, in one run: see bench/README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop

from bench import processes
from bench.fake_upstream import EVENTS, JSON_SIZE
from bench.load import LoadError, Request, Result, closed_loop, hold_open, once, open_loop
from bench.processes import Server, StartError, Workplace

CONNECTIONS: Final = 32
RATE: Final = 300
_FILES: Final = 16384
_WHOLE_CORE: Final = 0.95
_INPUT = "Summarise the open issues about streaming, newest first. " * 4
_PLAIN = {"model": "gpt-4.1", "instructions": "Answer briefly.", "input": _INPUT}
_TOOLS = [{"type": "mcp", "server_label": "tracker"}]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run takes."""

    rounds: int
    seconds: float
    streams: int
    extras: bool


QUICK: Final = Plan(rounds=1, seconds=1.0, streams=200, extras=False)
FULL: Final = Plan(rounds=3, seconds=4.0, streams=1000, extras=True)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that takes turns, and the key it wants."""

    server: Server
    key: str

    def request(self, body: Mapping[str, Any]) -> Request:
        """Make a request to it."""
        return Request.post(self.server.url, json.dumps(body).encode(), key=self.key)


@dataclass(slots=True)
class Row:
    """One line of the table: a value per target, medians of the rounds."""

    name: str
    unit: str
    floor: float | None = None
    at_most: bool = False
    values: dict[str, list[float]] = field(default_factory=dict)
    cost: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)

    def add(self, target: str, value: float) -> None:
        """Note a value of one round."""
        self.values.setdefault(target, []).append(value)

    def median(self, target: str) -> float | None:
        """Return the median over the rounds."""
        values = self.values.get(target)
        return statistics.median(values) if values else None

    def holds(self) -> bool:
        """Tell whether the gateway keeps the floor."""
        value = self.median("gateway")
        if self.floor is None or value is None:
            return True
        return value <= self.floor if self.at_most else value >= self.floor


async def check(target: Target) -> None:
    """Make sure that a target passes whole answers on.

    Raises:
        LoadError: Something is missing.
    """
    body = json.loads(await once(target.request(_PLAIN)))
    text = body["output"][0]["content"][0]["text"]
    if body["status"] != "completed" or len(text) < JSON_SIZE / 4:
        raise LoadError(f"{target.server.name}: not the upstream's answer: {str(body)[:300]}")
    events = await once(target.request({**_PLAIN, "stream": True}))
    seen = events.count(b"\ndata: ") + events.startswith(b"data: ")
    if seen != EVENTS or b'"response.completed"' not in events:
        raise LoadError(f"{target.server.name}: {seen} of {EVENTS} events")


async def throughput(
    row: Row, body: Mapping[str, Any], targets: list[Target], plan: Plan, *, events: bool = False
) -> None:
    """Measure answers (or events) per second with all connections busy, target after target."""
    for target in targets:
        before = target.server.cpu()
        result = await closed_loop(
            target.request(body), connections=CONNECTIONS, seconds=plan.seconds
        )
        used = target.server.cpu() - before
        count = result.events if events else result.requests
        row.add(target.server.name, result.event_rate if events else result.rate)
        if target.server.name == "gateway" and count:
            row.cost.append(used / count * 1e6)
            row.share.append(used / result.seconds)


async def latency(p50: Row, p99: Row, targets: list[Target], plan: Plan) -> None:
    """Measure what a target adds to the latency at a fixed rate."""
    results: dict[str, Result] = {}
    for target in targets:
        results[target.server.name] = await open_loop(
            target.request(_PLAIN), rate=RATE, seconds=plan.seconds
        )
    direct = results["direct"]
    for name, result in results.items():
        base50, base99 = (0.0, 0.0) if name == "direct" else _p50_p99(direct)
        p50.add(name, _p50_p99(result)[0] - base50)
        p99.add(name, _p50_p99(result)[1] - base99)


def _p50_p99(result: Result) -> tuple[float, float]:
    return result.percentile(0.5), result.percentile(0.99)


async def memory(row: Row, targets: list[Target], plan: Plan) -> None:
    """Measure what idle open streams cost in memory."""
    for target in targets:
        request = target.request({**_PLAIN, "model": "hold", "stream": True})
        async with hold_open(request, streams=20):
            pass
        await asyncio.sleep(0.5)
        before = target.server.megabytes()
        async with hold_open(request, streams=plan.streams):
            await asyncio.sleep(1)
            grown = target.server.megabytes() - before
        row.add(target.server.name, grown / plan.streams * 1000)
        await asyncio.sleep(0.5)


async def measure(targets: list[Target], plan: Plan) -> list[Row]:
    """Measure everything; the targets take turns in each round, so that they share the noise."""
    idle = Row("idle streams", "MB per 1,000", floor=45, at_most=True)
    turns = Row("JSON turns", "per s", floor=1200)
    events = Row("burst events", "per s", floor=150_000)
    p50 = Row(f"p50 at {RATE}/s", "ms added", floor=2, at_most=True)
    p99 = Row(f"p99 at {RATE}/s", "ms added")
    tools = Row("JSON turns, MCP tool", "per s")
    stateless = Row("JSON turns, store false", "per s")
    for target in targets:
        await check(target)
    await memory(idle, [target for target in targets if target.server.name != "direct"], plan)
    for _ in range(plan.rounds):
        await throughput(turns, _PLAIN, targets, plan)
        await throughput(events, {**_PLAIN, "stream": True}, targets, plan, events=True)
        await latency(p50, p99, targets, plan)
        if plan.extras:
            await throughput(tools, {**_PLAIN, "tools": _TOOLS}, targets[-1:], plan)
            await throughput(stateless, {**_PLAIN, "store": False}, targets[-1:], plan)
    return [turns, *([tools, stateless] if plan.extras else []), events, p50, p99, idle]


def table(rows: list[Row]) -> str:
    """Lay the rows out for reading."""
    head = ["", "", "direct", "nginx", "gateway", "of nginx", "CPU µs each", "floor", ""]
    lines = [head]
    for row in rows:
        nginx, own = row.median("nginx"), row.median("gateway")
        ratio = f"{own / nginx:.3g}" if nginx and own and nginx > 0 else "-"
        limit = "" if row.floor is None else f"{'≤' if row.at_most else '≥'} {_number(row.floor)}"
        verdict = "" if row.floor is None else ("ok" if row.holds() else "MISSED")
        cost = _number(statistics.median(row.cost)) if row.cost else ""
        values = [_number(row.median(name)) for name in ("direct", "nginx", "gateway")]
        lines.append([row.name, row.unit, *values, ratio, cost, limit, verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


async def run(plan: Plan, directory: Path) -> list[Row]:
    """Start everything, measure, stop everything."""
    cores = sorted(os.sched_getaffinity(0))
    place = Workplace(directory, subject_core=cores[-1], other_core=cores[0])
    if len(cores) == 1:
        print("note: one core for all, so the numbers are far too low")
    os.sched_setaffinity(0, {place.other_core})
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(processes.fake_upstream(place))
        front = stack.enter_context(processes.nginx(place, upstream))
        redis = stack.enter_context(processes.valkey(place))
        own, key = stack.enter_context(processes.gateway(place, upstream, redis))
        targets = [Target(Server("direct", upstream.pid, upstream.port), key)]
        if front is None:
            print("note: nginx is not installed, so it is left out")
        else:
            targets.append(Target(front, key))
        targets.append(Target(own, key))
        return await measure(targets, plan)


def main() -> int:
    """Run the bench and print its table; 0 if it could measure and, if asked, the floors hold."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    parser.add_argument("--enforce", action="store_true", help="fail if a floor is missed")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as directory:
        Path(directory).chmod(0o755)  # for nginx, which gives up root
        try:
            rows = uvloop.run(run(QUICK if options.quick else FULL, Path(directory)))
        except (LoadError, StartError, TimeoutError) as exc:
            print(f"bench: {str(exc) or type(exc).__name__}", file=sys.stderr)
            return 1
    print(table(rows))
    share = min(share for row in rows for share in row.share)
    if share < _WHOLE_CORE:
        print(
            f"note: the gateway had {share:.0%} of its core: other programs ran, or it had to wait"
        )
    missed = [row.name for row in rows if not row.holds()]
    if missed:
        print(f"floor missed: {', '.join(missed)}")
    return 1 if missed and options.enforce else 0


if __name__ == "__main__":
    sys.exit(main())
