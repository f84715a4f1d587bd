"""The leftovers of a run that no supervisor holds: processes, half-written folders and files, shared memory, memory
cgroups.

    lock free? ── take it ──▶ kill processes, by pidfd ──▶ all gone? ──▶ remove folders, files, memory ──▶ give it back

A run with a held lock is never touched. Nobody can take up a run while it is being cleaned.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from supervisor.process.kill import is_caretaker, kill
from supervisor.run.checkpoints import KEEP_ALL, flush_command
from supervisor.run.runs import Known
from trainer.checkpoint.memory.snapshots import newest_snapshot, pinned
from trainer.rundir.layout import RunDir, committed_steps
from trainer.rundir.machine.cgroup import groups_of
from trainer.rundir.machine.cgroup import remove as remove_group
from trainer.rundir.secrets import Redactor
from trainer.rundir.variables import MARK

SHM = Path("/dev/shm")
TIME_LIMIT = 5.0
"""Seconds that a process may need to end after its SIGKILL."""
_FOLDER = re.compile(r"\A\.step-\d{8,}\.tmp-")
_FILE = re.compile(r"\A\..+\.tmp-\d+-\d+\Z|\A\.spec-\d+\Z")


class Kind(enum.Enum):
    PROCESS = "process"
    FOLDER = "folder"
    FILE = "file"
    MEMORY = "memory"
    GROUP = "cgroup"
    KEPT = "kept warm"
    """A fork server that stays for the next run. It is no leftover of a dead run, but nobody may want it any more."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that a dead run left. `place` is a path, or the pid of a process."""

    run: str
    kind: Kind
    place: str
    bytes: int
    about: str = ""


@dataclass(frozen=True, slots=True)
class Fate:
    """The result for a leftover: whether it was `removed`, and the `problem` if that failed."""

    leftover: Leftover
    removed: bool = False
    problem: str | None = None


def marks() -> dict[str, list[psutil.Process]]:
    """The living processes of this user that have the mark of a run, by mark. This process and its ancestors are left
    out."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mark, dot, _ = process.environ().get(MARK, "").rpartition(".")
            mine = process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE
            if dot and mine and process.pid not in spared:
                found.setdefault(mark, []).append(process)
    return found


def mark_of(known: Known) -> str:
    """The mark of all things that belong to the run; "" if its spec has none."""
    mark = known.spec.get("mark")
    return mark if isinstance(mark, str) else ""


def find(known: Known, processes: list[psutil.Process]) -> list[Leftover]:
    """The leftovers of the run, processes first. It does not check whether a supervisor holds the run."""
    return [*_living(known, processes), *_files(known), *_memory(known), *_groups(known)]


def clear(known: Known, processes: list[psutil.Process]) -> list[Fate]:
    """Removes all leftovers of the run. The fates tell what stayed, and why. We must hold the run's lock. `processes`
    have its mark. Files stay if one of these processes does not end."""
    fates: list[Fate] = []
    # It looks again until there are none. A process may have forked between the look and its end.
    while processes:
        fates += [_end(leftover, known) for leftover in _living(known, processes)]
        if any(fate.problem for fate in fates):
            # The process may still be writing the other leftovers.
            return fates + [Fate(rest, problem="a process of the run is alive") for rest in find(known, [])]
        processes = marks().get(mark_of(known), [])
    return fates + [_end(leftover, known) for leftover in find(known, [])]


def _end(leftover: Leftover, known: Known) -> Fate:
    problem = remove(leftover, known)
    return Fate(leftover, problem is None, problem)


def _living(known: Known, processes: list[psutil.Process]) -> list[Leftover]:
    """Those of `processes` that still live. The ones that clean up after others come last."""
    found = []
    for process in sorted(processes, key=lambda process: is_caretaker(process.pid)):
        with contextlib.suppress(psutil.Error):
            command = " ".join(Redactor(os.environ).command(process.cmdline()))[:120]
            size = process.memory_info().rss
            found.append(Leftover(known.id, Kind.PROCESS, str(process.pid), size, command))
    return found


def _files(known: Known) -> Iterator[Leftover]:
    run = known.run
    attempts = [run.attempt(number).path for number in run.attempts()]
    for folder in [run.path, run.checkpoints, run.checkpoints / "quarantine", run.faults, *attempts]:
        with contextlib.suppress(OSError):
            for path in sorted(folder.iterdir()):
                if path.is_symlink():
                    continue
                if folder == run.checkpoints and _FOLDER.match(path.name) and path.is_dir():
                    yield Leftover(known.id, Kind.FOLDER, str(path), size_of(path))
                elif _FILE.match(path.name) and path.is_file():
                    yield Leftover(known.id, Kind.FILE, str(path), size_of(path))


def _memory(known: Known) -> Iterator[Leftover]:
    if not (mark := mark_of(known)):
        return
    name = re.compile(rf"\Asupervise-{re.escape(mark)}(?:[.-].*)?\Z")
    with contextlib.suppress(OSError):
        for path in sorted(SHM.iterdir()):
            if name.match(path.name) and not path.is_symlink() and path.lstat().st_uid == os.getuid():
                yield Leftover(known.id, Kind.MEMORY, str(path), size_of(path))


def _groups(known: Known) -> Iterator[Leftover]:
    """The memory groups that `oom` faults have made."""
    mark = mark_of(known)
    for group in groups_of(mark) if mark else []:
        yield Leftover(known.id, Kind.GROUP, str(group.path), 0)


def size_of(path: Path) -> int:
    total = 0
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            total += each.lstat().st_blocks * 512
    return total


def remove(leftover: Leftover, known: Known) -> str | None:
    """None if it is removed, else the reason. A process without the run's mark is another one by now, and is not
    touched. A snapshot newer than the checkpoints is made a checkpoint first."""
    if leftover.kind is Kind.PROCESS:
        return _kill(int(leftover.place), mark_of(known))
    path = Path(leftover.place)
    if leftover.kind is Kind.GROUP:
        # Its files belong to the kernel. Only the folder itself can be removed, and only while no process is in it.
        return None if remove_group(path) else "a process is in it"
    if leftover.kind is Kind.MEMORY and (problem := rescue(path, known.run)):
        return problem
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None


def rescue(segment: Path, run: RunDir) -> str | None:
    """Makes the pinned snapshots in `segment`, and its newest one, durable. None if that is done, else the reason."""
    on_disk = committed_steps(run.checkpoints)
    steps = {step for step in pinned(segment) if step not in on_disk}
    if (newest := newest_snapshot(segment)) is not None and newest > max(on_disk, default=-1):
        steps.add(newest)
    for step in sorted(steps):
        command = flush_command(segment, run, step, KEEP_ALL)
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            why = done.stdout.strip() or done.stderr
            return f"its snapshot of step {step} is not on disk and cannot be saved: {why}"
    return None


def _kill(pid: int, mark: str) -> str | None:
    try:
        process = psutil.Process(pid)
        # The mark is read again from this process, because its pid may have gone to another one meanwhile.
        if process.environ().get(MARK, "").rpartition(".")[0] != mark:
            return None
        return f"alive {TIME_LIMIT:.0f} s after SIGKILL" if kill([process], TIME_LIMIT).left else None
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError) as error:
        return str(error)
