"""The attempts of one supervisor: what the launch of each needs to know of the run and of those before it."""

from __future__ import annotations

from supervisor.attempt.attempt import Attempt
from supervisor.core.failures import Failures
from supervisor.core.model import Rollback
from supervisor.core.program import Change
from supervisor.group.launch import Order, release
from supervisor.nodes.limb import Limb
from supervisor.process.reaper import Reaper
from supervisor.run.briefing import Briefing
from supervisor.run.own_saves import Journals
from supervisor.run.program import Program
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release


class Attempts:
    """Launches attempts on the limb. At most one runs at a time."""

    def __init__(self, run: RunDir, spec: Spec, reaper: Reaper, limb: Limb) -> None:
        self.first = True
        """Whether no attempt was launched or adopted yet for this request."""
        self.journals = Journals(run)
        self._run, self._spec, self._reaper, self._limb = run, spec, reaper, limb
        self._program = Program(run, spec)
        self._failures = Failures()

    def use(self, spec: Spec) -> None:
        """Later attempts are as `spec` asks."""
        self._spec = spec
        self._limb.use(spec)

    def adopt(self, attempt: Attempt) -> None:
        """Takes an attempt that a dead supervisor launched as the newest."""
        self._limb.attempt, self.first = attempt, False

    def hear(self) -> None:
        """Learns the files of the program from the newest attempt."""
        if self._limb.attempt is not None:
            self._program.hear(self._run.attempt(self._limb.number).program)

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
        before = self._limb.attempt
        leaving = before.ending.on_gpu if before is not None else {}
        mtbf = self._failures.mtbf()
        order = Order(number, self.resume, relaunch, rollback, flush_s, mtbf, briefing, leaving, self.journals)
        self.first = False
        spec, run = self._spec, self._run
        self._limb.attempt = Attempt(run, spec, number, lambda: release(spec, run, order, ""), self._reaper, now)

    def fail(self, number: int, error: OSError | MemoryError, now: float) -> None:
        """Attempt `number` is the newest from `now` on. It cannot be launched, because of `error`."""

        def body() -> Release:
            raise error

        self._limb.attempt = attempt = Attempt(self._run, self._spec, number, body, self._reaper, now)
        attempt.error = str(error) or type(error).__name__
