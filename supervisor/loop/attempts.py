"""The attempts of one supervisor: the launch of each, the newest one, and the evidence of the others."""

from __future__ import annotations

from supervisor.attempt.attempt import Attempt, sweep
from supervisor.core.failures import Failures
from supervisor.core.model import Rollback
from supervisor.core.program import Change
from supervisor.group.launch import Order
from supervisor.process.reaper import Reaper
from supervisor.run.briefing import Briefing
from supervisor.run.program import Program
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir


class Attempts:
    """At most one attempt runs at a time. `newest` stays until the next launch, even if it is over."""

    def __init__(self, run: RunDir, spec: Spec, reaper: Reaper) -> None:
        self.newest: Attempt | None = None
        self.first = True
        """Whether no attempt was launched or adopted yet for this request."""
        self._run, self._spec, self._reaper = run, spec, reaper
        self._program = Program(run, spec)
        self._failures = Failures()
        self._left: list[Attempt] = []
        """Attempts that are over and whose evidence is not on disk yet."""

    @property
    def number(self) -> int:
        """The number of the newest attempt, or -1."""
        return -1 if self.newest is None else self.newest.number

    def use(self, spec: Spec) -> None:
        """Later attempts are as `spec` asks."""
        self._spec = spec

    def adopt(self, attempt: Attempt) -> None:
        """Takes an attempt that a dead supervisor launched as the newest."""
        self.newest, self.first = attempt, False

    def hear(self) -> None:
        """Learns the files of the program from the newest attempt."""
        if self.newest is not None:
            self._program.hear(self._run.attempt(self.newest.number).program)

    def leave(self) -> None:
        """Closes the newest attempt. Its evidence is written when the next one trains, so that the recovery has the
        machine for itself."""
        self.keep_evidence()
        if self.newest is not None:
            self.newest.leave()
            self._left.append(self.newest)

    def changes(self) -> tuple[Change, ...]:
        """The files of the program that have changed since the last attempt loaded them."""
        return self._program.launched()

    @property
    def resume(self) -> str:
        """The resume mode of the next attempt: auto, never or must."""
        # `never` applies to checkpoints from before the launch. This run may use its own later saves.
        return self._spec.resume if self.first else "auto"

    def launch(
        self,
        number: int,
        relaunch: bool,
        rollback: Rollback | None,
        briefing: Briefing,
        flush_s: float | None,
        now: float,
    ) -> None:
        """Launches attempt `number`, which is the newest from `now` on. `relaunch`: it gets --resume-args. `flush_s`:
        the seconds of a flush."""
        self._failures.launched(now)
        leaving = self.newest.ending.on_gpu if self.newest is not None else {}
        order = Order(number, self.resume, relaunch, rollback, flush_s, self._failures.mtbf(), briefing, leaving)
        self.first = False
        self.newest = Attempt(self._run, self._spec, order, self._reaper, now)

    def keep_evidence(self) -> None:
        """The evidence of all closed attempts is on disk."""
        while self._left:
            self._left.pop().keep_evidence()

    def close(self) -> None:
        """All evidence is on disk, and half-written files of ended attempts are removed."""
        self.keep_evidence()
        if self.newest is not None:
            self.newest.keep_evidence()
        for number in self._run.attempts():
            sweep(self._run, number)
