"""The faults that the supervisor fires: signals by the clock, damage on disk, the end of the launcher or of itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.attempt.watch import Watch
from supervisor.process.kill import kill
from supervisor.process.proctree import Process
from trainer.rundir.codes import Phase
from trainer.rundir.records import faults
from trainer.rundir.records.beats import Beat
from trainer.rundir.records.damage import damage
from trainer.rundir.records.fault_kinds import By


class FaultInjector:
    """Knows the armed faults of a run, fires those of the supervisor, and reports the fired ones."""

    def __init__(self, folder: Path, checkpoints: Path, told: Collection[str], told_armed: Collection[int]) -> None:
        """`told` names the firings that the run's events already tell. A fault may fire while there is no supervisor;
        it is news then. `told_armed` are the numbers of the faults whose request the events already tell."""
        self._folder = folder
        self._checkpoints = checkpoints
        self._armed: list[faults.Fault] = []
        self._told = set(told)
        self._told_armed = set(told_armed)
        self._stamp = self._before = -1
        self._begun: int | None = None
        """The number of finished steps when the making of the present standby began."""
        self._unasked = False
        """Whether the ranks must still be asked to look for new faults."""
        self._flush: Process | None = None
        """The flush that was running at the last look."""

    def news(self) -> tuple[list[faults.Fault], list[dict[str, Any]]]:
        """The faults armed and fired since the last call. It costs one stat when nothing was new for a while."""
        try:
            stamp = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            return [], []
        if stamp == self._stamp:
            return [], []
        self._armed = faults.armed(self._folder)
        asked = [f for f in self._armed if f.number not in self._told_armed]
        self._told_armed |= {f.number for f in asked}
        self._unasked = self._unasked or bool(asked)
        fired = faults.fired(self._folder)
        # A mark that is still being written does not change the folder's time again. Nor does a mark within one tick of
        # that clock. So the folder counts as read only if all marks could be read, and if the time was the same at two
        # looks.
        whole = len(fired) == sum(1 for _ in self._folder.glob("*.fired"))
        self._stamp, self._before = stamp if whole and stamp == self._before else -1, stamp
        new = [{**body, "fault": name} for name, body in fired.items() if name not in self._told]
        self._told |= set(fired)
        return asked, new

    def act(self, watch: Watch, flush: Process | None, high_step: int, warming: bool, attempt: int) -> bool:
        """Fires all due faults of the supervisor, and lets the ranks look for theirs. `flush` is the running flush,
        `high_step` the highest step of the run. `warming`: a standby is being made. Returns whether ranks have to
        look."""
        if asked := self.ripen(high_step, warming) or self._unasked:
            watch.ask_faults()
        self._unasked = False
        self._fire(watch.beats, watch.ranks, {"kill-launcher": watch.launcher, "kill-flush": flush}, attempt)
        return asked

    def strike(self, watch: Watch, attempt: int) -> None:
        """Sends the signals of all due faults to the ranks of `watch`, on a node that follows."""
        self.news()
        step, now = max((b.step for b in watch.beats), default=0), time.monotonic()
        for fault in self._armed:
            if fault.by_supervisor and fault.what.by is By.SIGNAL:
                self._signal(fault, watch.ranks, attempt, step, now)

    def ripen(self, step: int, warming: bool) -> bool:
        """Makes the faults ripe that waited for `step` finished steps, or for a standby in the making (`warming`).
        Returns whether there were any."""
        self._begun = None if not warming else step if self._begun is None else self._begun
        ripe = [f for f in self._armed if f.waits and not f.ripe and f.ripens(step, self._begun)]
        for fault in ripe:
            faults.ripen(self._folder, fault)
        self._armed = [replace(f, ripe=f.ripe or f in ripe) for f in self._armed] if ripe else self._armed
        return bool(ripe)

    def _fire(
        self, beats: list[Beat], ranks: dict[int, Process], supervision: dict[str, Process | None], attempt: int
    ) -> None:
        """Each fault is recorded on disk as fired before it strikes. `supervision`: the living process that a fault
        kills, by the fault's name."""
        step = max((b.step for b in beats), default=0)
        now = time.monotonic()
        for fault in self._armed:
            if not fault.by_supervisor:
                continue
            match fault.what.by:
                case By.SIGNAL:
                    self._signal(fault, ranks, attempt, step, now)
                case By.FILE:
                    self._damage(fault, attempt, step, now)
                case _:
                    self._strike(fault, beats, supervision, attempt, now)
        self._flush = supervision.get("kill-flush")

    def _claim(self, fault: faults.Fault, rank: int | None, attempt: int, step: int) -> bool:
        if faults.has_fired(self._folder, fault, rank):
            return False
        return faults.claim(self._folder, fault, rank, attempt, step)

    def _strike(
        self,
        fault: faults.Fault,
        beats: list[Beat],
        supervision: dict[str, Process | None],
        attempt: int,
        now: float,
    ) -> None:
        victim = supervision.get(fault.kind)
        if victim is None and fault.kind != "kill-supervisor":
            return
        if fault.kind == "kill-flush" and victim is self._flush:
            return  # This one may have finished already. The next one has not.
        step = max((b.step for b in beats if b.phase >= Phase.TRAIN), default=0)
        due = any(fault.due(step, now, beat.phase) for beat in beats if fault.on(beat.rank)) or fault.due(step, now)
        if due and self._claim(fault, None, attempt, step):
            if victim is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                kill([victim])

    def _signal(self, fault: faults.Fault, ranks: dict[int, Process], attempt: int, step: int, now: float) -> None:
        for rank, process in ranks.items():
            if fault.on(rank) and fault.due(step, now) and self._claim(fault, rank, attempt, step):
                number = fault.what.signal
                kill([process]) if number == signal.SIGKILL else process.send(number)

    def _damage(self, fault: faults.Fault, attempt: int, step: int, now: float) -> None:
        if fault.due(step, now) and self._has_checkpoint() and self._claim(fault, None, attempt, step):
            damage(self._checkpoints, fault)

    def _has_checkpoint(self) -> bool:
        return any(self._checkpoints.glob("step-*/*.safetensors"))
