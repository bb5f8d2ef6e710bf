"""`encrypted_content`: sealed by one resource, for one model and one item.

The key is derived from the resource's name alone, so that a restarted emulator still opens what it
sealed and a differently named one does not. It keeps nothing secret; it only makes tampering and
misdirection fail the way they fail at the provider.
"""

import base64
import binascii
import hashlib
import secrets
import struct
import time

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.emulator.errors import invalid_encrypted_content

_HEADER = 9
_NONCE = 12


class _Sealed(msgspec.Struct, frozen=True):
    id: str
    text: str
    stage: str


class Sealer:
    """Seals and opens the reasoning of one resource."""

    def __init__(self, resource: str) -> None:
        key = hashlib.sha256(b"emulated reasoning of " + resource.encode()).digest()
        self._cipher = AESGCM(key)

    def seal(self, *, model: str, item_id: str, text: str, stage: str) -> str:
        """Return a ciphertext; each call and each `stage` of an item gives a different one."""
        header = b"\x80" + struct.pack(">Q", int(time.time()))
        nonce = secrets.token_bytes(_NONCE)
        plain = msgspec.json.encode(_Sealed(item_id, "" if stage == "added" else text, stage))
        padded = plain + b" " * (-len(plain) % 64)
        sealed = self._cipher.encrypt(nonce, padded, header + model.encode())
        return base64.urlsafe_b64encode(header + nonce + sealed).decode()

    def open(self, sealed: str, *, model: str, item_id: str | None) -> str:
        """Return the sealed text.

        Raises:
            ApiError: `invalid_encrypted_content`, when the text was altered, or sealed by another
                resource, for another model or for another item.
        """
        try:
            raw = base64.urlsafe_b64decode(sealed.encode("ascii"))
            header, nonce, rest = raw[:_HEADER], raw[_HEADER : _HEADER + _NONCE], raw[21:]
            plain = self._cipher.decrypt(nonce, rest, header + model.encode())
        except (binascii.Error, ValueError, InvalidTag) as exc:
            raise invalid_encrypted_content(sealed) from exc
        found = msgspec.json.decode(plain, type=_Sealed)
        if item_id and item_id != found.id:
            raise invalid_encrypted_content(sealed)
        return found.text
