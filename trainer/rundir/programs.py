"""Our programs that are run as files, by path: whatever the user calls their own modules, it is ours that starts."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def program(name: str) -> str:
    """The path of the file `name` of the trainer's package, as an argument for the interpreter."""
    return str(_PACKAGE / name)
