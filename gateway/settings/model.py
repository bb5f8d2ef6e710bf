"""The sections of the configuration and the domain objects they become (RUN-6)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from gateway.domain.addresses import Network
from gateway.domain.grants import Fatigue
from gateway.domain.identity import ApiKey, Limits, Role, Tenant
from gateway.domain.registry import (
    ApiKeyAuth,
    EntraAuth,
    McpServer,
    Model,
    PinMode,
    Route,
    ToolWord,
    Trust,
    Upstream,
)
from gateway.domain.repair import Mode
from gateway.domain.rules import Rule, RuleSet
from gateway.domain.secrets import SecretRef
from gateway.domain.webhooks import RETRIES, Format, WebhookEndpoint, configured_id
from gateway.settings.fields import (
    Count,
    Duration,
    HeaderName,
    HeaderValue,
    HostPattern,
    Identifier,
    KeyHash,
    Name,
    NetworkText,
    Origin,
    Pause,
    RedisUrl,
    Reference,
    Subject,
    WebUrl,
)
from gateway.settings.lines import Location
from gateway.settings.rules import PolicySettings, RuleSettings
from gateway.settings.section import Section

MiB = 1024 * 1024


class ServerSettings(Section):
    """Where and within which bounds the gateway serves.

    Attributes:
        public_url: The address that people and providers know the gateway by.
        trusted_proxies: Addresses or networks whose `X-Forwarded-*` headers are believed.
        max_items: Input items of one request (LIMIT-3); also `max_tools`, `max_json_depth`.
        lame_duck: After SIGTERM: how long requests are still taken while readiness says no.
        grace_period: After the lame duck: how long running streams may take to end (STREAM-4).
        lease: How long the work of a replica stays its own after its last sign of life (APPR-4).
        max_background: Background turns that a process runs at once; others wait (STREAM-3).
        heartbeat: Longest silence of a stream before a comment is sent (APPR-3).
        stall_timeout: How long a caller may leave a stream unread before it is dropped.
        head_timeout: How long a request's head may take, from connection or first byte.
        body_timeout: Longest silence inside a request's body.
        keep_alive: How long an idle connection stays open.
        websocket_lifetime: How long a WebSocket takes new turns; a running one may end (API-6).
    """

    host: Name = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    public_url: WebUrl | None = None
    cors_allow_origins: tuple[Origin, ...] = ()
    trusted_proxies: tuple[Name, ...] = ()
    max_body_bytes: Count = 64 * MiB
    max_header_bytes: int = Field(64 * 1024, ge=1024, le=MiB)
    max_headers: int = Field(100, ge=10, le=1000)
    max_json_depth: int = Field(64, ge=4, le=512)
    max_tools: Count = 256
    max_items: Count = 20_000
    lame_duck: Pause = 5.0
    grace_period: Pause = 45.0
    lease: Annotated[Duration, Field(ge=1)] = 10.0
    max_background: Count = 64
    heartbeat: Annotated[Duration, Field(le=15)] = 15.0
    stall_timeout: Duration = 60.0
    head_timeout: Duration = 20.0
    body_timeout: Duration = 30.0
    keep_alive: Duration = 75.0
    websocket_lifetime: Duration = 3600.0


class RedisSettings(Section):
    """Where state is kept.

    Attributes:
        url: "embedded", a URL, or the reference of a URL that holds a password.
        directory: Where the embedded server keeps its data.
        timeout: For one command; `connect_timeout` for a new connection.
        durability: "fsync": a decision, and the note that its answer is being sent, are on the
            server's disk before anybody relies on them. "everysec": as the server's
            `appendfsync` has it (APPR-4, APPR-5).
        allow_volatile: Accept a server without append-only file, or one that does not tell how
            it evicts: state may then be lost with the server.
    """

    url: RedisUrl = None
    directory: Path | None = None
    timeout: Duration = 1.0
    connect_timeout: Duration = 2.0
    durability: Literal["fsync", "everysec"] = "fsync"
    allow_volatile: bool = False

    @property
    def embedded(self) -> bool:
        """Whether the bundled Valkey is to be started."""
        return isinstance(self.url, SecretStr) and self.url.get_secret_value() == "embedded"

    async def resolve_url(self, resolve: Callable[[SecretRef], Awaitable[str]]) -> str:
        """Return the URL to connect to; `resolve` reads a reference.

        Raises:
            ValueError: No URL is configured.
        """
        if self.url is None:
            raise ValueError("redis.url is not set")
        if isinstance(self.url, SecretRef):
            return await resolve(self.url)
        return self.url.get_secret_value()


class EncryptionKeySettings(Section):
    """A key of the ring: the value behind the reference is 32 bytes in base64 (STATE-4)."""

    id: Identifier
    value: Reference


class EncryptionSettings(Section):
    """The key ring: the first key encrypts, all decrypt (STATE-4)."""

    keys: tuple[EncryptionKeySettings, ...] = ()


class EntraAuthSettings(Section):
    """Entra ID tokens through `DefaultAzureCredential` (API-8)."""

    type: Literal["entra"]
    scope: Name = EntraAuth().scope


class ApiKeyAuthSettings(Section):
    """A provider's API key, by reference."""

    type: Literal["api_key"]
    value: Reference


