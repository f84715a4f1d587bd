"""Our programs, started by path: whatever the user calls their own modules, it is ours that starts."""

from __future__ import annotations

from pathlib import Path

_START = Path(__file__).resolve().parents[1] / "start.py"
STARTUP = Path(__file__).resolve().parents[1] / "startup"
"""On the PYTHONPATH of programs that a rank starts: there they find our hooks."""


def program(name: str) -> list[str]:
    """What the interpreter is to be given to run `name`, a module of the trainer's package that has a `main(arguments)`."""
    return [str(_START), name]
