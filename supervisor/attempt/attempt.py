"""One attempt: it gets a group, releases it, watches it, sends it signals, and leaves it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from supervisor.attempt import stacks, steps
from supervisor.attempt.ending import Ending
from supervisor.attempt.evidence import Witness
from supervisor.attempt.gpus import Gpus
from supervisor.attempt.watch import Watch
from supervisor.core.actions import Reach
from supervisor.core.evidence import Evidence
from supervisor.core.machine import Mode
from supervisor.core.model import Observation, Verdict
from supervisor.core.stack import Stacks
from supervisor.core.telling.news import News
from supervisor.group.group import WorkerGroup
from supervisor.process import proctree
from supervisor.process.reaper import Reaper
from supervisor.process.room import places
from supervisor.run.spec import Spec
from trainer.rundir.files.durable import unfinished
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import create_beats
from trainer.rundir.records.gate import Release


class Groups(Protocol):
    """Where an attempt gets its group."""

    def take(self, now: float, body: Callable[[], Release]) -> WorkerGroup | None:
        """A group for the attempt of `body`. None while there is none yet. OSError if there will be none."""

    def disband(self, group: WorkerGroup) -> None:
        """`group`, which was taken, is ended. None of its processes waits any more."""


_SIZES_EVERY = 5.0
"""Seconds between two looks at how much memory the ranks have."""


class Attempt:
    """An attempt. It is wanted as soon as it is made. It has a `watch` as soon as its launcher runs."""

    def __init__(
        self, run: RunDir, spec: Spec, number: int, body: Callable[[], Release], reaper: Reaper, now: float
    ) -> None:
        """`body` makes its release. It is asked when there is a group."""
        self.wanted = now
        self.number = number
        self.watch: Watch | None = None
        self.verdict: Verdict | None = None
        """The verdict, set by the loop."""
        self._witness: Witness | None = None
        self.gpus: Gpus | None = None
        """The devices, once they are known."""
        self.error = ""
        """Why it could not be launched."""
        self.kind = ""
        self._run, self._spec, self._reaper = run, spec, reaper
        self._body = functools.cache(body)
        self._group: WorkerGroup | None = None
        self.ending = Ending(spec.mark, self.known, foreign=False)
        self._told: set[int] | None = None
        """The pids that were told to stop, since the ranks were asked to. A rank that shows up later is told, too."""
        self.stacks: Stacks | None = None
        self._slow: dict[int, bool] = {}
        self._sizes_at = float("-inf")

    def adopt(self, group: WorkerGroup) -> None:
        """The attempt takes `group`, which another supervisor released. OSError or ValueError if its beats cannot be
        read."""
        self._observe(group)
        self._group, self.kind = group, group.kind
        self.ending = Ending(self._spec.mark, self.known, foreign=True)

    def raise_up(self, standby: Groups, now: float) -> bool:
        """Takes a group and releases it, when there is one. Returns whether the attempt has just begun to be
        watched."""
        if self.watch is not None or self.error:
            return False
        try:
            if self._group is None and not self._take(standby, now):
                return False
            group = self._group
            assert group is not None
            if group.stillborn and group.elsewhere is not None:
                # Its parts on other nodes were released with it.
                why = "had no room for another process" if group.crowded else "has died or stood still"
                raise OSError(f"the fork server {why} when it had to make the group")
            if group.stillborn:
                # Its fork server died. The next group comes from elsewhere.
                group.dissolve()
                self._group = None
                if group.crowded:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return False
            if group.launcher is None:
                return False
            self._observe(group)
        except OSError as error:
            if error.errno in proctree.CROWDED:
                raise  # it starts when there are descriptors, memory or processes again
            self.error = str(error)
            return False
        return True

    def _observe(self, group: WorkerGroup) -> None:
        folder = self._run.attempt(self.number)
        group.hurry()
        self.watch = Watch(folder, group, self._reaper, Path(self._spec.cwd))
        if not folder.evidence.exists():
            disks = places(self._run.path, self._spec.cwd, self._spec.command)
            self._witness = Witness(folder, self.number, self._spec.mark, disks)

    def _take(self, standby: Groups, now: float) -> bool:
        group = standby.take(now, self._body)
        if group is None:
            return False
        self.ending.foreign |= group.foreign
        try:
            self._release(group)
        except (OSError, MemoryError):
            # Nobody else knows of it: its launcher is spared as one of those that wait.
            standby.disband(group)
            raise
        self._group, self.kind = group, group.kind
        return True

    def _release(self, group: WorkerGroup) -> None:
        folder = self._run.attempt(self.number)
        if not folder.beats.exists():
            for each in dict.fromkeys([folder.path, folder.here]):
                # Without more parents: if the run's folder was moved or removed, it is not made again.
                each.parent.mkdir(mode=0o700, exist_ok=True)
                each.mkdir(mode=0o700, exist_ok=True)
            create_beats(folder.beats, group.seat.world)
        group.release(msgspec.structs.replace(self._body(), kind=group.kind), folder)

    @property
    def launcher_pid(self) -> int | None:
        return self._group.launcher.pid if self._group is not None and self._group.launcher is not None else None

    @property
    def gate(self) -> Path | None:
        """The folder where its group was released."""
        return self._group.gate.path if self._group is not None else None

    def look(self, now: float, ended: set[int], mode: Mode, spared: set[int]) -> tuple[Observation, News]:
        """The state as of `now`: an observation for the verdict, and news to tell. `ended` are the pidfds that were
        readable, `spared` are processes of the run that do not belong to the attempt."""
        stopping = mode is Mode.STOPPING
        # This comes before any read. If no process is alive by now, all files are complete when they are read.
        alive = self.ending.alive(spared) if stopping else ()
        frees = bool(alive) and set(alive) <= self.ending.leaving.keys()
        seen = Observation(now, alive=alive, frees=frees, stacks=self.stacks, launch_error=self.error)
        watch = self.watch
        if watch is None:
            return seen, News()
        watch.look(now, ended)
        if mode is Mode.RUNNING and any(beat.step > 0 for beat in watch.beats):
            self.ending.steps(process.pid for process in watch.ranks.values())
        if self._told is not None:
            self._tell(list(watch.ranks.values()), self._told)
        watch.read_journals(now, final=stopping and not alive)
        seen = replace(
            seen,
            ranks=watch.views(),
            steps=steps.done(watch.beats),
            group=watch.group(),
            exits=tuple(watch.exits),
            raised=tuple(watch.raised),
            saves=watch.saved(),
            # The newest step that the script has kept by itself. A save shows it, or a start from that save.
            own_step=max(watch.saves.step, steps.start(watch.beats) or 0) or -1,
            own_unplaced=watch.saved_unplaced(),
            log_grew_at=watch.logs.grew_at,
            evidence=self.hear() if mode is Mode.RUNNING else Evidence(),
        )
        return seen, watch.news(now)

    def sample(self, silent: Mapping[int, float], now: float) -> None:
        """Takes samples of these ranks from time to time. The values are their seconds of silence."""
        if self.watch is not None:
            self.watch.sampler.look(silent, {rank: process.pid for rank, process in self.watch.ranks.items()}, now)

    def hear(self) -> Evidence:
        """The evidence beside exits and exceptions, if a process has failed by itself. Processes that we kill are no
        evidence."""
        if self.watch is None or self._witness is None:
            return Evidence()
        watch = self.watch
        self._witness.gpus = self.gpus
        done, made = steps.done(watch.beats), steps.made(watch.beats)
        return self._witness.hear(watch.exits, watch.raised, watch.pids, done, made)

    def fds(self) -> list[int]:
        """The descriptors that are readable when one of its processes has ended."""
        return self.watch.fds() if self.watch is not None else []

    def ranks(self) -> tuple[proctree.Process, ...]:
        """Its living ranks that have registered."""
        return tuple(self.watch.ranks.values()) if self.watch is not None else ()

    def slow_to_go(self, now: float) -> tuple[proctree.Process, ...]:
        """Those of ranks() whose descriptors tell their end late: they have much memory to free, or a GPU."""
        ranks = self.ranks()
        if now >= self._sizes_at + _SIZES_EVERY or self._slow.keys() != {process.pid for process in ranks}:
            self._sizes_at = now
            self._slow = {process.pid: self.ending.is_slow(process.pid) for process in ranks}
        return tuple(process for process in ranks if self._slow[process.pid])

    def living(self) -> int:
        """The number of its ranks that are alive, as far as is known."""
        return sum(Path(f"/proc/{process.pid}/exe").exists() for process in self.ranks())

    def known(self) -> dict[int, proctree.Process]:
        """Its processes that are held, by pid."""
        if self.watch is None:
            held = [self._group.launcher] if self._group is not None else []
        else:
            held = [self.watch.launcher, self.watch.script, *self.watch.ranks.values()]
        return {process.pid: process for process in held if process is not None}

    def send(self, name: str, reach: Reach, spared: set[int], now: float) -> int:
        """Sends the signal. Returns the number of receivers."""
        if name == "KILL":
            return self.ending.force(spared, now)
        if reach is Reach.ALL or self.watch is None:
            processes = proctree.living(self.ending.members(spared))
            sent = proctree.send_all(processes, signal.SIGTERM)
            # A stopped process takes its TERM only after a CONT.
            proctree.send_all(processes, signal.SIGCONT)
            return sent
        if not self.watch.ranks:
            # Ranks that have come since the last look are told themselves: their launcher would tell them once more.
            self.watch.look(now, set())
        # A starting rank cannot handle the signal. Its launcher can, and dies of it at once.
        launcher = [self.watch.launcher] if self.watch.launcher and not self.watch.ranks else []
        self._told = set()
        return self._tell([*self.watch.ranks.values(), *launcher], self._told)

    @staticmethod
    def _tell(processes: list[proctree.Process], told: set[int]) -> int:
        """Each that was not `told` gets its one TERM. Returns their number."""
        new = [process for process in processes if process.pid not in told]
        sent = sum(process.send(signal.SIGTERM) for process in new)
        for process in new:
            process.send(signal.SIGCONT)
        told |= {process.pid for process in new}
        return sent

    def dump(self) -> Stacks | None:
        """The stacks of the ranks, now also in the attempt's folder. None before there are ranks."""
        if self.watch is not None:
            with contextlib.suppress(OSError):
                self.stacks = stacks.dump(self.watch.ranks, self.watch.folder.stacks, self.watch.folder.groups)
            if self._witness is not None:
                self._witness.ask(list(self.watch.ranks))
        return self.stacks

    def let_go(self) -> None:
        """Its launcher does not wait for other nodes any more."""
        if self._group is not None and self._group.elsewhere is not None:
            with contextlib.suppress(OSError):
                self._group.gate.over.touch()

    def keep_evidence(self) -> None:
        """The evidence of its end is on disk. Writing it takes time, so more urgent work comes first."""
        if self._witness is not None:
            self._witness.verdict = self.verdict
            self._witness.write()
            self._witness = None

    def leave(self) -> None:
        """Closes everything, and removes files that its processes were writing when they were killed."""
        if self.watch is not None:
            self.watch.close()
        if self._group is not None:
            self._group.dissolve()
            self._group = None
        sweep(self._run, self.number)
        self.watch = None


def sweep(run: RunDir, number: int) -> None:
    """Removes files that processes of that attempt were writing when they died, if the disk allows it. A command that
    asks this run for something may be writing beside them."""
    attempt = run.attempt(number)
    for folder in (run.path, attempt.path, attempt.here):
        with contextlib.suppress(OSError):
            for path in unfinished(folder):
                path.unlink(missing_ok=True)
            for pipe in folder.glob("*.pipe"):
                pipe.unlink(missing_ok=True)
