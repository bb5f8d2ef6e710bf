"""Whether a configuration is safe and complete enough for production (RUN-4).

`faults` looks at the settings alone, `live_faults` at what they point to. Both return one line per
fault, which names the setting; an empty list is the only verdict to start on.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from gateway.domain.addresses import Reach, numeric
from gateway.domain.errors import SecretUnavailable
from gateway.domain.identity import Principal, Role
from gateway.domain.rules import Effect
from gateway.domain.secrets import SecretRef
from gateway.domain.terms import ApprovalTerms
from gateway.domain.webhooks import known
from gateway.services import failpoints
from gateway.settings import ApiKeyAuthSettings, McpServerSettings, Settings
from gateway.settings.fields import header_value
from gateway.settings.model import WebhookSettings, is_loopback

Resolve = Callable[[SecretRef], Awaitable[str]]


def faults(settings: Settings) -> list[str]:
    """Judge the settings without asking anybody."""
    return [
        *_missing_parts(settings),
        *_unsupported(settings),
        *_plain_http(settings),
        *_webhooks(settings),
        *_gated_tools(settings),
    ]


async def live_faults(settings: Settings) -> list[str]:
    """Read every secret and ask Redis how it keeps data; needs a minute at most."""
    from gateway.adapters.secrets import SecretResolver

    resolver = SecretResolver()
    failpoint = failpoints.fault(os.environ)
    try:
        found = [failpoint] if failpoint else []
        found += await _secret_faults(settings, resolver.resolve)
        found += await _webhook_faults(settings)
        return found + await _redis_faults(settings, resolver.resolve)
    finally:
        await resolver.aclose()


def _missing_parts(settings: Settings) -> Iterator[str]:
    if settings.redis.url is None:
        yield 'redis.url: is not set; "embedded" or the URL of a Redis is required'
    if settings.redis.embedded and settings.redis.directory is None:
        yield "redis.directory: is not set; the embedded Valkey would forget everything at its end"
    if not settings.encryption.keys:
        yield "encryption.keys: is empty; state is kept encrypted only"
    if not settings.upstreams:
        yield "upstreams: is empty; nothing could answer"
    if not settings.api_keys and settings.auth.jwt is None:
        yield "api_keys: is empty and auth.jwt is not set; nobody could call"
    elif settings.api_keys and not _with_role(settings, Role.CALLER):
        yield "api_keys: none has the role caller; nobody could call a model"


def _unsupported(settings: Settings) -> Iterator[str]:
    if settings.auth.jwt is not None:
        yield "auth.jwt: is not supported yet; use api_keys"
    if settings.redis.embedded:
        return
    url = settings.redis.url
    text = "" if url is None or isinstance(url, SecretRef) else url.get_secret_value()
    scheme = text.partition("://")[0]
    if scheme.endswith("+cluster"):
        yield f"redis.url: {scheme}:// is not supported yet; use redis:// or redis+sentinel://"


def _plain_http(settings: Settings) -> Iterator[str]:
    urls = [
        *((f"upstreams[{i}].base_url", item.base_url) for i, item in enumerate(settings.upstreams)),
        *((f"mcp_servers[{i}].url", item.url) for i, item in enumerate(settings.mcp_servers)),
        *((f"webhooks[{i}].url", item.url) for i, item in enumerate(settings.webhooks)),
        ("policy.url", settings.policy.url or ""),
    ]
    for key, url in urls:
        if url.startswith("http:") and not is_loopback(url):
            yield f"{key}: is plain http; credentials and content need https beyond this machine"


def _webhooks(settings: Settings) -> Iterator[str]:
    for index, webhook in enumerate(settings.webhooks):
        place = f"webhooks[{index}]"
        if webhook.secret is None:
            yield f"{place}.secret: is not set; receivers could not verify anything"
        reason = _reach(settings, webhook).refusal(_address(webhook.url))
        if reason is not None and numeric(_address(webhook.url)):
            openable = Reach(private=True).refusal(_address(webhook.url)) is None
            yield _refused(place, f"leads to {reason}", openable=openable)
        for pattern in webhook.events:
            if not known(pattern):
                yield f'{place}.events: "{pattern}" matches no event'
        if webhook.format != "standard" and settings.server.public_url is None:
            yield f"{place}.format: needs server.public_url, where its links lead to"


def _reach(settings: Settings, webhook: WebhookSettings) -> Reach:
    return Reach(private=webhook.allow_private, networks=settings.to_networks())


def _address(url: str) -> str:
    """Return a URL's host, with the address of one that is this machine by its name."""
    host = urlsplit(url).hostname or ""
    return "127.0.0.1" if is_loopback(url) and not numeric(host) else host


