"""The witness of one attempt: it collects what the kernel, the disks and the logs say about a failure, for the verdict
and for later readers.

    the attempt begins       It reads the counters and notes the end of the kernel's log (0.3 ms; the ranks start
                             meanwhile).
    something has failed     It reads all of that again, the free space, and the last lines of each rank that left no
                             exception (0.3 ms). It waits for the kernel's log, 50 ms at most, only if a counter says
                             that the OOM killer has killed.
    the next one trains      It writes attempts/NNNN/evidence.json. Nobody waits for the file then.

evidence.json holds the fields of `Case` and no others. A value that could not be read is null, and `unreadable` has the
reason.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from supervisor.attempt.gpus import Gpus
from supervisor.attempt.kernel_log import KernelLog
from supervisor.attempt.recorder import dumps
from supervisor.core.diagnosis.gpu import holders, is_outlived, xids
from supervisor.core.evidence import Evidence, Memory, Xid
from supervisor.core.model import Exit, Raised, Verdict
from supervisor.process.room import disks, is_full
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.files.untrusted_files import tail
from trainer.rundir.layout import AttemptDir
from trainer.rundir.machine.cgroup import MemoryGroup, NoGroup, attempt_of, groups_of, own_group, remove
from trainer.rundir.machine.proc import is_running
from trainer.rundir.secrets import Redactor

SCHEMA = 1
TIME_LIMIT = 0.05
"""Seconds to wait for the log line of an OOM kill after the kill."""
_TAIL = 16_384
_LINES = 30
_JUDGED, _JUDGED_TAIL = 400, 131_072
"""The last lines, and bytes, of a log that count for the verdict: C++ prints two traces, and Python a stack for each
thread, after the words that tell why."""
_LONGEST = 500
_ASK_EVERY = 1.0
_SHM = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Case:
    """evidence.json."""

    schema: int
    attempt: int
    cause: str | None
    rank: int | None
    reason: str
    exits: list[dict[str, Any]]
    """Each process that ended: rank (null: the launcher), pid, status (exit code, or minus the signal), signal,
    mono."""
    exceptions: list[dict[str, Any]]
    """Each rank's exception: rank, type, message, errno, frames (innermost last), raised_from, mono."""
    steps: dict[int, int]
    """The last finished step, by rank."""
    memory: dict[str, Any] | None
    """The run's memory group: path, version, and at_start and at_end: oom_kills, hits (of the limit), limit, used,
    peak."""
    machine: dict[str, Any]
    """oom_kills on the whole machine since the attempt began; total and available bytes of memory now."""
    kernel_log: list[str] | None
    """The lines of the kernel's log since the attempt began, if they may matter."""
    disks: list[dict[str, Any]]
    """path, total, free (bytes), free_inodes."""
    last_lines: dict[str, list[str]]
    """The last lines of a log, by the log's name: of the failing rank, or of the launcher."""
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters at one moment."""

    group: dict[str, int | None] | None
    """The counters of the run's memory group."""
    kills: dict[Path, int]
    """The number of processes that the OOM killer has killed, by memory group of the run (a fault may have made more
    groups)."""
    machine: dict[str, int | None]
    """oom_kills since the machine was started; total and available bytes of memory."""


