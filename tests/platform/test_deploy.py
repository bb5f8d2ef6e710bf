"""The files for deployment, judged by the tools of their kind, without network (OPS-3)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped,unused-ignore]

from gateway.checks import faults
from gateway.settings import load_settings
from tests.conftest import require

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.mark.covers("OPS-3")
def test_the_compose_file_fits_the_compose_specification() -> None:
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *schema, str(COMPOSE)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.covers("OPS-3")
def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    done = subprocess.run(
        [require("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.covers("OPS-3")
def test_no_service_runs_as_root_or_writes_to_its_root(services: dict[str, Any]) -> None:
    users = [line for line in DOCKERFILE.read_text().splitlines() if line.startswith("USER ")]
    assert users[-1] not in ("USER root", "USER 0")
    assert services["redis"]["user"] == "999:999"
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.covers("OPS-3")
def test_redis_is_told_what_the_gateway_demands(services: dict[str, Any]) -> None:
    command = " ".join(services["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command


@pytest.mark.covers("OPS-3", "RUN-4")
def test_the_example_configuration_is_one_to_start_on() -> None:
    assert faults(load_settings(ROOT / "deploy" / "gateway.toml")) == []
