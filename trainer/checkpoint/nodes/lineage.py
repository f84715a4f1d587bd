"""What each attempt went on from. A node that was lost may wake up, and its ranks may commit what they were about to:
whatever an older attempt has beyond the point from which a later one went on is no part of the run.

    attempt 0   … 38 39 40 41 42        (41 and 42: committed on a node that the others had given up)
    attempt 1            39 -> 40' 41' …         goes on from step 39: 40, 41 and 42 of attempt 0 are superseded
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...rundir.files.codec import encode, read
from ...rundir.files.durable import replace_soon
from ...rundir.layout import RunDir


@dataclass(frozen=True, slots=True)
class Lineage:
    """The step from which each attempt went on, as far as it was recorded: attempts on one node record nothing, since
    there an attempt begins only when no process of the last one is left."""

    steps: Mapping[int, int] = field(default_factory=dict)

    def supersedes(self, attempt: int | None, step: int) -> bool:
        """Whether the state that `attempt` has made at `step` is no part of the run: a later attempt went on from
        before it. A state of no attempt (imported, or saved without a supervisor) always is one."""
        if attempt is None or attempt < 0:
            return False
        return any(later > attempt and step > start for later, start in self.steps.items())


NONE = Lineage()
"""Nothing is superseded."""


def went_on(run: RunDir, attempt: int, step: int) -> None:
    """It is recorded that `attempt` goes on from `step`. OSError if it cannot be."""
    replace_soon(run.attempt(attempt).resumed, encode({"step": step}))


def recorded(run: RunDir, after: int = -1) -> Lineage:
    """What the attempts after `after` have recorded. Damaged records count as none."""
    if not run.leaders.exists():
        # Of a run that was never on several nodes. It may have thousands of attempts, and a restore waits for this.
        return NONE
    found = {}
    for number in run.attempts():
        if number > after:
            try:
                found[number] = read(run.attempt(number).resumed, dict[str, int])["step"]
            except (OSError, ValueError, KeyError):
                continue
    return Lineage(found)
