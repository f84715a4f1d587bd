"""Our programs are started by path, so that no module of the user can start in their place."""

from __future__ import annotations

from pathlib import Path

_START = Path(__file__).resolve().parents[1] / "start.py"
STARTUP = Path(__file__).resolve().parents[1] / "startup"
"""A folder on the PYTHONPATH of programs that a rank starts. It contains our hooks."""


def program(name: str) -> list[str]:
    """The arguments of the interpreter to run `name`, a module of the trainer's package with a `main(arguments)`."""
    return [str(_START), name]
