"""Recorded streams of providers, as the bytes that were on the wire."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

COPY = Path(__file__).parents[1] / "data" / "traces"
"""The recordings that come with the repository: at least one of each kind.

Of a kind are streams with the same types of events and items, with an end or without. What is left
out are more of the same, 53 streams and 2 MB; where all are at hand, all are tried. `*.sse.gz` are
single streams out of files that would be much larger.
"""

ALL = Path(__file__).parents[3] / "shared" / "traces"
"""All of them, where they are at hand."""

_BROKEN = "parallel-tool-call-wrapper.1.chunks.txt"
"""Its lines are cut, so it is no JSON."""

_SINGLE = ".sse.gz"

_TERMINAL = ("response.completed", "response.incomplete", "response.failed")


@dataclass(frozen=True)
class Recording:
    """One recorded stream."""

    name: str
    wire: bytes

    @property
    def events(self) -> list[Any]:
        """The JSON of its events."""
        lines = (line.strip() for line in self.wire.splitlines())
        data = (line[5:].strip() for line in lines if line.startswith(b"data:"))
        return [json.loads(text) for text in data if text != b"[DONE]"]

    @property
    def ends(self) -> bool:
        """Whether its last event ends a response; a few recordings are cut."""
        return bool(self.events) and self.events[-1]["type"] in _TERMINAL

    @property
    def mcp_tools(self) -> list[dict[str, Any]]:
        """The MCP tools of the request, as the provider repeated them."""
        responses = (event.get("response") or {} for event in self.events)
        tools: list[dict[str, Any]] = next(
            (found["tools"] for found in responses if found.get("tools")), []
        )
        return [tool for tool in tools if tool.get("type") == "mcp"]

    @property
    def final(self) -> dict[str, Any]:
        """The response of its last event."""
        found: dict[str, Any] = self.events[-1]["response"]
        return found

    @property
    def asks(self) -> bool:
        """Whether it asks for an approval."""
        items = (event.get("item") or {} for event in self.events)
        return any(item.get("type") == "mcp_approval_request" for item in items)


def recorded_streams(root: Path) -> list[Recording]:
    """Read every recorded stream of a folder."""
    return [found for path in sorted(root.rglob("*")) for found in _read(path, root)]


def _read(path: Path, root: Path) -> Iterator[Recording]:
    name = str(path.relative_to(root))
    if name.endswith(_SINGLE):
        yield Recording(name.removesuffix(_SINGLE), gzip.decompress(path.read_bytes()))
    elif path.name.endswith(".chunks.txt") and path.name != _BROKEN:
        for index, step in enumerate(_steps(path.read_text("utf-8"))):
            yield Recording(f"{name}#{index}", step)
    elif path.name.endswith("response.txt"):
        yield Recording(name, path.read_bytes())
    elif path.suffix == ".yaml":
        yield from _cassette(path, name)
    elif path.suffix == ".json" and "praxis-ai" in path.parts:
        for index, turn in enumerate(json.loads(path.read_bytes())["turns"]):
            frames = turn["upstream"]["response"]["body"].get("frames")
            if frames:
                wire = "".join(_frame(frame["event"], frame["data"]) for frame in frames)
                yield Recording(f"{name}#{index}", wire.encode())


def _steps(text: str) -> Iterator[bytes]:
    """Split a file of events into its responses, and write them as they were sent."""
    step: list[str] = []
    for line in text.split("\n"):  # not `splitlines`: text may hold U+2028
        if not line.strip():
            continue
        kind = json.loads(line).get("type")
        if kind is None:
            return  # Chat Completions
        if kind == "response.created" and step:
            yield "".join(step).encode()
            step = []
        step.append(f"event: {kind}\ndata: {line.strip()}\n\n")
    if step:
        yield "".join(step).encode()


def _frame(event: str | None, data: Any) -> str:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


def _cassette(path: Path, name: str) -> Iterator[Recording]:
    yaml = import_module("yaml")  # it has no type stubs
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    cassette = yaml.load(path.read_bytes(), Loader=loader)
    for index, exchange in enumerate(cassette.get("interactions", ())):
        response = exchange["response"]
        headers = {key.lower(): str(value) for key, value in response["headers"].items()}
        if "text/event-stream" in headers.get("content-type", "") and (
            "/responses" in exchange["request"]["uri"]
        ):
            body = response["body"]["string"]
            wire = body if isinstance(body, bytes) else body.encode()
            yield Recording(f"{name}#{index}", wire)
