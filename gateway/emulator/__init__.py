"""An emulated provider: an honest Responses API over HTTP, for newcomers and tests."""

from gateway.emulator.app import create_emulator
from gateway.emulator.settings import EmulatorSettings

__all__ = ["EmulatorSettings", "create_emulator"]