class UpstreamSettings(Section):
    """A provider resource; see `gateway.domain.registry.Upstream`."""

    name: Identifier
    kind: Literal["azure", "openai", "compatible"]
    base_url: WebUrl
    auth: Annotated[EntraAuthSettings | ApiKeyAuthSettings, Field(discriminator="type")]
    query: dict[Name, str] = {}
    headers: dict[HeaderName, HeaderValue] = {}
    timeout: Duration = 600.0
    connect_timeout: Duration = 5.0
    repair: Mode = "strip_reasoning"

    def to_domain(self) -> Upstream:
        """Make the domain object."""
        if isinstance(self.auth, EntraAuthSettings):
            auth: EntraAuth | ApiKeyAuth = EntraAuth(scope=self.auth.scope)
        else:
            auth = ApiKeyAuth(value=self.auth.value)
        return Upstream(
            name=self.name,
            kind=self.kind,
            base_url=self.base_url,
            auth=auth,
            query=dict(self.query),
            headers=dict(self.headers),
            timeout=self.timeout,
            connect_timeout=self.connect_timeout,
            repair=self.repair,
        )


class RouteSettings(Section):
    """Where a model is served."""

    upstream: Identifier
    deployment: Name


class ModelSettings(Section):
    """A model name that callers use, and its routes.

    `compact_at_tokens` takes the place of the tenant's for this model; 0 is never.
    """

    name: Name
    routes: tuple[RouteSettings, ...] = Field(min_length=1)
    compact_at_tokens: Annotated[int, Field(ge=0)] | None = None

    def to_domain(self) -> Model:
        """Make the domain object."""
        routes = tuple(Route(route.upstream, route.deployment) for route in self.routes)
        return Model(name=self.name, routes=routes, compact_at_tokens=self.compact_at_tokens)


class ToolSettings(Section):
    """The operator's word about a tool; it beats what the tool says of itself (MCP-5)."""

    name: Name
    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None

    def to_domain(self) -> ToolWord:
        """Make the domain object."""
        return ToolWord(
            read_only=self.read_only,
            destructive=self.destructive,
            idempotent=self.idempotent,
            open_world=self.open_world,
        )


class McpServerSettings(Section):
    """A registered MCP server; see `gateway.domain.registry.McpServer` (MCP-1, MCP-2)."""

    label: Identifier
    url: WebUrl
    description: str | None = None
    headers: dict[HeaderName, Reference] = {}
    forward_headers: dict[HeaderName, HeaderName] = {}
    allowed_tools: tuple[Name, ...] | None = None
    trust: Trust = "untrusted"
    attach: Literal["on_request", "always"] = "on_request"
    private: bool = False
    pins: PinMode = "first_use"
    tools: tuple[ToolSettings, ...] = ()

    def to_domain(self) -> McpServer:
        """Make the domain object."""
        return McpServer(
            label=self.label,
            url=self.url,
            description=self.description,
            headers=dict(self.headers),
            forward_headers=dict(self.forward_headers),
            allowed_tools=self.allowed_tools,
            trust=self.trust,
            attach=self.attach,
            private=self.private,
            pins=self.pins,
            tools={tool.name: tool.to_domain() for tool in self.tools},
        )


class FatigueSettings(Section):
    """When people are asked too often; see `gateway.domain.grants.Fatigue` (APPR-8)."""

    asks: Count = 20
    window: Duration = 600.0
    action: Literal["suggest", "deny"] = "suggest"

    def to_domain(self) -> Fatigue:
        """Make the domain object."""
        return Fatigue(asks=self.asks, window=self.window, action=self.action)


