"""One turn: the plan carried out, as a stream of events."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from gateway.emulator import emission
from gateway.emulator.context import Context
from gateway.emulator.emission import Event
from gateway.emulator.envelope import build_response, build_usage, count_tokens, finish_response
from gateway.emulator.errors import ApiError
from gateway.emulator.items import Item, new_id
from gateway.emulator.mcp_client import McpServer
from gateway.emulator.plan import (
    AskApproval,
    Call,
    CallFunction,
    CutOff,
    Draw,
    Refuse,
    Report,
    Say,
    Situation,
    Step,
    Think,
    UseComputer,
    plan,
)
from gateway.emulator.sealing import Sealer
from gateway.emulator.settings import EmulatorSettings
from gateway.emulator.turn_request import TurnRequest

TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_THOUGHT = "Considering the request before answering."


@dataclass(frozen=True)
class Failure:
    """How a turn ends badly after it began."""

    code: str
    message: str


SERVER_ERROR = Failure(
    "server_error",
    "An error occurred while processing your request. You can retry your request.",
)


@dataclass(kw_only=True, eq=False)
class Turn:
    """A response in the making.

    `events` may be read once. `response` is the response as of the last lifecycle event, and
    `refusal` the error that a caller without a stream gets instead.
    """

    request: TurnRequest
    context: Context
    settings: EmulatorSettings
    sealer: Sealer
    failure: Failure | None = None
    response: dict[str, Any] = field(init=False)
    refusal: ApiError | None = field(default=None, init=False)
    _output: list[Item] = field(default_factory=list, init=False)
    _thoughts: dict[str, str] = field(default_factory=dict, init=False)
    _listings: dict[str, list[Item]] = field(default_factory=dict, init=False)
    _sequence: int = field(default=0, init=False)
    _incomplete: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Give the response its id and its first state."""
        self.response = build_response(
            self.request, response_id=new_id("resp"), azure=self.settings.azure
        )

    @property
    def output(self) -> list[Item]:
        """The finished items so far."""
        return list(self._output)

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield every event of the turn, numbered."""
        for event in self._opening():
            yield self._number(event)
        if self.request.background:
            await anyio.sleep(self.settings.queue_delay)
            self.response = {**self.response, "status": "in_progress"}
            yield self._number(self._lifecycle("in_progress"))
        async with aclosing(self._work()) as work:
            async for event in work:
                if event["type"].endswith(".delta") and self.settings.chunk_delay:
                    await anyio.sleep(self.settings.chunk_delay)
                if event["type"] == "response.output_item.done":
                    self._output.append(event["item"])
                yield self._number(event)
        for event in self._closing():
            yield self._number(event)

    def _opening(self) -> Iterator[Event]:
        yield self._lifecycle("created")
        yield self._lifecycle("queued" if self.request.background else "in_progress")

    def _closing(self) -> Iterator[Event]:
        failure = self.failure
        if failure is not None:
            yield self._error_event(failure)
        status = "failed" if failure else "incomplete" if self._incomplete else "completed"
        self.response = finish_response(
            self.response,
            status=status,
            output=[self._resealed(item) for item in self._output],
            usage=None if failure else self._usage(),
            error={"code": failure.code, "message": failure.message} if failure else None,
            incomplete=self._incomplete,
        )
        yield self._lifecycle(status)

    def _error_event(self, failure: Failure) -> Event:
        return {
            "type": "error",
            "error": {
                "type": self.refusal.type if self.refusal else failure.code,
                "code": failure.code,
                "message": failure.message,
                "param": self.refusal.param if self.refusal else None,
            },
        }

    def _lifecycle(self, kind: str) -> Event:
        return {"type": f"response.{kind}", "response": self.response}

    def _number(self, event: Event) -> Event:
        rest = {k: v for k, v in event.items() if k != "type"}
        numbered = {"type": event["type"], "sequence_number": self._sequence, **rest}
        self._sequence += 1
        return numbered

    async def _work(self) -> AsyncGenerator[Event, None]:
        try:
            async with aclosing(self._list_tools()) as listing:
                async for event in listing:
                    yield event
        except ApiError as exc:
            self.refusal = exc
            self.failure = Failure(exc.code or "server_error", exc.message)
            return
        situation = Situation(
            request=self.request, items=self.context.items, listings=self._listings
        )
        for step in plan(situation):
            async with aclosing(self._carry_out(step)) as events:
                async for event in events:
                    yield event
            if self._incomplete:
                return

    async def _list_tools(self) -> AsyncGenerator[Event, None]:
        """List the tools of every server that the context does not already list."""
        known = {
            str(item["server_label"]): item.get("tools") or []
            for item in self.context.items
            if item.get("type") == "mcp_list_tools"
        }
        for label, tool in self.request.mcp_tools.items():
            if label in known:
                self._listings[label] = known[label]
                continue
            index = len(self._output)
            item: Item = {}
            for event in emission.list_tools_opening(index, label):
                item = event.get("item", item)
                yield event
            server = McpServer.from_tool(tool, timeout=self.settings.mcp_timeout)
            try:
                tools = await server.list_tools(tool)
            except ApiError as exc:
                for event in emission.list_tools_failing(index, item, exc.message):
                    yield event
                raise
            self._listings[label] = tools
            for event in emission.list_tools_closing(index, item, tools):
                yield event

    async def _carry_out(self, step: Step) -> AsyncGenerator[Event, None]:
        if isinstance(step, Call):
            async with aclosing(self._call(step)) as events:
                async for event in events:
                    yield event
            return
        for event in self._spoken(step):
            yield event

    def _spoken(self, step: Step) -> Iterator[Event]:
        """Return the events of a step that needs nobody else."""
        index = len(self._output)
        match step:
            case Think(text):
                return self._think(index, text)
            case Say(text):
                return self._message(index, text)
            case Report(earlier, denied):
                return self._message(index, _report(self._unreported(earlier), denied))
            case CutOff(text):
                self._incomplete = "max_output_tokens"
                return emission.message(index, text, complete=False)
            case Refuse(text):
                return emission.refusal(index, text)
            case AskApproval(label, name, arguments):
                return emission.approval_request(index, label, name, arguments)
            case _:
                return self._client_side(index, step)

    def _unreported(self, earlier: tuple[Item, ...]) -> list[Item]:
        """Return the calls since the last message, `earlier` ones from before this turn."""
        items = [*earlier, *self._output]
        spoken = [n for n, item in enumerate(items) if item["type"] == "message"]
        return items[spoken[-1] + 1 :] if spoken else items

    def _client_side(self, index: int, step: Step) -> Iterator[Event]:
        match step:
            case CallFunction(name, arguments):
                return emission.function_call(index, name, arguments)
            case UseComputer():
                return emission.computer_call(index)
            case Draw(prompt):
                tools = (t for t in self.request.tools if t.get("type") == "image_generation")
                return emission.image(index, prompt, next(tools, {}), azure=self.settings.azure)
            case _:  # pragma: no cover
                raise AssertionError(step)

    def _message(self, index: int, text: str) -> Iterator[Event]:
        """Return the events of a message, cut off at `max_output_tokens`."""
        limit = self.request.body.get("max_output_tokens")
        words = emission.pieces(text)
        if limit is None or len(words) <= limit:
            return emission.message(index, text)
        self._incomplete = "max_output_tokens"
        return emission.message(index, "".join(words[:limit]), complete=False)

    def _think(self, index: int, text: str) -> Iterator[Event]:
        wanted = self.request.nested("reasoning", "summary")
        return emission.reasoning(
            index,
            text or (_THOUGHT if wanted else ""),
            partial(self._seal, text or _THOUGHT),
        )

    def _seal(self, text: str, item_id: str, stage: str) -> str | None:
        self._thoughts[item_id] = text
        if not self.request.encrypted:
            return None
        return self.sealer.seal(model=self.request.model, item_id=item_id, text=text, stage=stage)

    def _resealed(self, item: Item) -> Item:
        """Return the item as the terminal event shows it: with yet another ciphertext."""
        if "encrypted_content" not in item:
            return item
        sealed = self._seal(self._thoughts[item["id"]], item["id"], "terminal")
        return {**item, "encrypted_content": sealed}

    async def _call(self, step: Call) -> AsyncGenerator[Event, None]:
        index = len(self._output)
        item: Item = {}
        for event in emission.mcp_call_opening(
            index, step.label, step.name, step.arguments, step.approval_request_id
        ):
            item = event.get("item", item)
            yield event
        outcome = await self._outcome(step)
        for event in emission.mcp_call_closing(index, item, step.arguments, outcome):
            yield event

    async def _outcome(self, step: Call) -> Item:
        tool = self.request.mcp_tools.get(step.label)
        if tool is None:
            message = f"No MCP server labelled '{step.label}' in this request."
            return {
                "output": None,
                "error": {"type": "mcp_protocol_error", "code": -32601, "message": message},
            }
        server = McpServer.from_tool(tool, timeout=self.settings.mcp_timeout)
        return await server.call_tool(step.name, step.arguments)

    def _usage(self) -> dict[str, Any]:
        reasoned = sum(count_tokens(text) for text in self._thoughts.values())
        read = [*self.context.items, self.request.body.get("instructions"), *self.request.tools]
        shown = [item for item in self._output if item["type"] != "reasoning"]
        return build_usage(
            read=count_tokens(read),
            written=count_tokens(shown) + reasoned,
            reasoned=reasoned,
        )


def _report(items: list[Item], denied: tuple[str, ...]) -> str:
    calls = [item for item in items if item["type"] == "mcp_call"]
    return "\n".join([*map(_call_text, calls), *denied])


def _call_text(item: Item) -> str:
    name = f"{item['server_label']}.{item['name']}"
    error = item.get("error")
    if not error:
        return f"{name} returned: {item.get('output')}"
    texts = [part["text"] for part in error.get("content") or ()]
    return f"{name} failed: {error.get('message') or ' '.join(texts)}"
