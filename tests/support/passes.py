"""Passes of the console's playground, without a browser."""

from __future__ import annotations

import os
import time

from gateway.adapters.crypto import KeyRing as CipherRing
from gateway.adapters.crypto import parse_key
from gateway.console.sessions import PASS_LIFETIME, Sessions, Visitor
from gateway.domain.identity import KeyRing
from gateway.services.callers import Caller
from tests.support.stack import Gateway


def passing(gateway: Gateway, *, key: str = "caller", seconds: float = PASS_LIFETIME) -> str:
    """Write a console's pass that is valid for so many seconds more."""
    cipher = CipherRing([("k1", parse_key(os.environ["TEST_ENCRYPTION_KEY"]))])
    keys = KeyRing(gateway.settings.to_api_keys())
    tenants = {tenant.id: tenant for tenant in gateway.settings.to_tenants()}
    entry = keys.entry(key)
    assert entry is not None
    who = Visitor(Caller(principal=entry.principal, tenant=tenants[entry.tenant]), "session")
    issued = time.time() - PASS_LIFETIME + seconds
    return Sessions(cipher, keys, tenants, clock=lambda: issued).issue_pass(who)