class Witness:
    """The witness of one attempt, from the attempt's beginning. Never raises."""

    def __init__(self, folder: AttemptDir, number: int, mark: str, places: Sequence[Path]) -> None:
        """`places` are folders that the script may write to."""
        self.evidence = Evidence()
        self.verdict: Verdict | None = None
        """The verdict, set by the attempt."""
        self._folder, self._number, self._mark, self._places = folder, number, mark, places
        self._unreadable: dict[str, str] = {}
        self._kernel = KernelLog()
        self._group = self._own_group()
        self._begin = self._count()
        self._end: Counters | None = None
        self._facts: tuple[int, int] = (0, 0)
        self.gpus: Gpus | None = None
        """The devices, once they are known."""
        self._asked_at = 0.0
        self._found: dict[Xid, dict[int, int]] = {}
        """The errors of devices, from either source, and what each rank had made of steps when it was seen. None is
        forgotten: a device may say the same for days."""
        self._outlived: set[Xid] = set()
        self._seen: tuple[Sequence[Exit], Sequence[Raised]] = ((), ())
        self._pids: Mapping[int | None, int] = {}
        self._steps: Mapping[int, int] = {}

    def hear(
        self,
        exits: Sequence[Exit],
        raised: Sequence[Raised],
        pids: Mapping[int | None, int],
        steps: Mapping[int, int],
        made: Mapping[int, int],
    ) -> Evidence:
        """The evidence. It is collected anew whenever something more has failed. `steps`: the last one of each rank;
        `made`: how many it has made in this attempt."""
        self._seen, self._pids, self._steps = (tuple(exits), tuple(raised)), pids, steps
        self._kernel.follow(time.monotonic())
        failed = [e for e in exits if e.status != 0]
        if (facts := (len(failed), len(raised))) == self._facts:
            # A lost device may show as a hang alone.
            found = self._xids(made)
            if found != self.evidence.xids or (found and pids != self.evidence.pids):
                self.evidence = replace(self.evidence, xids=found, pids=dict(pids))
            return self.evidence
        self._facts, self._end = facts, self._count()
        self._kernel.read()
        known = {r.rank for r in raised}
        speechless = [e.rank for e in failed if e.rank not in known and e.status not in (None, -9, -15)]
        # What failed on the device is printed, not raised.
        speechless += [r.rank for r in raised if "device-side assert" in r.message]
        self.evidence = Evidence(
            memory=self._memory(self._end, {pids[e.rank] for e in failed if e.status == -9 and e.rank in pids}),
            pids=dict(pids),
            lines={rank: tuple(last_lines(self._log(rank), _JUDGED)) for rank in speechless},
            xids=self._xids(made, at_once=True),
            # Also of those that wait in their first step.
            odd=dumps.read(self._folder, [rank for rank in pids if rank is not None and rank >= 0]),
            gone=frozenset(pid for r in raised for pid in holders(r.message) if self._is_dead(pid)),
            full=tuple(disk["path"] for disk in disks(self._places) if is_full(disk)),
            shm=next((disk["total"] for disk in disks([_SHM])), None),
        )
        return self.evidence

    def _xids(self, made: Mapping[int, int], at_once: bool = False) -> tuple[Xid, ...]:
        """The errors of the devices that the ranks can use, as far as those are known, that explain what fails now. The
        driver is asked where the kernel's log cannot be read: from time to time, or `at_once`."""
        told = [*xids(self._kernel.news())]
        if not self._kernel.names_ours:
            told = [replace(xid, pid=None) for xid in told]
        now, gpus = time.monotonic(), self.gpus
        if gpus is not None and self._kernel.unreadable and (at_once or now >= self._asked_at + _ASK_EVERY):
            self._asked_at = now
            told += gpus.news()
        for xid in told:
            self._found.setdefault(xid, dict(made))
        ranks = [rank for rank in self._pids if rank is not None and rank >= 0]
        # For good: a program's second training begins to count anew.
        fresh = self._found.keys() - self._outlived
        self._outlived |= {xid for xid in fresh if is_outlived(self._found[xid], made, ranks)}
        ours = {device.bus for device in gpus.devices} if gpus is not None else set()
        return tuple(xid for xid in self._found if xid not in self._outlived and (not ours or xid.bus in ours))

    def _is_dead(self, pid: int) -> bool:
        """Whether no process has that pid, as the driver tells it. In a container with its own pids, the driver's pids
        say nothing."""
        return self._kernel.names_ours and not is_running(pid)

    def ask(self, ranks: Iterable[int]) -> None:
        """The recorders of `ranks` have told what those have called, as far as they can."""
        dumps.ask(self._folder, ranks)
        self.evidence = replace(self.evidence, odd=dumps.read(self._folder, ranks))

    def write(self) -> None:
        """evidence.json exists, unless the disk refused it. No memory group of the attempt is left."""
        case = self._case(self._end or self._count())
        with contextlib.suppress(OSError):
            replace_soon(self._folder.evidence, Redactor(os.environ).json(encode(case, indent=1)))
        self._kernel.close()
        for group in groups_of(self._mark):
            if attempt_of(group) <= self._number:
                remove(group.path)

    def _case(self, end: Counters) -> Case:
        verdict, (exits, raised) = self.verdict, self._seen
        rank = verdict.rank if verdict is not None else None
        log = self._log(rank)
        if self._kernel.unreadable:
            self._unreadable["kernel_log"] = self._kernel.unreadable
        memory = None
        if self._group is not None:
            place = {"path": str(self._group.path), "version": self._group.version}
            memory = {**place, "at_start": self._begin.group, "at_end": end.group}
        return Case(
            schema=SCHEMA,
            attempt=self._number,
            cause=verdict.cause.value if verdict else None,
            rank=rank,
            reason=verdict.reason if verdict else "",
            exits=[_exit(e, self._pids) for e in exits],
            exceptions=[_exception(r) for r in raised],
            steps=dict(self._steps),
            memory=memory,
            machine={**end.machine, "oom_kills": self._on_machine(end)},
            kernel_log=None if self._kernel.unreadable else self._kernel.lines[-_LINES:],
            disks=disks(self._places),
            last_lines={log.name: last_lines(log)},
            unreadable=self._unreadable,
        )

    def _own_group(self) -> MemoryGroup | None:
        try:
            return own_group()
        except NoGroup as error:
            self._unreadable["memory"] = str(error)
            return None

    def _count(self) -> Counters:
        kills = {}
        for group in [*([self._group] if self._group else []), *groups_of(self._mark)]:
            with contextlib.suppress(NoGroup):
                kills[group.path] = group.oom_kills()
        machine = {"oom_kills": _vmstat(), **_meminfo()}
        if machine["oom_kills"] is None:
            self._unreadable["machine"] = "/proc/vmstat does not count OOM kills"
        return Counters(self._group.counters() if self._group else None, kills, machine)

    def _on_machine(self, end: Counters) -> int | None:
        before, now = self._begin.machine["oom_kills"], end.machine["oom_kills"]
        return None if before is None or now is None else max(0, now - before)

    def _memory(self, end: Counters, killed: set[int]) -> Memory:
        """The actions of the OOM killer. It waits for the kernel's log only if a counter says that a process of the run
        was killed."""
        rises = [max(0, count - self._begin.kills.get(path, 0)) for path, count in end.kills.items()]
        kills, on_machine = sum(rises) if rises else None, self._on_machine(end)
        if on_machine == 0 or (on_machine is None and kills == 0):
            return Memory(kills=0, victims=())
        if kills:
            self._kernel.wait_for(killed, time.monotonic() + TIME_LIMIT)
        group = end.group or {}
        limit = group.get("limit") or end.machine["total"]
        return Memory(kills, self._kernel.victims(), group.get("peak") or group.get("used"), limit)

    def _log(self, rank: int | None) -> Path:
        return self._folder.launcher_log if rank is None else self._folder.rank_log(rank)


