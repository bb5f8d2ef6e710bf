"""What the reliability tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.reliability.support import Site


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site.start(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture
async def site(module_site: Site) -> AsyncIterator[Site]:
    """Valkey, provider and MCP server, once for a module; replicas live on from test to test."""
    yield module_site
    await module_site.aclose()