class ApprovalsSettings(Section):
    """What holds for the approvals of all rules and tenants.

    Attributes:
        max_auto_rounds: Most answers in a row that no person gave; a tenant may have its own.
    """

    max_auto_rounds: Count = 10
    fatigue: FatigueSettings = FatigueSettings()


class LimitSettings(Section):
    """Bounds of a tenant (LIMIT-1); absent means unbounded."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent: Count | None = None
    max_auto_rounds: Count | None = None
    chain_token_budget: Count | None = None


class TenantSettings(Section):
    """A tenant; see `gateway.domain.identity.Tenant`."""

    id: Identifier
    stateless: bool = False
    cache: Literal["on", "off"] = "on"
    ttl: Annotated[Duration, Field(ge=1)] = 30 * 86400.0
    compact_at_tokens: Count | None = None
    mcp_servers: tuple[Identifier, ...] | None = None
    server_url_patterns: tuple[HostPattern, ...] = ()
    limits: LimitSettings = LimitSettings()

    def to_domain(self, *, max_auto_rounds: int) -> Tenant:
        """Make the domain object, with what holds where the tenant says nothing."""
        bounds = {"max_auto_rounds": max_auto_rounds, **self.limits.model_dump(exclude_none=True)}
        return Tenant(
            id=self.id,
            stateless=self.stateless,
            cache=self.cache,
            ttl=int(self.ttl),
            compact_at_tokens=self.compact_at_tokens,
            mcp_servers=None if self.mcp_servers is None else frozenset(self.mcp_servers),
            server_url_patterns=self.server_url_patterns,
            limits=Limits(**bounds),
        )


class ApiKeySettings(Section):
    """An API key's entry, as `gateway keys new` prints it (AUTH-1)."""

    id: Identifier
    tenant: Identifier
    subject: Subject
    roles: tuple[Role, ...] = Field(min_length=1)
    hash: KeyHash
    groups: tuple[Name, ...] = ()

    def to_domain(self) -> ApiKey:
        """Make the domain object."""
        return ApiKey(
            id=self.id,
            tenant=self.tenant,
            subject=self.subject,
            roles=frozenset(self.roles),
            hash=self.hash,
            groups=frozenset(self.groups),
        )


class JwtSettings(Section):
    """Tokens of an OIDC issuer (AUTH-1)."""

    issuer: WebUrl
    audience: Name
    tenant_claim: Name = "tid"
    roles_claim: Name = "roles"


class AuthSettings(Section):
    """Ways to authenticate besides API keys."""

    jwt: JwtSettings | None = None


class WebhookSettings(Section):
    """Where events are sent (APPR-9); without a secret the gateway does not start (RUN-4).

    Attributes:
        tenants: Whose events go there; absent means all (AUTH-2).
        allow_private: It may be at a loopback or private address.
    """

    url: WebUrl
    secret: Reference | None = None
    events: tuple[Name, ...] = Field(("*",), min_length=1)
    format: Format = "standard"
    tenants: tuple[Identifier, ...] | None = Field(None, min_length=1)
    allow_private: bool = False

    @property
    def id(self) -> str:
        """What the endpoint is called in the API, deliveries and logs."""
        return configured_id(self.url, self.tenants)

    def to_domain(self) -> WebhookEndpoint:
        """Make the domain object."""
        return WebhookEndpoint(
            id=self.id,
            url=self.url,
            secret=self.secret,
            events=self.events,
            format=self.format,
            tenants=None if self.tenants is None else frozenset(self.tenants),
            allow_private=self.allow_private,
        )


class WebhookDeliverySettings(Section):
    """How events are sent to all endpoints (APPR-9).

    Attributes:
        retries: How long to wait between one try and the next; after the last it has failed.
        timeout: How long a receiver may take, connecting included.
        allow_networks: Where endpoints may be although it is not the public internet.
    """

    retries: tuple[Duration, ...] = RETRIES
    timeout: Annotated[Duration, Field(le=60)] = 15.0
    allow_networks: tuple[NetworkText, ...] = ()


class AuditSettings(Section):
    """The audit's chain (APPR-11).

    Attributes:
        retention: How long entries are kept; what is dropped leaves a sealed base behind.
        checkpoint_interval: A changed chain's head is signed and logged this often.
        checkpoint_entries: And after so many entries.
    """

    retention: Annotated[Duration, Field(ge=86400)] = 400 * 86400.0
    checkpoint_interval: Annotated[Duration, Field(ge=1)] = 600.0
    checkpoint_entries: Count = 1000


