"""What a developer and CI run, as `uv run nox [-s SESSION]`, in the project's own environment."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "imports", "types", "test"]
nox.options.stop_on_first_error = False


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and spelling."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def imports(session: nox.Session) -> None:
    """Check the layers: see `[tool.importlinter]` in pyproject.toml."""
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package and its tests."""
    session.run("mypy")


@nox.session
def test(session: nox.Session) -> None:
    """Run the tests; arguments after `--` go to pytest."""
    session.run("pytest", *session.posargs)


@nox.session
def reliability(session: nox.Session) -> None:
    """Kill and stall real processes: docs/reliability.md; `-- --long` does it for long."""
    arguments = [argument for argument in session.posargs if argument != "--long"]
    mode = "long" if "--long" in session.posargs else "usual"
    session.run("pytest", *(arguments or ["tests/reliability"]), env={"GATEWAY_RELIABILITY": mode})


@nox.session
def clients(session: nox.Session) -> None:
    """Install foreign clients and run them against the gateway: docs/compatibility.md."""
    require = {"GATEWAY_TEST_REQUIRE": "all"}
    session.run("pytest", "tests/clients", *session.posargs, env=require)


@nox.session
def compliance(session: nox.Session) -> None:
    """Run the suite of Open Responses; OPEN_RESPONSES_SUITE names its checkout."""
    session.run("pytest", *(session.posargs or ["tests/compliance"]))


@nox.session
def deploy(session: nox.Session) -> None:
    """Check the Dockerfile and the deployment files, without network."""
    session.run("hadolint", "Dockerfile")
    session.run(
        "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"
    )
    session.run("gateway", "check", "--offline", "--config", "deploy/gateway.toml")


@nox.session
def image(session: nox.Session) -> None:
    """Build the Dockerfile without an engine and run the image; needs root and buildah."""
    session.run(".ci/image", external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the gateway beside nginx and the bare upstream: see bench/README.md."""
    session.run("python", "-m", "bench", *session.posargs)
