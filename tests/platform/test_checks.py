"""Verdicts on a configuration (RUN-4): one line per fault, naming the setting."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gateway.adapters.redis.embedded import EmbeddedValkey
from gateway.checks import faults, live_faults
from gateway.settings import Settings, load_settings

Change = tuple[str, str]

Write = Callable[..., Path]
HASH = "sha256:" + "0" * 64


@pytest.fixture
def load(write: Write) -> Callable[..., Settings]:
    def load(*changes: Change, more: str = "") -> Settings:
        return load_settings(write(*changes, more=more))

    return load


def test_a_complete_configuration_has_no_fault(load: Callable[..., Settings]) -> None:
    assert faults(load()) == []


@pytest.mark.covers("RUN-4")
def test_an_empty_one_names_all_that_is_missing() -> None:
    keys = [line.partition(":")[0] for line in faults(Settings())]
    assert keys == ["redis.url", "encryption.keys", "upstreams", "api_keys"]


HOOK = '[[webhooks]]\nsecret = "env:S"\nurl = "%s"\n'
ANYBODY = ('roles = ["approver"]', 'roles = ["caller"]')
KEY = f'\n[[api_keys]]\nid = "x"\ntenant = "acme"\nsubject = "%s"\nroles = [%s]\nhash = "{HASH}"\n'


@pytest.mark.covers("RUN-4")
@pytest.mark.parametrize(
    ("changes", "more", "fault"),
    [
        ([('directory = "state"', "")], "", "redis.directory: is not set"),
        ([("https://mcp", "http://mcp")], "", "mcp_servers[0].url: is plain http"),
        ([("https://name", "http://name")], "", "upstreams[0].base_url: is plain http"),
        ([], '[[webhooks]]\nurl = "https://h"', "webhooks[0].secret: is not set"),
        ([], '[[webhooks]]\nurl = "http://h"\nsecret = "env:S"', "webhooks[0].url: is plain http"),
        (
            [],
            HOOK % "https://127.0.0.1/x",
            "webhooks[0].url: leads to a loopback address; webhooks",
        ),
        ([], HOOK % "http://localhost/x", "webhooks[0].url: leads to a loopback address"),
        ([], HOOK % "https://x.localhost/x", "webhooks[0].url: leads to a loopback address"),
        ([], HOOK % "https://10.1.2.3/x", "webhooks[0].url: leads to a private address"),
        ([], HOOK % "https://[::ffff:10.0.0.1]", "webhooks[0].url: leads to a private address"),
        ([], HOOK % "https://[fd00::1]/x", "webhooks[0].url: leads to a private address"),
        (
            [],
            HOOK % "https://169.254.169.254/x" + "allow_private = true",
            "webhooks[0].url: leads to a metadata service",
        ),
        (
            [],
            HOOK % "https://h" + 'events = ["approval.lost"]',
            'webhooks[0].events: "approval.lost" matches no event',
        ),
        (
            [],
            HOOK % "https://h" + 'format = "slack"',
            "webhooks[0].format: needs server.public_url",
        ),
        ([], '[auth.jwt]\nissuer = "https://i"\naudience = "a"', "auth.jwt: is not supported yet"),
        ([('"embedded"', '"redis+cluster://h"')], "", "redis.url: redis+cluster:// is not"),
        ([('roles = ["caller"]', 'roles = ["auditor"]')], "", "api_keys: none has the role caller"),
        ([ANYBODY], "", "rules[1].approval.approvers: in tenant"),
        ([ANYBODY], "", "mcp_servers[0]: a tool without a rule asks an approver"),
        ([("quorum = 1", "quorum = 2")], "", "rules[1].approval.approvers: in tenant"),
        ([("role:approver", "group:finance")], "", "rules[1].approval.approvers: in tenant"),
        ([("user:ann", "svc:web")], "", "rules[1].approval.approvers: in tenant"),
        (
            [('id = "ann"\ntenant = "acme"', 'id = "ann"\ntenant = "other"')],
            "",
            'rules[1].approval.approvers: in tenant "acme" no api_key matches role:approver',
        ),
    ],
)
def test_a_fault(
    load: Callable[..., Settings], changes: list[Change], more: str, fault: str
) -> None:
    found = faults(load(*changes, more=more))
    assert any(line.startswith(fault) for line in found), found


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ([("role:approver", "group:security")], ""),
        ([("role:approver", "subject:user:ann")], ""),
        ([("quorum = 1", "quorum = 2")], KEY % ("user:bob", '"admin"')),
        ([("https://mcp.example.com", "http://127.0.0.1:9")], ""),
        ([], HOOK % "https://1.1.1.1/x" + 'events = ["approval.*", "tool.drifted"]'),
        ([], HOOK % "http://127.0.0.1/x" + "allow_private = true"),
        (
            [],
            HOOK % "https://10.1.2.3/x" + '[webhook_delivery]\nallow_networks = ["10.1.0.0/16"]',
        ),
        ([ANYBODY, ('effect = "ask"', 'effect = "deny"')], '[[rules]]\nid = "x"\neffect = "deny"'),
        (
            [ANYBODY, ("quorum = 1", 'by = "caller"')],
            '[[rules]]\nid = "x"\neffect = "allow"',
        ),
        (
            [
                ANYBODY,
                ('label = "github"', 'label = "github"\nallowed_tools = ["search_x"]'),
                ('effect = "ask"', 'effect = "deny"'),
            ],
            "",
        ),
        ([ANYBODY], '[[tenants]]\nid = "acme"\nmcp_servers = []'),
    ],
)
def test_no_fault(load: Callable[..., Settings], changes: list[Change], more: str) -> None:
    assert faults(load(*changes, more=more)) == []


def test_a_quorum_larger_than_its_group_is_a_fault(load: Callable[..., Settings]) -> None:
    (fault,) = faults(load(("quorum = 1", "quorum = 2")))
    assert fault.startswith("rules[1].approval.approvers: in tenant")
    assert "quorum" in fault


def test_approving_ones_own_call_counts_only_where_allowed(load: Callable[..., Settings]) -> None:
    alone = ('"caller"]', '"caller", "approver"]')
    same = ("user:ann", "svc:web")
    rest = '[[rules]]\nid = "x"\neffect = "deny"\nmatch = { tool = "z*" }'
    assert any("allow_self is false" in line for line in faults(load(alone, same, more=rest)))
    allowed = ("quorum = 1", "quorum = 1, allow_self = true")
    found = faults(load(alone, same, allowed))
    assert not any(line.startswith("rules") for line in found)


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_1", "A" * 43 + "=")
    monkeypatch.setenv("PROVIDER_KEY", "sk-x")
    monkeypatch.setenv("GITHUB_AUTH", "Bearer x")


@pytest.fixture
def valkey(monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    with EmbeddedValkey() as server, Redis.from_url(server.url) as client:
        client.config_set("appendonly", "yes")
        monkeypatch.setenv("GATEWAY_REDIS__URL", server.url)
        yield client


@pytest.mark.covers("RUN-4", "RUN-6")
async def test_secrets_that_cannot_be_read_are_faults(
    load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_1", "too short")
    monkeypatch.setenv("GITHUB_AUTH", "Bearer\nx")
    found = await live_faults(load())
    assert [line.partition(": ")[0] for line in found] == [
        "encryption.keys[0].value",
        "upstreams[0].auth.value",
        "mcp_servers[0].headers.Authorization",
    ]
    assert "too short" not in "".join(found)


@pytest.mark.usefixtures("secrets", "valkey")
async def test_a_durable_redis_is_no_fault(load: Callable[..., Settings]) -> None:
    assert await live_faults(load()) == []


@pytest.mark.covers("RUN-4")
@pytest.mark.usefixtures("secrets")
async def test_a_redis_that_evicts_is_a_fault(load: Callable[..., Settings], valkey: Redis) -> None:
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    (fault,) = await live_faults(load())
    assert fault.startswith("redis.url: maxmemory-policy is allkeys-lru")


@pytest.mark.covers("RUN-4")
@pytest.mark.usefixtures("secrets")
async def test_a_redis_without_a_file_is_a_fault_unless_accepted(
    load: Callable[..., Settings], valkey: Redis
) -> None:
    valkey.config_set("appendonly", "no")
    (fault,) = await live_faults(load())
    assert fault.startswith("redis.url: the append-only file is off")
    assert await live_faults(load(("[redis]", "[redis]\nallow_volatile = true"))) == []


@pytest.mark.usefixtures("secrets")
async def test_a_redis_that_is_not_there_is_a_fault_without_its_password(
    load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("GATEWAY_REDIS__URL", f"redis://:hunter2@127.0.0.1:{free_port}")
    (fault,) = await live_faults(load())
    assert fault == "redis.url: cannot be reached (ConnectionError)"


@pytest.mark.usefixtures("secrets")
async def test_the_embedded_one_needs_only_its_binary(load: Callable[..., Settings]) -> None:
    assert await live_faults(load()) == []


@pytest.mark.covers("RUN-4", "APPR-9")
@pytest.mark.usefixtures("secrets")
async def test_a_webhook_whose_name_leads_to_a_private_address_is_a_fault(
    load: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S", "whsec_" + "A" * 44)

    def lookup(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "unknown.example.com":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        address = {"inside.example.com": "10.1.2.3", "meta.example.com": "169.254.169.254"}[host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    inside, meta = HOOK % "https://inside.example.com/x", HOOK % "https://meta.example.com/x"
    (fault,) = await live_faults(load(more=inside))
    assert fault == (
        "webhooks[0].url: leads to a private address; webhooks[0].allow_private = true "
        "would allow it"
    )
    assert await live_faults(load(more=inside + "allow_private = true")) == []
    (fault,) = await live_faults(load(more=meta + "allow_private = true"))
    assert fault == "webhooks[0].url: leads to a metadata service"
    assert await live_faults(load(more=HOOK % "https://unknown.example.com/x")) == []