def _refused(place: str, reason: str, *, openable: bool) -> str:
    way = f"; {place}.allow_private = true would allow it" if openable else ""
    return f"{place}.url: {reason}{way}"


async def _webhook_faults(settings: Settings) -> list[str]:
    """Look up where the names of webhooks lead; a name that is not known yet is no fault."""
    from gateway.adapters.webhook import HttpWebhookSender

    found: list[str] = []
    async with HttpWebhookSender(timeout=5) as sender:
        for index, webhook in enumerate(settings.webhooks):
            if not webhook.url.startswith("https:") or numeric(_address(webhook.url)):
                continue  # judged without asking anybody
            reason = await sender.refusal(webhook.url, _reach(settings, webhook))
            if reason is not None:
                openable = await sender.refusal(webhook.url, Reach(private=True)) is None
                found.append(_refused(f"webhooks[{index}]", reason, openable=openable))
    return found


# Gated tools: somebody must be able to approve


@dataclass(frozen=True, slots=True)
class _Gate:
    """Terms under which a person decides, and where they are written."""

    key: str
    labels: frozenset[str]
    terms: ApprovalTerms
    why: str = ""


def _gated_tools(settings: Settings) -> Iterator[str]:
    if settings.auth.jwt is not None:
        return  # approvers may come with tokens, which nobody can count beforehand
    principals = [key.to_domain().principal for key in settings.api_keys]
    for gate in _gates(settings):
        for tenant in _tenants_of(settings, gate.labels):
            own = [principal for principal in principals if principal.tenant == tenant]
            fault = _unapprovable(gate.terms, own)
            if fault:
                yield f'{gate.key}: {gate.why}in tenant "{tenant}" {fault}'


def _gates(settings: Settings) -> Iterator[_Gate]:
    for index, rule in enumerate(settings.rules):
        terms = rule.approval.to_domain()
        if rule.effect is Effect.ASK and terms.by == "approver":
            labels = frozenset(
                server.label
                for server in settings.mcp_servers
                if fnmatchcase(server.label, rule.match.server)
            )
            yield _Gate(f"rules[{index}].approval.approvers", labels, terms)
    for index, server in enumerate(settings.mcp_servers):
        if _falls_to_default(settings, server):
            why = "a tool without a rule asks an approver; "
            yield _Gate(f"mcp_servers[{index}]", frozenset({server.label}), ApprovalTerms(), why)


def _falls_to_default(settings: Settings, server: McpServerSettings) -> bool:
    """Tell whether some tool of the server has no rule, so that an approver is asked."""
    rules = settings.to_rule_set()
    tools = server.allowed_tools
    if tools is None:  # any tool: one whose name only a pattern for all tools would match
        tools = ("(a tool that no rule names)",)
    return any(rules.decide(server.label, tool).rule == "default" for tool in tools)


def _tenants_of(settings: Settings, labels: frozenset[str]) -> list[str]:
    return [
        tenant.id
        for tenant in settings.to_tenants()
        if labels and (tenant.mcp_servers is None or tenant.mcp_servers & labels)
    ]


def _unapprovable(terms: ApprovalTerms, principals: list[Principal]) -> str | None:
    """Say why nobody's call could ever be approved by a tenant's principals, if so."""
    callers = {principal.subject for principal in principals if principal.has(Role.CALLER)}
    approvers = {item.subject for item in principals if may_approve(item, terms.everyone)}
    if not callers:
        return None  # nobody can call, so nothing waits
    wanted = " or ".join(terms.everyone)
    if not approvers:
        return f"no api_key matches {wanted}, so nobody could approve"
    others = max(len(approvers if terms.allow_self else approvers - {who}) for who in callers)
    if others >= terms.quorum:
        return None
    if others == 0:
        return f"only the caller itself matches {wanted}, and allow_self is false"
    return f"quorum is {terms.quorum}, but {others} other subject(s) match {wanted}"