class SuggestionSettings(Section):
    """Something to try in the playground: what the button says, and what is sent."""

    title: Name
    text: Name


class ConsoleSettings(Section):
    """The console in the browser (APPR-10).

    Attributes:
        playground: Whether who signs in with the role `caller` may chat there, as themselves.
        suggestions: What the playground offers to try.
    """

    playground: bool = False
    suggestions: tuple[SuggestionSettings, ...] = ()


class Settings(BaseSettings):
    """The whole configuration.

    `load_settings` merges the environment over a file; made directly, it takes just what it is
    given, so that tests and `gateway dev` do not depend on their surroundings.

    Raises:
        pydantic.ValidationError: A value, key or reference between sections is wrong.
    """

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, env_prefix="GATEWAY_"
    )

    server: ServerSettings = ServerSettings()
    redis: RedisSettings = RedisSettings()
    encryption: EncryptionSettings = EncryptionSettings()
    upstreams: tuple[UpstreamSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    mcp_servers: tuple[McpServerSettings, ...] = ()
    rules: tuple[RuleSettings, ...] = ()
    approvals: ApprovalsSettings = ApprovalsSettings()
    policy: PolicySettings = PolicySettings()
    tenants: tuple[TenantSettings, ...] = ()
    api_keys: tuple[ApiKeySettings, ...] = ()
    auth: AuthSettings = AuthSettings()
    webhooks: tuple[WebhookSettings, ...] = ()
    audit: AuditSettings = AuditSettings()
    webhook_delivery: WebhookDeliverySettings = WebhookDeliverySettings()
    console: ConsoleSettings = ConsoleSettings()

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the given values alone: `load_settings` is the one place that merges sources."""
        return (init_settings,)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        faults: list[InitErrorDetails] = [
            InitErrorDetails(
                type=PydanticCustomError("reference", "{text}", {"text": text}), loc=loc, input=None
            )
            for loc, text in inconsistencies(self)
        ]
        if faults:
            raise ValidationError.from_exception_data("Settings", faults, hide_input=True)
        return self

    def replace(self, **sections: dict[str, Any]) -> Settings:
        """Return a copy with values of whole sections replaced: `replace(server={"port": 1})`."""
        update = {
            name: getattr(self, name).model_copy(update=values) for name, values in sections.items()
        }
        return self.model_copy(update=update)

    def to_upstreams(self) -> tuple[Upstream, ...]:
        """Make the domain's upstreams; the first serves models that have no entry."""
        return tuple(upstream.to_domain() for upstream in self.upstreams)

    def to_models(self) -> tuple[Model, ...]:
        """Make the domain's models."""
        return tuple(model.to_domain() for model in self.models)

    def to_mcp_servers(self) -> tuple[McpServer, ...]:
        """Make the domain's MCP servers."""
        return tuple(server.to_domain() for server in self.mcp_servers)

    def to_rules(self) -> tuple[Rule, ...]:
        """Make the domain's rules, in the order of the file."""
        return tuple(rule.to_domain() for rule in self.rules)

    @property
    def version(self) -> str:
        """Name what decides about tools, and for whom; the same on replicas that agree."""
        deciding = self.model_dump_json(include={"rules", "policy", "mcp_servers", "tenants"})
        return hashlib.sha256(deciding.encode()).hexdigest()[:16]

    def to_rule_set(self) -> RuleSet:
        """Make the rules ready to decide."""
        return RuleSet(
            self.to_rules(),
            servers={server.label: server.trust for server in self.mcp_servers},
            engine=""
            if self.policy.engine == "rules"
            else f"{self.policy.engine} {self.policy.url}",
        )

    def to_tenants(self) -> tuple[Tenant, ...]:
        """Make the domain's tenants; without any section, each key's tenant has the defaults."""
        names = dict.fromkeys(key.tenant for key in self.api_keys)
        tenants = self.tenants or [TenantSettings(id=name) for name in names]
        usual = self.approvals.max_auto_rounds
        return tuple(tenant.to_domain(max_auto_rounds=usual) for tenant in tenants)

    def to_webhooks(self) -> tuple[WebhookEndpoint, ...]:
        """Make the domain's webhook endpoints; one without a secret is not served."""
        return tuple(hook.to_domain() for hook in self.webhooks if hook.secret is not None)

    def to_networks(self) -> frozenset[Network]:
        """Make the networks that webhooks may be sent to beyond the public internet."""
        return frozenset(ip_network(text) for text in self.webhook_delivery.allow_networks)

    def to_api_keys(self) -> tuple[ApiKey, ...]:
        """Make the domain's API keys."""
        return tuple(key.to_domain() for key in self.api_keys)


def inconsistencies(settings: Settings) -> Iterator[tuple[Location, str]]:
    """Find what sections say that does not fit together: where, and what."""
    yield from _duplicates("encryption", [key.id for key in settings.encryption.keys], "keys", "id")
    yield from _duplicates("upstreams", [item.name for item in settings.upstreams], "name")
    yield from _duplicates("models", [item.name for item in settings.models], "name")
    yield from _duplicates("mcp_servers", [item.label for item in settings.mcp_servers], "label")
    yield from _duplicates("rules", [item.id for item in settings.rules], "id")
    yield from _duplicates("tenants", [item.id for item in settings.tenants], "id")
    yield from _duplicates("api_keys", [item.id for item in settings.api_keys], "id")
    yield from _duplicates("webhooks", [hook.id for hook in settings.webhooks], "url")
    yield from _lost_references(settings)
    yield from _lost_servers(settings)
    if (settings.policy.engine == "opa") != (settings.policy.url is not None):
        yield ("policy", "url"), 'belongs to engine = "opa", which cannot do without it'
    for index, server in enumerate(settings.mcp_servers):
        yield from _shadowed_headers(index, server)
    for index, upstream in enumerate(settings.upstreams):
        yield from _plain_credentials(index, upstream)


def _duplicates(section: str, names: list[str], *path: str) -> Iterator[tuple[Location, str]]:
    *inner, key = path
    for index, name in enumerate(names):
        if name in names[:index]:
            yield (section, *inner, index, key), f'"{name}" is used twice'


def _lost_references(settings: Settings) -> Iterator[tuple[Location, str]]:
    upstreams = {upstream.name for upstream in settings.upstreams}
    tenants = {tenant.id for tenant in settings.tenants}
    for index, model in enumerate(settings.models):
        for place, route in enumerate(model.routes):
            if route.upstream not in upstreams:
                location: Location = ("models", index, "routes", place, "upstream")
                yield location, _unknown("upstream", route.upstream, upstreams)
    for index, key in enumerate(settings.api_keys):
        if tenants and key.tenant not in tenants:
            yield ("api_keys", index, "tenant"), _unknown("tenant", key.tenant, tenants)
    for index, hook in enumerate(settings.webhooks):
        for place, name in enumerate(hook.tenants or ()):
            if tenants and name not in tenants:
                location = ("webhooks", index, "tenants", place)
                yield location, _unknown("tenant", name, tenants)


def _lost_servers(settings: Settings) -> Iterator[tuple[Location, str]]:
    labels = {server.label for server in settings.mcp_servers}
    for index, rule in enumerate(settings.rules):
        pattern = rule.match.server
        if pattern != "*" and not any(fnmatchcase(label, pattern) for label in labels):
            yield ("rules", index, "match", "server"), f'"{pattern}" matches no mcp_servers label'
    for index, tenant in enumerate(settings.tenants):
        for place, label in enumerate(tenant.mcp_servers or ()):
            if label not in labels:
                location = ("tenants", index, "mcp_servers", place)
                yield location, _unknown("MCP server", label, labels)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    return f'no {kind} is called "{name}"; there is {", ".join(sorted(known)) or "none"}'


_OWN_CREDENTIALS = ("authorization", "api-key", "cookie")


def _shadowed_headers(index: int, server: McpServerSettings) -> Iterator[tuple[Location, str]]:
    fixed = {name.lower() for name in server.headers}
    for source, target in server.forward_headers.items():
        location = ("mcp_servers", index, "forward_headers", source)
        if source.lower() in _OWN_CREDENTIALS:
            yield location, f"{source} holds the caller's key for the gateway; use another header"
        if target.lower() in fixed:
            yield location, f"{target} is also in headers; a caller's header has no fallback"


def _plain_credentials(index: int, upstream: UpstreamSettings) -> Iterator[tuple[Location, str]]:
    for name in upstream.headers:
        if name.lower() in ("authorization", "api-key", "x-api-key"):
            yield ("upstreams", index, "headers", name), "credentials belong into auth"


def is_loopback(url: str) -> bool:
    """Tell whether a URL stays on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
