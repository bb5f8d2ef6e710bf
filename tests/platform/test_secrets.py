"""Secrets are read where their references point (RUN-6, MCP-2)."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from gateway.adapters.secrets import SecretResolver
from gateway.domain.errors import SecretUnavailable
from gateway.domain.secrets import SecretRef


@pytest.mark.covers("RUN-6")
async def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SecretResolver()
    monkeypatch.setenv("MY_SECRET", "one")
    assert await resolver.resolve(SecretRef("env", "MY_SECRET")) == "one"
    monkeypatch.setenv("MY_SECRET", "two")
    assert await resolver.resolve(SecretRef("env", "MY_SECRET")) == "two"


@pytest.mark.covers("RUN-6")
async def test_from_a_file_which_is_read_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("one\n")
    resolver, ref = SecretResolver(), SecretRef("file", str(path))
    assert await resolver.resolve(ref) == "one"
    path.write_text("two\r\n")
    os.utime(path, ns=(1, 1))
    assert await resolver.resolve(ref) == "two"


@pytest.mark.parametrize(
    ("ref", "reason"),
    [
        (SecretRef("env", "NOT_SET"), "env:NOT_SET: the environment variable is not set"),
        (SecretRef("env", "EMPTY"), "env:EMPTY: the secret is empty"),
        (SecretRef("file", "/no/such"), "file:/no/such: No such file or directory"),
        (SecretRef("keyvault", "x"), "keyvault:x: "),
    ],
)
async def test_an_error_names_the_reference(
    ref: SecretRef, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(SecretUnavailable) as caught:
        await SecretResolver().resolve(ref)
    assert str(caught.value).startswith(reason)


class Vault:
    """Stands in for the optional SDK: one secret, which can fail."""

    fails = False
    value = "from the vault"
    asked: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, vault_url: str, credential: object) -> None:
        self.url = vault_url

    async def get_secret(self, name: str) -> Any:
        if Vault.fails:
            raise RuntimeError("with a secret in its text")
        Vault.asked.append((self.url, name))
        return self

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> type[Vault]:
    module = ModuleType("azure.keyvault.secrets.aio")
    module.SecretClient = Vault  # type: ignore[attr-defined]  # made up
    monkeypatch.setitem(sys.modules, "azure.keyvault", ModuleType("azure.keyvault"))
    monkeypatch.setitem(sys.modules, "azure.keyvault.secrets", ModuleType("azure.keyvault.secrets"))
    monkeypatch.setitem(sys.modules, "azure.keyvault.secrets.aio", module)
    monkeypatch.setattr(Vault, "fails", False)
    monkeypatch.setattr(Vault, "asked", [])
    return Vault


@pytest.mark.covers("RUN-6")
async def test_from_a_key_vault(vault: type[Vault], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEYVAULT_URL", "https://v")
    resolver = SecretResolver()
    assert await resolver.resolve(SecretRef("keyvault", "name")) == "from the vault"
    assert await resolver.resolve(SecretRef("keyvault", "name")) == "from the vault"
    assert await resolver.resolve(SecretRef("keyvault", "https://w/secrets/n")) == "from the vault"
    assert vault.asked == [("https://v", "name"), ("https://w", "n")]
    await resolver.aclose()


async def test_a_vault_that_fails_is_an_error_or_the_last_value(
    vault: type[Vault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_KEYVAULT_URL", "https://v")
    resolver, ref = SecretResolver(vault_ttl=0), SecretRef("keyvault", "name")
    monkeypatch.setattr(Vault, "fails", True)
    with pytest.raises(SecretUnavailable, match=r"^keyvault:name: Key Vault: RuntimeError$"):
        await resolver.resolve(ref)
    monkeypatch.setattr(Vault, "fails", False)
    await resolver.resolve(ref)
    monkeypatch.setattr(Vault, "fails", True)
    assert await resolver.resolve(ref) == "from the vault"
    await resolver.aclose()
