"""Sealing and signing (STATE-4, APPR-11)."""

from __future__ import annotations

from typing import Protocol


class Cipher(Protocol):
    """Authenticated encryption under the key ring (STATE-4)."""

    def encrypt(self, plain: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        """Seal under the first key, bound to tenant, record kind and id."""
        ...

    def decrypt(self, sealed: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        """Open with whichever key sealed it.

        Raises:
            Undecipherable: Unknown key, altered bytes, or bound to something else.
        """
        ...


class TokenCipher(Cipher, Protocol):
    """A cipher that also names texts by keyed tokens."""

    def tokens(self, text: str, *, tenant: str, kind: str, id: str) -> tuple[str, ...]:
        """Name a text, once per key, the first key's name first."""
        ...


class Signer(Protocol):
    """Signatures under the key ring, for what is kept outside the store (APPR-11)."""

    def sign(self, data: bytes, *, tenant: str) -> tuple[str, str]:
        """Sign with the first key; returns its id and the signature."""
        ...

    def is_signed(self, data: bytes, *, tenant: str, key: str, signature: str) -> bool:
        """Tell whether the signature is that of the data, under the key with that id."""
        ...
