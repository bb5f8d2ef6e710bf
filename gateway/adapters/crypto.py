"""Encryption at rest: AES-256-GCM under a key ring (STATE-4).

An envelope is

    version (1 byte) · length of the key id (1 byte) · key id · nonce (12 bytes) · ciphertext + tag

and its associated data names tenant, record kind, record id and key id, so that bytes moved to
another place do not open. Nothing is compressed: what is stored is mostly base64 of ciphertext
already, where zlib costs forty times the encryption and saves little.

Each tenant has keys of its own, derived from the ring's. Random 96-bit nonces are safe for 2^32
records under one key, so the bound is per tenant and ring key; rotate before that.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Sequence
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from typing_extensions import override

from gateway.domain.errors import Undecipherable
from gateway.domain.ports import Cipher, Signer

_VERSION = 1
_NONCE = 12
_KEY = 32
_TENANTS_KEPT = 4096
"""How many tenants' derived keys are kept; more only cost a derivation."""


def parse_key(text: str) -> bytes:
    """Read a 32-byte key from base64, plain or URL-safe, padded or not.

    Raises:
        ValueError: It is something else; the text is not repeated, since it is a secret.
    """
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        key = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("an encryption key must be base64 of 32 bytes") from None
    if len(key) != _KEY:
        raise ValueError(f"an encryption key must have 32 bytes, not {len(key)}")
    return key


def new_key() -> str:
    """Make a random key in the form that `parse_key` reads."""
    return base64.b64encode(os.urandom(_KEY)).decode()


class KeyRing(Cipher, Signer):
    """Seals with the first key, opens with whichever sealed it (STATE-4).

    Args:
        keys: Key id and 32 bytes each; the ids are stored in plain, and must stay the same for
            as long as something is kept under them.
    """

    def __init__(self, keys: Sequence[tuple[str, bytes]]) -> None:
        self._keys = {key_id.encode(): bytes(key) for key_id, key in keys}
        if not self._keys:
            raise ValueError("at least one encryption key is needed")
        if len(self._keys) != len(keys):
            raise ValueError("two encryption keys have the same id")
        for key_id, key in self._keys.items():
            if not 1 <= len(key_id) <= 64:
                raise ValueError("the id of an encryption key has 1 to 64 bytes")
            if len(key) != _KEY:
                raise ValueError("an encryption key must have 32 bytes")
        self._first = next(iter(self._keys))
        self._header = bytes((_VERSION, len(self._first))) + self._first
        self._sealer = lru_cache(_TENANTS_KEPT)(self._derive_sealer)
        self._token_key = lru_cache(_TENANTS_KEPT)(self._derive_token_key)

    @override
    def encrypt(self, plain: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        nonce = os.urandom(_NONCE)
        bound = _bound(tenant, kind, id, self._first)
        sealed = self._sealer(self._first, tenant).encrypt(nonce, plain, bound)
        return b"".join((self._header, nonce, sealed))

    @override
    def decrypt(self, sealed: bytes, *, tenant: str, kind: str, id: str) -> bytes:
        key_id, start = self._read_header(sealed, kind)
        body = start + _NONCE
        bound = _bound(tenant, kind, id, key_id)
        try:
            return self._sealer(key_id, tenant).decrypt(sealed[start:body], sealed[body:], bound)
        except (InvalidTag, ValueError):
            raise Undecipherable(f"A stored {kind} record does not open.") from None

    def is_current(self, sealed: bytes) -> bool:
        """Tell whether bytes are sealed under the first key, as they would be now."""
        return sealed.startswith(self._header)

    def tokens(self, text: str, *, tenant: str, kind: str, id: str) -> tuple[str, ...]:
        """Name a text so that equal ones can be told, and nothing else, without opening anything.

        One keyed hash per key of the ring, the first key's first: who stores one of them finds it
        again after a rotation by looking for all.
        """
        data = b"".join((_bound(tenant, kind, id, b""), text.encode("utf-8", "surrogatepass")))
        return tuple(
            hmac.digest(self._token_key(key_id, tenant), data, "sha256")[:16].hex()
            for key_id in self._keys
        )

    @override
    def sign(self, data: bytes, *, tenant: str) -> tuple[str, str]:
        return self._first.decode(), self._mac(self._first, data, tenant)

    @override
    def is_signed(self, data: bytes, *, tenant: str, key: str, signature: str) -> bool:
        key_id = key.encode("utf-8", "surrogatepass")
        if key_id not in self._keys:
            return False
        return hmac.compare_digest(self._mac(key_id, data, tenant), signature)

    def _mac(self, key_id: bytes, data: bytes, tenant: str) -> str:
        return hmac.digest(self._derive(key_id, b"gw-sign-v1", tenant), data, "sha256").hex()

    def _read_header(self, sealed: bytes, kind: str) -> tuple[bytes, int]:
        if len(sealed) < 2 or sealed[0] != _VERSION:
            raise Undecipherable(f"A stored {kind} record is not an envelope.")
        start = 2 + sealed[1]
        key_id = bytes(sealed[2:start])
        if key_id not in self._keys:
            shown = key_id.decode(errors="replace")
            raise Undecipherable(f"A stored {kind} record needs the key {shown!r}.")
        return key_id, start

    def _derive_sealer(self, key_id: bytes, tenant: str) -> AESGCM:
        return AESGCM(self._derive(key_id, b"gw-state-v1", tenant))

    def _derive_token_key(self, key_id: bytes, tenant: str) -> bytes:
        return self._derive(key_id, b"gw-token-v1", tenant)

    def _derive(self, key_id: bytes, purpose: bytes, tenant: str) -> bytes:
        info = purpose + b"\0" + tenant.encode("utf-8", "surrogatepass")
        return HKDF(SHA256(), length=_KEY, salt=None, info=info).derive(self._keys[key_id])


def _bound(tenant: str, kind: str, id: str, key_id: bytes) -> bytes:
    """Encode the associated data injectively: each part is preceded by its length."""
    text = f"{len(tenant)}:{tenant}{len(kind)}:{kind}{len(id)}:{id}{len(key_id)}:"
    return text.encode("utf-8", "surrogatepass") + key_id
