"""A worker group, from its order to its release. The fork server forks it, or it starts cold. Then it waits at its
gate."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from supervisor.group.seat import Elsewhere, Seat
from supervisor.process.family import our_children, walk
from supervisor.process.proctree import Process, carries
from trainer.rundir.files.codec import read
from trainer.rundir.layout import AttemptDir
from trainer.rundir.machine.priority import raise_again
from trainer.rundir.machine.proc import is_running
from trainer.rundir.records.gate import Gate, Launcher, Release
from trainer.rundir.records.parking import Parked, Unfit

_LOW_S = 5.0
"""Seconds for which ranks that are made have the lowest priority, at most."""
_PASSES = 10
"""The most passes of one look. A program that forks without end is looked at again anyway."""


class WorkerGroup:
    """A launcher and its ranks. `born`: the launcher has a pid. `parked`: all ranks wait at the gate."""

    def __init__(self, gate: Gate, seat: Seat, kind: str, fd: int | None, expected: Release | None = None) -> None:
        """`kind` is fork or exec. `fd` keeps the gate shut; None if the gate is open."""
        self.gate = gate
        self.expected = expected
        """The release that its ranks expect: they wait in restore(). None: they wait at the script's first line."""
        self.kind = kind
        self.seat = seat
        self.launcher: Process | None = None
        self.knows = 0
        """The `knows` of the fork server when it forked the group: how many times the server had learned more by
        then."""
        self.server: int | None = None
        """The pid of the process that forked it."""
        self.foreign = False
        """Whether that process is not our descendant: it has stayed after an earlier run."""
        self.stillborn = False
        """Whether the process that had to make it is gone, or could not. Then it will never have a launcher."""
        self.crowded = False
        """Whether it could not, as there may be no more processes."""
        self.elsewhere: Elsewhere | None = None
        """Its parts on other nodes."""
        self._came: dict[int, int] = {}
        """The pid of each rank that has come to the gate."""
        self._fd = fd
        self._low = expected is not None
        """Whether its ranks may have the lowest priority."""
        self._hurry_at: float | None = None

    @classmethod
    def ordered(
        cls, folder: Path, seat: Seat, kind: str, expected: Release | None = None, log: Path | None = None
    ) -> WorkerGroup:
        """A new group with a shut gate. `log` is that of its launcher, if it must be on another disk than the gate.
        OSError if the gate cannot be made."""
        gate = Gate(folder)
        group = cls(gate, seat, kind, gate.close(expected), expected)
        try:
            if log is not None:
                log.parent.mkdir(mode=0o700, exist_ok=True)
                log.unlink(missing_ok=True)
                gate.launcher_log.symlink_to(log)
            gate.launcher_log.touch(0o600)
            if expected is not None:
                for rank in seat.ranks:
                    gate.rank_log(rank).touch(0o600)
        except OSError:
            group.dissolve()
            raise
        return group

    @classmethod
    def released(cls, folder: Path, mark: str) -> tuple[WorkerGroup, Release] | None:
        """The group in `folder` and its release, if an earlier supervisor of the run with that mark released it. Else
        None. The group has a launcher if the launcher is still alive."""
        gate = Gate(folder)
        try:
            body = gate.released()
        except (OSError, ValueError):
            return None
        if body is None:
            return None
        group = cls(gate, Seat((body.nproc,)), body.kind, None)
        group.launcher = _launcher(gate, mark)
        return group, body

    def born(self, pid: int) -> None:
        """Its launcher has this pid. ProcessLookupError if that process is gone already."""
        self.launcher = Process(pid)

    @property
    def parked(self) -> bool:
        """Whether every rank waits where it should."""
        place = self.gate.ready if self.expected is None else self.gate.parked
        here = self.launcher is not None and all(place(rank).exists() for rank in self.seat.ranks)
        return here and (self.elsewhere is None or self.elsewhere.parked)

    def parked_ranks(self) -> list[Parked]:
        """What the ranks tell that wait in restore()."""
        found = []
        for rank in self.seat.ranks:
            with contextlib.suppress(OSError, ValueError):
                found.append(read(self.gate.parked(rank), Parked))
        return found

    def unfit(self) -> str:
        """Why one of its ranks cannot wait in restore(). Empty if none has said so."""
        for rank in self.seat.ranks:
            with contextlib.suppress(OSError, ValueError):
                return f"rank {rank}: {read(self.gate.unfit(rank), Unfit).why}"
        return ""

    def dead(self) -> str:
        """Which of its ranks has ended while it waited. Empty if none has."""
        return next((f"rank {rank} has ended" for rank, pid in self.came().items() if not is_running(pid)), "")

    def release(self, body: Release, attempt: AttemptDir) -> None:
        """Its ranks go on as the attempt. A rank that comes to the gate later does not wait there. OSError if the gate
        cannot be opened: it is as shut as before."""
        assert self._fd is not None
        with contextlib.suppress(OSError):
            # The launcher goes on writing into the same file. The new name does not matter to it.
            os.link(self.gate.launcher_log.resolve(), attempt.launcher_log)
        for rank in self.seat.ranks if self.expected is not None else ():
            with contextlib.suppress(OSError):
                os.link(self.gate.rank_log(rank), attempt.rank_log(rank))
        self.gate.open(self._fd, body)
        self._fd = None
        # After our own part, which a full disk may hold back: parts that were released cannot be dropped any more.
        if self.elsewhere is not None:
            self.elsewhere.release(body)

    def look(self, now: float) -> None:
        """Called again and again while it waits. Its ranks have our own priority from when they are parked on, and
        every five seconds before: some time they must be."""
        if not self._low:
            return
        if self._hurry_at is None:
            self._hurry_at = now + _LOW_S
        if self.parked or now >= self._hurry_at:
            self._hurry_at = now + _LOW_S
            self.hurry()
            self._low = not self.parked

    def hurry(self) -> None:
        """Its ranks, and what they have started, have our own priority if they had the lowest. They might not get to
        take it themselves, where others want the cores."""
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        for _ in range(_PASSES if self._low else 0):
            roots = self.roots()
            if not sum(raise_again(pid, nice) for pid in {*roots, *walk(roots)}):
                break  # else what was started meanwhile has inherited it

    def roots(self) -> set[int]:
        """The processes below which all of it are: the launcher, its ranks, and orphans of these. Each rank has a
        session of its own, and an orphan becomes our child."""
        if self.launcher is None:
            return set()
        ranks = self.rank_pids()
        return {self.launcher.pid, *ranks, *(pid for pid in our_children() if _session_of(pid) in ranks)}

    def came(self) -> dict[int, int]:
        """The pid of each rank that has come to the gate, by rank."""
        for rank in self.seat.ranks:
            if rank not in self._came:
                with contextlib.suppress(OSError, ValueError):
                    self._came[rank] = int(self.gate.ready(rank).read_text())
        return dict(sorted(self._came.items()))

    def rank_pids(self) -> list[int]:
        """The pids of the ranks that have come to the gate, in the order of the ranks."""
        return list(self.came().values())

    def abandon(self) -> None:
        """The group is given up. No rank waits for this supervisor any more."""
        if self.elsewhere is not None:
            self.elsewhere.drop()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self.launcher is not None:
            self.launcher.close()
            self.launcher = None

    def dissolve(self) -> None:
        """It is abandoned, and its folder is removed."""
        self.abandon()
        if self.gate.launcher_log.is_symlink():
            self.gate.launcher_log.resolve().unlink(missing_ok=True)
        shutil.rmtree(self.gate.path, ignore_errors=True)


def _session_of(pid: int) -> int:
    """The leader of that process' session; 0 if it is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _launcher(gate: Gate, mark: str) -> Process | None:
    try:
        known = read(gate.launcher, Launcher)
        process = Process(known.pid)
    except (OSError, ValueError):
        return None
    # The pidfd is open. So from here on the pid is that of the process that will be watched.
    if process.started == known.started and carries(process.pid, mark):
        return process
    process.close()
    return None
