"""The notices of a Checkpointer: notes for the supervisor, lines on stderr for people. Rank 0 speaks for all."""

from __future__ import annotations

import sys

from ..rank.progress import progress
from ..rundir.machine.shm import problem as shm_problem
from .disk.restore import Bad
from .disk.save import Outcome
from .guard import Window


class Notices:
    """The notices of `rank`. A rank other than 0 tells only what it alone knows."""

    def __init__(self, rank: int) -> None:
        self._leads = rank == 0

    def log(self, text: str) -> None:
        """Tells of an event that is as it should be."""
        if self._leads:
            print(text, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Tells of something that a person should look at."""
        if self._leads:
            progress().note("warning", text=text)
            self.log(text)

    def no_snapshots(self, problem: str) -> None:
        if missing := shm_problem():
            # The launch has already said this, and what to do.
            self.log(f"no snapshots: {missing}; checkpoints go on, on disk")
        else:
            self.say(f"no snapshots: {problem}; checkpoints go on, on disk")

    def resumed(self, step: int, source: str) -> None:
        if self._leads:
            progress().note("resumed", step=step, source=source)

    def skipped(self, step: int, window: Window) -> None:
        """Tells that the run goes on from `step` and skips the data of `window`."""
        if self._leads:
            progress().note("data_skipped", **{"from": window[0], "to": window[1], "step": step})
            self.log(f"went back to step {step}: the data of steps {window[0]} to {window[1] - 1} is skipped")

    def saved(self, outcome: Outcome, stall_s: float) -> None:
        """Tells how a save by the ranks went. `stall_s`: seconds of stall before this save that were not told yet."""
        if not self._leads or outcome.existed:
            return
        took: dict[str, float] = {"seconds": round(outcome.seconds, 6), **({"stall_s": stall_s} if stall_s else {})}
        if outcome.error is None:
            progress().note("checkpoint_saved", step=outcome.step, bytes=outcome.bytes, **took)
        else:
            progress().note("checkpoint_failed", step=outcome.step, error=outcome.error, **took)
            self.log(f"checkpoint {outcome.step} failed, training goes on: {outcome.error}")

    def bad(self, bad: Bad) -> None:
        """Tells that a state could not be used."""
        if bad.path is None:
            self.say(bad.reason)
        elif self._leads:
            moved = str(bad.moved_to) if bad.moved_to else None
            progress().note("checkpoint_bad", path=str(bad.path), reason=bad.reason, moved_to=moved)
            fate = f"moved to {moved}" if moved else "left where it is"
            self.log(f"checkpoint {bad.path} cannot be used ({bad.reason}); {fate}, trying an older one")
