from collections.abc import Iterator

import pytest

from gateway.emulator import EmulatorSettings, create_emulator
from gateway.emulator.demo_mcp import create_demo_mcp
from gateway.emulator.serve import serving

from .support import TOKEN, DemoServer, Provider


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def _provider(settings: EmulatorSettings) -> Iterator[Provider]:
    with serving(create_emulator(settings)) as url:
        yield Provider(url)


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    """An OpenAI account that stores."""
    yield from _provider(EmulatorSettings(resource="first"))


@pytest.fixture(scope="session")
def other() -> Iterator[Provider]:
    """Another account: one that cannot open what the first has sealed."""
    yield from _provider(EmulatorSettings(resource="second"))


@pytest.fixture(scope="session")
def azure() -> Iterator[Provider]:
    """An Azure resource with one key."""
    yield from _provider(
        EmulatorSettings(resource="first", azure=True, api_keys=frozenset({"key"}))
    )


@pytest.fixture(scope="session")
def forgetful() -> Iterator[Provider]:
    """A zero-data-retention account."""
    yield from _provider(EmulatorSettings(resource="first", store=False))


@pytest.fixture(scope="session")
def slow() -> Iterator[Provider]:
    """An account that takes its time for each delta and before it starts a background turn."""
    yield from _provider(EmulatorSettings(chunk_delay=0.005, queue_delay=0.1))


@pytest.fixture(scope="session")
def demo_server() -> Iterator[DemoServer]:
    with serving(create_demo_mcp(TOKEN)) as url:
        yield DemoServer(url)


@pytest.fixture
async def demo(demo_server: DemoServer) -> DemoServer:
    """The demo MCP server with an empty book."""
    await demo_server.forget()
    return demo_server
