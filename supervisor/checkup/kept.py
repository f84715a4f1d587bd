"""The fork servers that stay on this machine for the user's next runs (--keep-warm)."""

from __future__ import annotations

from supervisor.checkup.checks import Check, Host, Verdict
from supervisor.core.size import human_bytes, human_seconds
from supervisor.group.kept import Kept, found
from supervisor.process.memory import resident


def told(one: Kept) -> str:
    """Such as `pid 71, 231 MB, for train.py in /home/me, 9m 20s more`."""
    size, left = human_bytes(resident(one.pid)), human_seconds(one.left_s)
    return f"pid {one.pid}, {size}, for {one.script} in {one.cwd}, {left} more"


def kept(host: Host) -> Check:
    """How many stay, and what ends them."""
    stay = found()
    if not stay:
        return Check("kept warm", Verdict.OK, "no fork server stays for a next run")
    text = f"stays for the next run: {'; '.join(map(told, stay))}"
    return Check("kept warm", Verdict.OK, text, "to end it now: supervise gc --yes")
