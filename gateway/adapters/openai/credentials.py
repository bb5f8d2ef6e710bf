"""Credentials for upstreams: keys by reference, or Entra ID tokens (API-8)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from gateway.domain.errors import SecretUnavailable
from gateway.domain.ports import SecretSource
from gateway.domain.secrets import SecretRef

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential

_REFRESH_AHEAD = 300.0
"""Seconds before its expiry at which a token is renewed."""


class Credential(Protocol):
    """What goes behind `Authorization: Bearer` for one upstream."""

    async def get(self) -> str:
        """Return the key or token to send now."""
        ...

    async def renew(self) -> bool:
        """Forget what the upstream refused with 401; false when a new one cannot be had."""
        ...

    async def aclose(self) -> None:
        """Release what the credential holds."""
        ...


class KeyCredential(Credential):
    """A key that is read from its reference each time it is sent."""

    def __init__(self, source: SecretSource, ref: SecretRef) -> None:
        self._source = source
        self._ref = ref

    @override
    async def get(self) -> str:
        return await self._source.resolve(self._ref)

    @override
    async def renew(self) -> bool:
        return False

    @override
    async def aclose(self) -> None:
        return None


class EntraCredential(Credential):
    """Entra ID tokens, one credential per upstream.

    Args:
        make: Makes an azure-identity credential. It is made anew after a 401, because
            credentials keep tokens of their own and would return the refused one.
    """

    def __init__(self, make: CredentialFactory, scope: str) -> None:
        self._make = make
        self._scope = scope
        self._credential: AsyncTokenCredential | None = None
        self._token: AccessToken | None = None

    @override
    async def get(self) -> str:
        if self._token is None or self._token.expires_on - time.time() < _REFRESH_AHEAD:
            self._token = await self._fetch()
        return self._token.token

    async def _fetch(self) -> AccessToken:
        from azure.core.exceptions import AzureError

        if self._credential is None:
            self._credential = self._make()
        try:
            return await self._credential.get_token(self._scope)
        except AzureError as exc:
            # The text of such an error lists the environment; its class says enough.
            raise SecretUnavailable(
                f"No Entra ID token for {self._scope}: {type(exc).__name__}."
            ) from exc

    @override
    async def renew(self) -> bool:
        await self.aclose()
        return True

    @override
    async def aclose(self) -> None:
        credential, self._credential, self._token = self._credential, None, None
        if credential is not None:
            await credential.close()


class CredentialFactory(Protocol):
    """Makes an azure-identity credential."""

    def __call__(self) -> AsyncTokenCredential:
        """Make one."""
        ...


def default_azure_credential() -> AsyncTokenCredential:
    """Make azure-identity's default chain: environment, workload and managed identity, CLI."""
    from azure.identity.aio import DefaultAzureCredential  # 0.4 s to import: only where needed

    return DefaultAzureCredential()
