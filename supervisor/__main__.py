"""The `supervise` program: one line for what went wrong, and the exit code out."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    # By the name that nobody else has: before this line, `trainer` may be the user's.
    importlib.import_module("_supervise.names").ours_alone()
    from supervisor.commands.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
