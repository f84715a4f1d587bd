"""What is said of a script that starts its ranks itself, and is launched once per rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_WORDS = (b"spawn", b"start_processes")


def warnings(command: Sequence[str], module: bool, cwd: str, nproc: int) -> list[str]:
    """What a launch of `nproc` ranks says before it begins. The call may stand in a branch that these arguments do not
    take. So it is no refusal."""
    script = Path(cwd, command[0])
    if nproc == 1 or module or not script.is_file() or not any(word in script.read_bytes() for word in _WORDS):
        return []
    # Only now: a launch does not wait for these imports.
    from supervisor.checkup.script.files import text_of
    from supervisor.checkup.script.source import Unreadable, read

    try:
        spawning = read(text_of(script), script.name).spawning
    except Unreadable:
        return []
    if spawning is None:
        return []
    many = f"--nproc {nproc} starts it {nproc} times, and they may wait for each other's ranks for ever"
    return [f"{spawning.place} starts ranks itself: {many}; leave out --nproc, or that call"]
