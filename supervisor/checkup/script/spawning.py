"""What is said of a script that starts its ranks itself, and is launched once per rank."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

_WORDS = (b"spawn", b"start_processes")
_LARGEST = 1 << 20
"""The largest source, in bytes, that is looked into: a launch waits for it."""


def warnings(command: Sequence[str], module: bool, cwd: str, nproc: int) -> list[str]:
    """What a launch of `nproc` ranks says before it begins. The call may stand in a branch that these arguments do not
    take. So it is no refusal."""
    script, text = Path(cwd, command[0]), b""
    if nproc > 1 and not module:
        with contextlib.suppress(OSError), script.open("rb") as file:
            text = file.read(_LARGEST)
    if not any(word in text for word in _WORDS):
        return []
    # Only now: a launch does not wait for this import.
    from supervisor.checkup.script.source import Unreadable, read

    with contextlib.suppress(Unreadable):
        if (call := read(text, script.name).spawning) is not None:
            many = f"--nproc {nproc} starts it {nproc} times, and they may wait for each other's ranks for ever"
            return [f"{call.place} starts ranks itself: {many}; leave out --nproc, or that call"]
    return []
