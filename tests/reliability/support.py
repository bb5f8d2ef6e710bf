"""Real processes that can be killed at any moment, and a ledger of what must hold afterwards.

    with Site.start(directory) as site:
        one, two = site.up("one", "two")
        ledger = Ledger(site)
        async with ledger.approver():
            await ledger.turn()
        await ledger.check()

Everything is a process of its own: `gateway serve`, Valkey with an append-only file, the provider
emulator, and the demo MCP server that counts what it executed. Waiting is polling with a deadline.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import itertools
import json
import os
import random
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import anyio
import httpx2
import openai

from gateway.adapters.redis.embedded import find_server
from gateway.domain.identity import hash_key, new_key

HOST = "127.0.0.1"
MCP_TOKEN = "demo-" + secrets.token_hex(8)
PROVIDER_KEY = "sk-" + secrets.token_hex(8)
HOOK_SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
START_SECONDS = 60.0
LEASE = 4.0
"""Seconds until another replica takes over; in production it is longer."""

TURN_SECONDS = 45.0
"""Longest that a turn may take, faults included."""

GITHUB: dict[str, Any] = {"type": "mcp", "server_label": "github"}
LONG_MODE = os.environ.get("GATEWAY_RELIABILITY", "") == "long"
"""More kills and races, and the whole minute: `nox -s reliability -- --long`."""

BROKEN = (openai.APIConnectionError, httpx2.HTTPError, ConnectionError)

STORE = {"store_unavailable", "storage_full"}
"""How a turn fails that nobody holds yet, when Redis cannot take it."""

_REPORT = os.environ.get("GATEWAY_RELIABILITY_REPORT")


def amount(usual: int, *, long: int) -> int:
    """How often a test does it: as usual, or in the long mode."""
    return long if LONG_MODE else usual


def report(name: str, **figures: object) -> None:
    """Write a measured figure where the report is asked for; shown by `pytest -s` as well."""
    line = json.dumps({"what": name, **figures})
    print(line)
    if _REPORT:
        with Path(_REPORT).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def spread(values: list[float]) -> str:
    """Write measured seconds as a range."""
    return f"{min(values):.2f}-{max(values):.2f}" if values else "none"


def free_port() -> int:
    """Find a port that is free, and stays so while nobody listens on it.

    One below those that the system gives to outgoing connections: a connection to a server that
    is just being started again could get the server's own port, and keep it from listening.
    """
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 20.0
) -> float:
    """Poll until the condition holds; return how long it took."""
    begun = time.monotonic()
    while not await condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        await anyio.sleep(0.05)
    return time.monotonic() - begun


class Process:
    """A program that can be killed, paused and started again; it ends with the tests."""

    def __init__(self, command: list[str], log: Path, environment: Mapping[str, str] = {}) -> None:
        self._command = command
        self._log = log
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def resident(self) -> int:
        """Its resident memory in bytes."""
        assert self._process is not None
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def start(self, **environment: str) -> Self:
        """Start it, with further variables this time; `ready` tells when it can be used."""
        assert not self.running
        prctl, parent, getppid = ctypes.CDLL(None).prctl, os.getpid(), os.getppid

        def end_with_the_tests() -> None:
            prctl(1, int(signal.SIGKILL), 0, 0, 0)
            if getppid() != parent:
                os._exit(1)

        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**self._environment, **environment},
                process_group=0,
                preexec_fn=end_with_the_tests,
            )
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End it whatever its state."""
        if self.running:
            self.kill()

    def written(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it is ready in some way; fails with its output when it ends instead."""
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            tail = "\n".join(self.written().splitlines()[-10:])
            assert self.running, (
                f"{what}: ended with {self._process and self._process.poll()}\n{tail}"
            )
            assert time.monotonic() < deadline, f"{what}: not ready\n{tail}"
            time.sleep(0.01)


class Valkey(Process):
    """A Valkey on a port of its own, with an append-only file."""

    def __init__(self, directory: Path, name: str = "valkey", **options: str) -> None:
        self.port = free_port()
        home = directory / name
        home.mkdir()
        written = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(home),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            **{key.replace("_", "-"): value for key, value in options.items()},
        }
        flat = [part for key, value in written.items() for part in (f"--{key}", value)]
        super().__init__([str(find_server()), *flat], directory / f"{name}.log")

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://{HOST}:{self.port}"

    def ready(self) -> Self:
        """Wait until it answers."""
        self.until(lambda: self.call("PING") == "PONG", "valkey")
        return self

    def call(self, *command: str) -> str:
        """Run one command and return the first line of the answer; "" when there is none."""
        parts = "".join(f"${len(part.encode())}\r\n{part}\r\n" for part in command)
        try:
            with socket.create_connection((HOST, self.port), timeout=2) as connection:
                connection.sendall(f"*{len(command)}\r\n{parts}".encode())
                reader = connection.makefile("rb")
                line = reader.readline().decode().strip()
                if line.startswith("$") and line != "$-1":
                    return reader.read(int(line[1:])).decode()
                return line[1:]
        except OSError:
            return ""


class Replica(Process):
    """A `gateway serve` on a port of its own, which it keeps across restarts."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], log: Path, keys: dict[str, str]
    ) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        self.listed = False
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._keys = keys
        environment = {
            f"GATEWAY_{key.upper()}": json.dumps(value) for key, value in settings.items()
        }
        command = [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--host",
            HOST,
            "--port",
            str(self.port),
        ]
        super().__init__(command, log, environment)

    def ready(self) -> Self:
        """Wait until it says that it is."""
        self.until(self.is_ready, f"replica {self.name}")
        return self

    def is_ready(self) -> bool:
        """Ask whether it is ready, as a load balancer does."""
        self.listed = self.health("/readyz") == 200
        return self.listed

    def health(self, path: str) -> int:
        """The status of a health door; 0 without an answer."""
        try:
            return httpx2.get(self.url + path, timeout=5, trust_env=False).status_code
        except (httpx2.HTTPError, OSError):
            return 0

    def client(self, key: str = "caller") -> openai.AsyncOpenAI:
        """The official SDK, without retries of its own."""
        if key not in self._clients:
            self._clients[key] = openai.AsyncOpenAI(
                base_url=self.url + "/v1", api_key=self._keys[key], max_retries=0, timeout=60
            )
        return self._clients[key]

    async def aclose(self) -> None:
        """Close the clients."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()


class Site:
    """Valkey, provider, MCP server and replicas.

    Args:
        redis: The replicas' `redis` section; by default the site's own Valkey.
    """

    def __init__(
        self, stack: ExitStack, directory: Path, *, redis: Mapping[str, Any] | None
    ) -> None:
        self._stack = stack
        self.directory = directory
        self.people = [f"person{number}" for number in range(20)]
        self.keys = {name: new_key(name) for name in ("caller", "approver", "admin", *self.people)}
        self.replicas: dict[str, Replica] = {}
        if redis is None:
            self.valkey = Valkey(directory)
            self._own(self.valkey).start()
            self.valkey.ready()
            redis = {"url": self.valkey.url}
        self.redis = dict(redis)
        options = ("--chunk-delay", "0.005", "--api-key", "env:PROVIDER_KEY")
        mcp = self._program("demo-mcp", DEMO_MCP_TOKEN=MCP_TOKEN)
        provider = self._program("emulator", *options, PROVIDER_KEY=PROVIDER_KEY)
        self.mcp, self.provider = _address(mcp), _address(provider)

    @classmethod
    @contextmanager
    def start(cls, directory: Path, *, redis: Mapping[str, Any] | None = None) -> Iterator[Site]:
        """Start everything but the replicas."""
        with ExitStack() as stack:
            yield cls(stack, directory, redis=redis)

    def _own(self, process: Process) -> Process:
        self._stack.callback(process.stop)
        return process

    def _program(self, name: str, *options: str, **environment: str) -> Process:
        command = [sys.executable, "-m", "gateway", name, "--port", "0", *options]
        process = Process(command, self.directory / f"{name}.log", environment)
        return self._own(process).start()

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The configuration of a replica."""
        server = {"lame_duck": 0, "grace_period": 5, "lease": LEASE, "heartbeat": 5}
        values: dict[str, Any] = {
            "server": server,
            "redis": self.redis,
            "encryption": {"keys": [{"id": "k1", "value": "env:SITE_KEY"}]},
            "upstreams": [
                {
                    "name": "emulator",
                    "kind": "compatible",
                    "base_url": self.provider + "/v1/",
                    "auth": {"type": "api_key", "value": "env:PROVIDER_KEY"},
                }
            ],
            "mcp_servers": [
                {
                    "label": "github",
                    "url": self.mcp + "/mcp",
                    "headers": {"Authorization": "env:SITE_MCP_AUTH"},
                    "trust": "reviewed",
                }
            ],
            "rules": [
                {
                    "id": "writes",
                    "match": {"server": "github", "tool": "*"},
                    "effect": "ask",
                    "approval": {"approvers": ["role:approver"], "timeout": "30m"},
                    "reason": "It changes what others see.",
                }
            ],
            "tenants": [{"id": "acme"}],
            "api_keys": [
                self._key("caller", "svc:web", "caller"),
                self._key("approver", "user:ann", "approver"),
                self._key("admin", "user:root", "admin"),
                *(self._key(name, f"user:{name}", "approver") for name in self.people),
            ],
        }
        for section, change in changes.items():
            known = values.get(section)
            both = isinstance(known, dict) and isinstance(change, dict)
            values[section] = {**known, **change} if both else change  # type: ignore[dict-item]
        return values

    def _key(self, name: str, subject: str, role: str) -> dict[str, Any]:
        hashed = hash_key(self.keys[name])
        return {"id": name, "tenant": "acme", "subject": subject, "roles": [role], "hash": hashed}

    def up(self, *names: str) -> list[Replica]:
        """Have these replicas running, and wait until all are ready."""
        replicas = [self.replicas.get(name) or self.prepare(name) for name in names]
        for replica in replicas:
            if not replica.running:
                self.begin(replica)
        return [replica.ready() for replica in replicas]

    def prepare(self, name: str, **changes: Any) -> Replica:
        """Make a replica with changed settings, without starting it."""
        log = self.directory / f"{name}.log"
        replica = Replica(name, self.settings(**changes), log, self.keys)
        self._own(replica)
        self.replicas[name] = replica
        return replica

    def begin(self, replica: Replica, *, failpoint: str = "") -> Replica:
        """Start a replica, again or for the first time."""
        environment = {
            "SITE_KEY": base64.b64encode(b"k" * 32).decode(),
            "SITE_MCP_AUTH": f"Bearer {MCP_TOKEN}",
            "PROVIDER_KEY": PROVIDER_KEY,
            "SITE_HOOK_SECRET": HOOK_SECRET,
        }
        if failpoint:
            environment |= {
                "GATEWAY_FAILPOINT": f"{failpoint}:exit",
                "GATEWAY_FAILPOINT_TEST": "1",
            }
        replica.listed = False
        replica.start(**environment)
        return replica

    async def aclose(self) -> None:
        """Close the replicas' clients."""
        for replica in self.replicas.values():
            await replica.aclose()

    def any(self) -> Replica:
        """A replica, as a load balancer would choose: one that was ready when last asked."""
        replicas = list(self.replicas.values())
        listed = [one for one in replicas if one.running and one.listed]
        return random.choice(listed or replicas)

    async def until_ready(self, count: int) -> None:
        """Wait until so many replicas are ready."""

        async def enough() -> bool:
            for one in self.replicas.values():
                assert one.running, f"replica {one.name} ended\n{one.written()[-2000:]}"
                if not one.listed:
                    await anyio.to_thread.run_sync(one.is_ready)
            return sum(1 for one in self.replicas.values() if one.listed) >= count

        await eventually(enough, f"{count} replicas are ready", seconds=START_SECONDS)

    async def executed(self) -> Counter[str]:
        """How often the MCP server ran each call, by the word in its title."""
        async with httpx2.AsyncClient(trust_env=False) as client:
            calls = (await client.get(self.mcp + "/calls")).json()
        return Counter(call["arguments"]["title"] for call in calls)


