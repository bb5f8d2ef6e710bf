"""What the operator registered: upstreams, model routes, MCP servers (API-8, MCP-1, CHAIN-2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from gateway.domain.errors import UpstreamUnreachable
from gateway.domain.repair import Mode
from gateway.domain.secrets import SecretRef

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EntraAuth:
    """Entra ID tokens for the upstream, by azure-identity (API-8)."""

    scope: str = "https://cognitiveservices.azure.com/.default"


@dataclass(frozen=True, slots=True)
class ApiKeyAuth:
    """A key for the upstream, read when it is sent."""

    value: SecretRef


@dataclass(frozen=True, slots=True)
class Upstream:
    """A provider resource that runs the model; the encryption boundary of its chains (CHAIN-2).

    Attributes:
        timeout: Seconds until the first byte of an answer; also the longest silence in a stream.
        repair: What one retry leaves out when the upstream refuses a reasoning blob or an item
            id: what it refused, reasoning and ids both, or nothing (STATE-5).
    """

    name: str
    kind: Literal["azure", "openai", "compatible"]
    base_url: str
    auth: EntraAuth | ApiKeyAuth
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    timeout: float = 600.0
    connect_timeout: float = 5.0
    repair: Mode = "strip_reasoning"


def upstream_named(upstreams: Mapping[str, T], name: str) -> T:
    """Find the upstream of a chain.

    Raises:
        UpstreamUnreachable: The chain outlived its upstream's configuration (CHAIN-2).
    """
    upstream = upstreams.get(name)
    if upstream is None:
        raise UpstreamUnreachable(
            f"The upstream '{name}' of this chain is not configured any more.",
            code="upstream_gone",
        )
    return upstream


@dataclass(frozen=True, slots=True)
class Route:
    """A model's place: the upstream and the deployment name there."""

    upstream: str
    deployment: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model name that callers use, and where it is served.

    Attributes:
        compact_at_tokens: Instead of the tenant's; 0 is never.
    """

    name: str
    routes: tuple[Route, ...]
    compact_at_tokens: int | None = None


Trust = Literal["first_party", "reviewed", "untrusted"]
PinMode = Literal["first_use", "strict", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolWord:
    """The operator's own word about a tool; `None` leaves it to what the tool says of itself."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


@dataclass(frozen=True, slots=True)
class McpServer:
    """A remote MCP server that callers name by label alone (MCP-1).

    Attributes:
        headers: Header name to the reference of its whole value, joined at send time (MCP-2).
        forward_headers: The caller's header name to the MCP header name; a missing one refuses
            the request, there is no fallback to a shared credential.
        allowed_tools: Tool names offered; `None` means all that the server lists.
        private: Whether its tools read data that outsiders must not see (taint, APPR-13).
        pins: What becomes of definitions: "first_use" trusts the first one seen, "strict" none
            that nobody accepted, "off" does not look (MCP-5).
        tools: The operator's word about tools, by name.
    """

    label: str
    url: str
    description: str | None = None
    headers: dict[str, SecretRef] = field(default_factory=dict)
    forward_headers: dict[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] | None = None
    trust: Trust = "untrusted"
    attach: Literal["on_request", "always"] = "on_request"
    private: bool = False
    pins: PinMode = "first_use"
    tools: dict[str, ToolWord] = field(default_factory=dict)
