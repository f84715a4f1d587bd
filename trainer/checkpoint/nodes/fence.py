"""What an attempt may still commit. It is read anew before each commit: a machine that stood still for a minute wakes
up in the middle of a save, and does not know that others have gone on without it."""

from __future__ import annotations

from dataclasses import dataclass

from ...rundir.layout import RunDir
from .lineage import NONE, Lineage, recorded


@dataclass(frozen=True, slots=True)
class Fence:
    """That of `attempt`. `by_ranks`: its ranks commit, who are no more once a later attempt has begun. A flush may save
    what a dead attempt has left."""

    run: RunDir
    attempt: int | None
    by_ranks: bool = False

    def lineage(self) -> Lineage:
        """What the attempts have recorded by now."""
        return recorded(self.run)

    def refusal(self, step: int) -> str | None:
        """Why the state after `step` steps must not be committed; None if it may be."""
        if self.attempt is None:
            return None
        later = [number for number in self.run.attempts() if number > self.attempt]
        if self.by_ranks and later:
            return f"attempt {later[-1]} has begun, so attempt {self.attempt}, which this rank is of, saves nothing"
        lineage = recorded(self.run, self.attempt) if later else NONE
        if lineage.supersedes(self.attempt, step):
            begun = min(number for number, start in lineage.steps.items() if start < step)
            return (
                f"attempt {begun} has gone on from before it, so step {step} of attempt {self.attempt} does not count"
            )
        return None
