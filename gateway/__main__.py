"""The `gateway` command."""

from __future__ import annotations

from gateway.cli.commands import cli


def main() -> None:
    """Run the command line."""
    cli(prog_name="gateway")


if __name__ == "__main__":
    main()
