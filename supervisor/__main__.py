"""The `supervise` program. An error is one line and an exit code."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    # By its private name: before this line, `trainer` may be the user's module.
    importlib.import_module("_supervise.names").ours_alone()
    from supervisor.commands.standard import all_there

    # Before anything is opened that stays open.
    all_there()
    from supervisor.commands.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