def last_lines(log: Path, most: int = _LINES) -> list[str]:
    """The last lines of a log, each cut to a readable length. None if there is no log."""
    text = tail(log, _TAIL if most == _LINES else _JUDGED_TAIL).decode(errors="replace")
    # To a terminal, a progress bar is one line. Only its last state is kept.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return [line[:_LONGEST] for line in lines if line.strip()][-most:]


def _exit(exit_: Exit, pids: Mapping[int | None, int]) -> dict[str, Any]:
    name = None
    if exit_.status is not None and exit_.status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-exit_.status).name
    return {"rank": exit_.rank, "pid": pids.get(exit_.rank), "status": exit_.status, "signal": name, "mono": exit_.at}


def _exception(raised: Raised) -> dict[str, Any]:
    told = {"rank": raised.rank, "type": raised.type, "message": raised.message, "errno": raised.errno}
    chain = [f"{each.type}: {each.message}" for each in raised.because]
    return {**told, "frames": list(raised.frames), "raised_from": chain, "mono": raised.at}


def _vmstat() -> int | None:
    """The number of processes that the OOM killer has killed since the machine was started."""
    with contextlib.suppress(OSError, ValueError):
        _, found, rest = Path("/proc/vmstat").read_bytes().partition(b"\noom_kill ")
        return int(rest.partition(b"\n")[0]) if found else None
    return None


def _meminfo() -> dict[str, int | None]:
    values: dict[str, int | None] = {"total": None, "available": None}
    names = {"MemTotal:": "total", "MemAvailable:": "available"}
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines()[:4]:
            words = line.split()
            if words[0] in names:
                values[names[words[0]]] = int(words[1]) * 1024
    return values
