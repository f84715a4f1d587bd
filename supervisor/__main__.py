"""The `supervise` program: one line for what went wrong, and the exit code out."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    from supervisor.commands.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