def may_approve(principal: Principal, approvers: Iterable[str]) -> bool:
    """Tell whether a principal is one of a rule's approvers; admins have every role."""
    for entry in approvers:
        kind, _, name = entry.partition(":")
        if kind == "role" and principal.has(Role(name)):
            return True
        if kind == "group" and name in principal.groups:
            return True
        if kind == "subject" and name == principal.subject:
            return True
    return False


def _with_role(settings: Settings, role: Role) -> list[str]:
    keys = settings.to_api_keys()
    return [key.id for key in keys if key.principal.has(role)]


# What only the outside can tell


async def _secret_faults(settings: Settings, resolve: Resolve) -> list[str]:
    from gateway.adapters.crypto import parse_key

    found: list[str] = []
    for key, ref in _references(settings):
        try:
            value = await resolve(ref)
            if key.startswith("encryption."):
                parse_key(value)
            elif key.startswith(("mcp_servers[", "policy.")):
                header_value(value)
        except SecretUnavailable as exc:
            found.append(f"{key}: {exc}")
        except ValueError as exc:
            found.append(f"{key}: {ref}: {exc}")
    return found


def _references(settings: Settings) -> Iterator[tuple[str, SecretRef]]:
    for index, entry in enumerate(settings.encryption.keys):
        yield f"encryption.keys[{index}].value", entry.value
    for index, upstream in enumerate(settings.upstreams):
        if isinstance(upstream.auth, ApiKeyAuthSettings):
            yield f"upstreams[{index}].auth.value", upstream.auth.value
    for index, server in enumerate(settings.mcp_servers):
        for name, ref in server.headers.items():
            yield f"mcp_servers[{index}].headers.{name}", ref
    for name, ref in settings.policy.headers.items():
        yield f"policy.headers.{name}", ref
    for index, webhook in enumerate(settings.webhooks):
        if webhook.secret is not None:
            yield f"webhooks[{index}].secret", webhook.secret


async def _redis_faults(settings: Settings, resolve: Resolve) -> list[str]:
    if settings.redis.url is None:
        return []
    if settings.redis.embedded:
        return _embedded_faults()

    try:
        url = await settings.redis.resolve_url(resolve)
        info = await _redis_info(url, settings)
    except SecretUnavailable as exc:
        return [f"redis.url: {exc}"]
    except Exception as exc:  # noqa: BLE001  # whatever the client raises; its text may hold the URL
        return [f"redis.url: cannot be reached ({type(exc).__name__})"]
    return list(_durability_faults(info, allow_volatile=settings.redis.allow_volatile))


def _embedded_faults() -> list[str]:
    from gateway.adapters.redis.embedded import EmbeddedValkeyError, find_server

    try:
        find_server()
    except EmbeddedValkeyError as exc:
        return [f"redis.url: {exc}"]
    return []


async def _redis_info(url: str, settings: Settings) -> dict[str, object]:
    from gateway.adapters.redis.client import open_clients

    async with open_clients(
        url,
        socket_timeout=max(settings.redis.timeout, 1.0),
        connect_timeout=settings.redis.connect_timeout,
    ) as clients:
        client = clients.commands
        return {**await client.info("memory"), **await client.info("persistence")}


def _durability_faults(info: dict[str, object], *, allow_volatile: bool) -> Iterator[str]:
    """Judge what INFO says: it is open where CONFIG is not, as in managed services."""
    policy = info.get("maxmemory_policy")
    if policy is None and not allow_volatile:
        yield "redis.url: the server does not tell its maxmemory-policy; see redis.allow_volatile"
    elif policy not in (None, "noeviction"):
        yield f"redis.url: maxmemory-policy is {policy}; it must be noeviction, or state vanishes"
    if str(info.get("aof_enabled", "0")) != "1" and not allow_volatile:
        yield (
            "redis.url: the append-only file is off, so a crash loses approvals and chains; "
            "set appendonly yes on the server, or redis.allow_volatile = true"
        )
