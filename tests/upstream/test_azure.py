"""Azure OpenAI as the upstream: keys, Entra ID tokens through the real azure-identity, v1 URLs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.serve import serving
from tests.support.stack import OPEN_CLIENTS, Stack


@dataclass
class Identity:
    """A managed-identity endpoint as Azure's app services have it, on loopback."""

    url: str = ""
    tokens: list[str] = field(default_factory=list)
    resources: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        self.resources.append(request.query["resource"])
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        body = {
            "access_token": token,
            "expires_on": str(int(time.time()) + 3600),
            "resource": request.query["resource"],
            "token_type": "Bearer",
        }
        return web.json_response(body)


@pytest.fixture
async def identity(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Identity]:
    endpoint = Identity()
    app = web.Application()
    app.router.add_get("/token", endpoint.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{port}/token")
    monkeypatch.setenv("IDENTITY_HEADER", "secret")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
    yield endpoint
    await runner.cleanup()


@pytest.fixture(scope="module")
def azure() -> Iterator[str]:
    settings = EmulatorSettings(
        azure=True, api_keys=frozenset({"token-good", "sk-upstream-canary-51c0"})
    )
    with serving(create_emulator(settings)) as url:
        yield url


@pytest.fixture(autouse=True)
async def _closed_clients() -> AsyncIterator[None]:
    yield
    while OPEN_CLIENTS:
        await OPEN_CLIENTS.pop().close()


def _upstream(url: str, **changes: Any) -> list[dict[str, Any]]:
    entry = {
        "name": "sweden",
        "kind": "azure",
        "base_url": url + "/openai/v1/",
        "auth": {"type": "api_key", "value": "env:TEST_UPSTREAM_KEY"},
        **changes,
    }
    return [entry]


async def _requests(url: str) -> list[dict[str, Any]]:
    import httpx2

    async with httpx2.AsyncClient(trust_env=False) as client:
        found = (await client.get(url + "/_emulator/requests")).json()
        await client.delete(url + "/_emulator/requests")
        return list(found["requests"] if isinstance(found, dict) else found)


@pytest.mark.covers("API-8")
async def test_a_key_reaches_azures_v1_path_with_the_configured_query_and_headers(
    stack: Stack, azure: str
) -> None:
    upstreams = _upstream(
        azure,
        query={"api-version": "preview"},
        headers={"x-ms-oai-image-generation-deployment": "gpt-image"},
    )
    with stack.gateway(upstreams=upstreams) as gateway:
        response = await gateway.client().responses.create(model="gpt-41", input="/echo hi")
    assert response.output_text == "hi"
    sent = (await _requests(azure))[-1]
    assert sent["path"] == "/openai/v1/responses"
    assert sent["query"] == {"api-version": "preview"} or sent["query"] == "api-version=preview"
    assert sent["headers"]["x-ms-oai-image-generation-deployment"] == "gpt-image"


@pytest.mark.covers("API-8")
async def test_an_entra_id_token_is_fetched_by_azure_identity_and_kept(
    stack: Stack, azure: str, identity: Identity
) -> None:
    identity.tokens = ["token-good"]
    with stack.gateway(upstreams=_upstream(azure, auth={"type": "entra"})) as gateway:
        client = gateway.client()
        for _ in range(3):
            response = await client.responses.create(model="gpt-41", input="/echo hi")
            assert response.output_text == "hi"
    assert identity.resources == ["https://cognitiveservices.azure.com"]


@pytest.mark.covers("API-8")
async def test_a_token_that_the_upstream_refuses_is_renewed_once(
    stack: Stack, azure: str, identity: Identity
) -> None:
    identity.tokens = ["token-revoked", "token-good"]
    with stack.gateway(upstreams=_upstream(azure, auth={"type": "entra"})) as gateway:
        response = await gateway.client().responses.create(model="gpt-41", input="/echo hi")
    assert response.output_text == "hi"
    assert len(identity.resources) == 2


@pytest.mark.covers("API-8", "API-5")
async def test_a_credential_that_is_refused_twice_is_a_401_without_its_text(
    stack: Stack, azure: str, identity: Identity
) -> None:
    identity.tokens = ["token-revoked"]
    with stack.gateway(upstreams=_upstream(azure, auth={"type": "entra"})) as gateway:
        async with gateway.http() as client:
            answer = await client.post("/v1/responses", json={"model": "m", "input": "hi"})
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "The upstream refused the gateway's credential."
    assert len(identity.resources) == 2


@pytest.mark.covers("API-8")
async def test_no_token_at_all_is_a_503_that_names_the_scope_only(
    stack: Stack, azure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:9/token")
    monkeypatch.setenv("IDENTITY_HEADER", "secret")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    with stack.gateway(upstreams=_upstream(azure, auth={"type": "entra"})) as gateway:
        async with gateway.http() as client:
            answer = await client.post("/v1/responses", json={"model": "m", "input": "hi"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "secret_unavailable")
    assert "cognitiveservices" in error["message"]
