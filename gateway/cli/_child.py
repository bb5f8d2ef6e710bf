"""`python -m gateway.cli._child PARENT COMMAND…`: a gateway command that ends with its parent."""

from __future__ import annotations

import sys

from gateway.server.parent import die_with_parent


def main() -> None:
    """Bind this process to its parent, then run the command."""
    parent, *arguments = sys.argv[1:]
    die_with_parent(int(parent))
    from gateway.cli.commands import cli

    cli(arguments, prog_name="gateway")


if __name__ == "__main__":
    main()