def _address(program: Process) -> str:
    program.until(lambda: "ready on " in program.written(), "a program")
    return program.written().partition("ready on ")[2].split()[0].rstrip("/")


@dataclass
class Turn:
    """One turn as its caller saw it.

    Attributes:
        first: The replica that it began at, where that was chosen.
        numbers: The `sequence_number` of every event, over all connections.
        connections: How many streams it took to see the end.
        ended: "completed", "failed", "refused" (it got no id), or "unheld" (it died with its
            replica before anybody was asked); "" while it runs.
        code: Of the error, where it failed.
        seconds: From the first break of a connection to the end; `at` is when it ended.
    """

    word: str
    first: str = ""
    id: str = ""
    numbers: list[int] = field(default_factory=list)
    connections: int = 0
    ended: str = ""
    code: str = ""
    seconds: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    at: float = 0.0
    held: anyio.Event = field(default_factory=anyio.Event)

    def note(self, event: Any) -> None:
        """Take an event."""
        self.numbers.append(event.sequence_number)
        if event.type == "response.created":
            self.id = event.response.id
        elif event.type == "response.output_item.done":
            if event.item.type == "mcp_approval_request":
                self.held.set()
        elif event.type in ("response.completed", "response.failed", "response.incomplete"):
            self.ended = event.type.removeprefix("response.")


