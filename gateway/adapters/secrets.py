"""Reading secrets where their references point (RUN-6, MCP-2)."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from typing_extensions import override

from gateway.domain.errors import SecretUnavailable
from gateway.domain.ports import SecretSource
from gateway.domain.secrets import SecretRef

_VAULT_VARIABLE = "AZURE_KEYVAULT_URL"


class SecretResolver(SecretSource):
    """Reads secrets at the moment they are sent, so that a rotated one is used at once.

    A file is read again when it changed; a Key Vault secret after `vault_ttl` seconds, and the
    last value serves while the vault does not answer. `keyvault:NAME` is looked up in the vault of
    `AZURE_KEYVAULT_URL`; `keyvault:https://VAULT.vault.azure.net/secrets/NAME` names its own.
    """

    def __init__(self, *, vault_ttl: float = 300.0) -> None:
        self._files: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._vault = _KeyVault(ttl=vault_ttl)

    @override
    async def resolve(self, ref: SecretRef) -> str:
        """Return the secret.

        Raises:
            SecretUnavailable: It is missing, empty or cannot be read.
        """
        if ref.scheme == "env":
            value = os.environ.get(ref.name)
            if value is None:
                raise _unavailable(ref, "the environment variable is not set")
        elif ref.scheme == "file":
            value = self._read_file(ref)
        else:
            value = await self._vault.read(ref)
        if not value:
            raise _unavailable(ref, "the secret is empty")
        return value

    async def aclose(self) -> None:
        """Close connections to Key Vault; may be called twice."""
        await self._vault.aclose()

    def _read_file(self, ref: SecretRef) -> str:
        path = Path(ref.name).expanduser()
        try:
            # Secrets are small local files, often in memory: a thread would cost more than this.
            status = path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            known = self._files.get(ref.name)
            if known is None or known[0] != version:
                known = (version, path.read_text(encoding="utf-8").rstrip("\r\n"))
                self._files[ref.name] = known
        except UnicodeDecodeError:
            raise _unavailable(ref, "the file is not UTF-8 text") from None
        except OSError as exc:
            raise _unavailable(ref, exc.strerror or type(exc).__name__) from None
        return known[1]


class _KeyVault:
    """Azure Key Vault, imported and connected only when a reference asks for it."""

    def __init__(self, *, ttl: float) -> None:
        self._ttl = ttl
        self._known: dict[str, tuple[float, str]] = {}
        self._clients: dict[str, Any] = {}
        self._credential: Any = None
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()

    async def read(self, ref: SecretRef) -> str:
        known = self._known.get(ref.name)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        async with self._lock:
            return await self._fetch(ref, known)

    async def _fetch(self, ref: SecretRef, known: tuple[float, str] | None) -> str:
        client, name = self._client(ref)
        try:
            async with asyncio.timeout(10):
                value = str((await client.get_secret(name)).value or "")
        except Exception as exc:  # noqa: BLE001  # the SDK's errors are many; none may leak
            if known is not None:
                return known[1]
            raise _unavailable(ref, f"Key Vault: {type(exc).__name__}") from None
        self._known[ref.name] = (time.monotonic() + self._ttl, value)
        return value

    def _client(self, ref: SecretRef) -> tuple[Any, str]:
        vault, name = os.environ.get(_VAULT_VARIABLE, ""), ref.name
        if name.startswith("https://"):
            vault, separator, name = name.partition("/secrets/")
            if not separator:
                raise _unavailable(ref, "must be https://VAULT/secrets/NAME")
        if not vault:
            raise _unavailable(ref, f"{_VAULT_VARIABLE} is not set")
        try:
            from azure.identity.aio import DefaultAzureCredential
            from azure.keyvault.secrets.aio import (  # type: ignore[import-untyped,unused-ignore]
                SecretClient,
            )
        except ImportError:
            raise _unavailable(ref, "needs the package azure-keyvault-secrets") from None
        if self._credential is None:
            self._credential = DefaultAzureCredential()
            self._stack.push_async_callback(self._credential.close)
        if vault not in self._clients:
            self._clients[vault] = SecretClient(vault_url=vault, credential=self._credential)
            self._stack.push_async_callback(self._clients[vault].close)
        return self._clients[vault], name.strip("/")

    async def aclose(self) -> None:
        await self._stack.aclose()


def _unavailable(ref: SecretRef, reason: str) -> SecretUnavailable:
    return SecretUnavailable(f"{ref}: {reason}")
