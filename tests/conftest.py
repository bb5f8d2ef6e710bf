"""What all tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.stack import Gateway, Stack

# How long one example takes says nothing on a machine that does other work as well.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Valkey, emulator and MCP server, once for the session."""
    with Stack.start() as running:
        yield running


@pytest.fixture(scope="session")
def gateway(stack: Stack) -> Iterator[Gateway]:
    """A gateway with the usual settings, once for the session."""
    with stack.gateway() as running:
        yield running


def require(program: str) -> str:
    """Find a program, or skip the test; where nothing may be skipped, fail (RUN-3)."""
    path = shutil.which(program)
    if path is None:
        reason = f"{program} is not installed"
        if os.environ.get("GATEWAY_TEST_REQUIRE") == "all":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