class Ledger:
    """Runs turns, decides their approvals, and compares what all sides saw.

    Args:
        verdict: What the approver says to a word: "approve" or "deny".
    """

    def __init__(self, site: Site, verdict: Callable[[str], str] = lambda word: "approve") -> None:
        self._site = site
        self._verdict = verdict
        self.turns: list[Turn] = []
        self.asked: set[str] = set()
        self.acknowledged: dict[str, str] = {}
        self.resolved: Counter[str] = Counter()

    @property
    def ended(self) -> int:
        """How many turns have ended."""
        return sum(1 for turn in self.turns if turn.ended)

    def new(self) -> Turn:
        """A turn that has not begun."""
        turn = Turn("m" + secrets.token_hex(6))
        self.turns.append(turn)
        return turn

    async def turn(self, at: Replica | None = None, turn: Turn | None = None) -> Turn:
        """Run a turn to its end, over as many connections as it takes."""
        turn = turn or self.new()
        turn.first = at.name if at else ""
        with anyio.move_on_after(TURN_SECONDS):
            broken = 0.0
            while not turn.ended:
                await self._connect(turn, at or self._site.any())
                at = None
                if not turn.ended:
                    broken = broken or time.monotonic()
                    await anyio.sleep(0.05)
            turn.at = time.monotonic()
            turn.seconds = turn.at - broken if broken else 0.0
        return turn

    async def _connect(self, turn: Turn, replica: Replica) -> None:
        """Open the stream, or attach to it again, and read until it ends or breaks."""
        try:
            async with await self._open(turn, replica) as stream:
                turn.connections += 1
                async for event in stream:
                    turn.note(event)
        except openai.APIStatusError as error:
            if error.status_code == 404 and turn.id:
                turn.ended = "unheld"  # a plain turn dies with its replica
            elif error.status_code < 500 or not turn.id:
                turn.ended, turn.code = "refused", str(error.code)
        except BROKEN:
            pass
        except openai.APIError as error:  # an `error` event: the SDK raises it
            turn.ended, turn.code = "failed", str(error.code)
        if not turn.id and not turn.ended:
            turn.ended = "refused"

    async def _open(self, turn: Turn, replica: Replica) -> Any:
        responses = replica.client().responses
        if turn.id:
            after = turn.numbers[-1]
            return await responses.retrieve(turn.id, stream=True, starting_after=after)
        command = f'/call github.create_issue {{"title": "{turn.word}"}}'
        tools: Any = [GITHUB]
        return await responses.create(model="gpt-4.1", input=command, tools=tools, stream=True)

    @asynccontextmanager
    async def load(self, callers: int) -> AsyncIterator[None]:
        """Have callers run one turn after the other; at the end, those begun end as well."""
        over = False

        async def call() -> None:
            while not over:
                turn = await self.turn()
                if turn.ended == "refused":
                    await anyio.sleep(0.3)

        async with self.approver(), anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(call)
            yield
            over = True

    async def until(self, more: int, *, seconds: float = TURN_SECONDS) -> float:
        """Wait until so many more turns have completed; return how long it took."""
        before = self.completed

        async def enough() -> bool:
            return self.completed >= before + more

        return await eventually(enough, f"{more} more turns complete", seconds=seconds)

    def longest_gap(self) -> float:
        """The longest time, in seconds, in which no turn completed."""
        ends = sorted(turn.at for turn in self.turns if turn.ended == "completed")
        return max((b - a for a, b in itertools.pairwise(ends)), default=0.0)

    @property
    def completed(self) -> int:
        """How many turns have completed."""
        return sum(1 for turn in self.turns if turn.ended == "completed")

    @asynccontextmanager
    async def approver(self) -> AsyncIterator[None]:
        """Decide whatever is pending, at any replica, and again until an answer comes.

        What is in doubt is resolved as a careful person would: send the answers again if the MCP
        server did not run the tool, take the turn back if it did.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._decide_all)
            group.start_soon(self._resolve_all)
            yield
            group.cancel_scope.cancel()

    async def _decide_all(self) -> None:
        while True:
            for approval in await self.pending():
                await self.decide(approval)
            await anyio.sleep(0.05)

    async def _resolve_all(self) -> None:
        while True:
            await anyio.sleep(0.3)
            now = time.monotonic()
            for turn in self.turns:
                if turn.held.is_set() and not turn.ended and now - turn.begun > LEASE:
                    with contextlib.suppress(*BROKEN, openai.APIError):
                        await self._resolve(turn)

    async def _resolve(self, turn: Turn) -> None:
        shown = await self.get(f"/responses/{turn.id}", key="caller")
        if shown.get("gateway", {}).get("continuation") != "indeterminate":
            return
        action = "rewind" if (await self._site.executed())[turn.word] else "retry"
        client = self._site.any().client("approver")
        path = f"/responses/{turn.id}/continue"
        await client.post(path, body={"action": action}, cast_to=httpx2.Response)
        self.resolved[action] += 1

    async def pending(self) -> list[dict[str, Any]]:
        """What waits for an approver; nothing when the asked replica does not answer."""
        try:
            return list((await self.get("/approvals?status=pending&limit=100"))["data"])
        except (*BROKEN, openai.APIError):
            return []

    async def get(self, path: str, *, key: str = "approver", at: Replica | None = None) -> Any:
        """Read a document at any replica."""
        client = (at or self._site.any()).client(key)
        return json.loads((await client.get(path, cast_to=httpx2.Response)).text)

    async def decide(
        self, approval: Mapping[str, Any], *, at: Replica | None = None, key: str = "approver"
    ) -> int:
        """Decide an approval; return the status, 0 without an answer."""
        word = json.loads(approval["arguments"])["title"]
        self.asked.add(word)
        decision = self._verdict(word)
        status = await vote(at or self._site.any(), approval, decision, key=key)
        if status == 200:
            self.acknowledged[approval["id"]] = decision
        return status

    async def check(self) -> dict[str, int]:
        """Assert the invariants over all turns; return what was counted."""
        executed = await self._site.executed()
        faults: list[str] = []
        counted: Counter[str] = Counter(turns=len(self.turns))
        for turn in self.turns:
            counted[" ".join(filter(None, (turn.ended or "never ended", turn.code)))] += 1
            counted["reattached"] += turn.connections > 1
            faults += [
                f"{turn}: {fault}"
                for fault in await self._faults(turn, executed[turn.word], counted)
            ]
        known = {turn.word for turn in self.turns}
        counted["executed"] = sum(count for word, count in executed.items() if word in known)
        counted.update({f"in doubt, {action}": n for action, n in self.resolved.items()})
        assert not faults, "\n".join([*faults, str(dict(counted))])
        return dict(counted)

    async def _faults(self, turn: Turn, executed: int, counted: Counter[str]) -> list[str]:
        if not turn.ended:
            return ["I3: it never ended"]
        faults = self._stream_faults(turn)
        if turn.ended in ("refused", "unheld") or turn.code in STORE:
            return faults + (["I2: executed although nobody approved"] if executed else [])
        answer = await self.get(f"/responses/{turn.id}", key="caller")
        if answer["status"] != turn.ended:
            faults.append(f"I3: on record as {answer['status']}")
        approvals = (await self.get(f"/responses/{turn.id}/approvals"))["data"]
        if turn.code == "hold_lost" and not approvals:  # nobody was asked: nothing may have run
            return faults + (["I2: executed although nobody approved"] if executed else [])
        if len(approvals) != 1:
            return [*faults, f"I1: has {len(approvals)} approvals"]
        status = approvals[0]["status"]
        counted[status] += 1
        acknowledged = self.acknowledged.get(approvals[0]["id"])
        if acknowledged and not status.startswith(acknowledged.removesuffix("y")[:4]):
            faults.append(f"I1: '{acknowledged}' was acknowledged, and it is {status}")
        if status not in ("approved", "denied"):
            faults.append(f"I1: its approval is {status}")
        return faults + self._outcome(turn, status, executed)

    def _stream_faults(self, turn: Turn) -> list[str]:
        faults = []
        if turn.numbers != list(range(len(turn.numbers))):
            faults.append("I3: its events have gaps or repeats")
        if turn.ended == "unheld" and turn.word in self.asked:
            faults.append("I1: its approval was shown to an approver, and it is gone")
        if turn.ended == "refused" and turn.code not in STORE | {""}:
            faults.append("I3: refused for no reason that was expected")
        return faults

    def _outcome(self, turn: Turn, status: str, executed: int) -> list[str]:
        if status == "denied" and executed:
            return ["I2: executed although denied"]
        if turn.ended == "completed":
            wanted = int(status == "approved")
            return [] if executed == wanted else [f"I2: {status}, and executed {executed} times"]
        if turn.code == "rewound":
            return [] if executed == 1 else [f"I2: taken back, and executed {executed} times"]
        return [f"I3: failed with {turn.code}"]


async def vote(
    replica: Replica, approval: Mapping[str, Any], decision: str, *, key: str = "approver"
) -> int:
    """Send a decision; return the status, 0 without an answer."""
    try:
        answer = await replica.client(key).post(
            f"/approvals/{approval['id']}/decision",
            body={"decision": decision, "fingerprint": approval["fingerprint"], "reason": "looked"},
            cast_to=httpx2.Response,
        )
    except openai.APIStatusError as error:
        return error.status_code
    except (*BROKEN, openai.APIError):
        return 0
    return int(answer.status_code)
