"""Looks at one attempt: its launcher and ranks by pidfd, its beats, notes and error records; reports what it saw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from supervisor.core.model import Exit, Group, Member, Raised, RankView
from supervisor.core.saves import Saves, hear
from supervisor.group.group import Gang
from supervisor.process import kernel
from supervisor.process.proctree import Process
from trainer.rundir.beats import Beat, BeatReader, Phase, Source, last_beats
from trainer.rundir.environment import STACKS_SIGNAL
from trainer.rundir.layout import AttemptDir
from trainer.rundir.notes import NoteReader
from trainer.rundir.untrusted_files import read_json

_KERNEL_EVERY = 0.15
"""Seconds between two looks at the state and CPU time of the ranks, when one of them is silent or was not at work."""
_KERNEL_CALM = 1.0
"""The same while all of them step."""
_QUIET_AFTER = 0.4
"""Seconds without a beat after which a rank that uses no CPU is looked at closely."""
_QUIET_SHARE = 0.1
_FILES_EVERY = 0.2
_JOURNALS_EVERY = 1.0
"""Seconds between two looks for saves that have begun, or failed."""
_LONGEST_PATH = 1000


class Notes:
    """What the ranks of one attempt have noted."""

    def __init__(self, files: Iterable[Path]) -> None:
        """`files` by rank."""
        self._readers = [NoteReader(path) for path in files]

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """What was noted since the last call, with the rank."""
        return [(rank, note) for rank, reader in enumerate(self._readers) for note in reader.read()]


class Watch:
    """One attempt under observation. Makes no decision; sends nothing."""

    def __init__(self, folder: AttemptDir, gang: Gang, reaped: dict[int, int]) -> None:
        """Of an attempt whose `gang` has been released, and has a launcher unless that is gone already."""
        self.folder = folder
        self.nproc = nproc = gang.nproc
        self.beats: list[Beat] = []
        self.ranks: dict[int, Process] = {}
        """Living ranks that have registered."""
        self.seen_ranks: dict[int, int] = {}
        """pid of every rank that ever registered."""
        self.launcher = gang.launcher
        self._launcher_pid = gang.launcher.pid if gang.launcher else 0
        self._gate = gang.gate
        self.exits: list[Exit] = []
        self.raised: list[Raised] = []
        self._reaped = reaped
        self._reader = BeatReader(folder.beats)
        self._notes = Notes(map(folder.notes, range(nproc)))
        self._journals = Notes(map(folder.saves, range(nproc)))
        self.saves = Saves()
        """What the script has saved by itself in this attempt."""
        self._counted = -1
        self._kernel: dict[int, kernel.Glance] = {}
        self._close: dict[int, kernel.Close] = {}
        self._unborn: tuple[Member, ...] = ()
        self._launcher_stopped = False
        self.replaced: set[int] = set()
        """Ranks whose process has become another program."""
        self._kernel_at = self._files_at = self._journals_at = float("-inf")
        self.log_grew_at = 0.0
        self._log_bytes = 0

    @property
    def pids(self) -> dict[int | None, int]:
        """Of the launcher, under None, and of every rank that ever registered."""
        return dict([(None, self._launcher_pid), *self.seen_ranks.items()])

    def fds(self) -> list[int]:
        """The pidfds that become readable when a process of the attempt ends."""
        launcher = [self.launcher.fd] if self.launcher else []
        return launcher + [process.fd for process in self.ranks.values()]

    def ask_faults(self) -> None:
        """Every rank looks for new faults at its next step."""
        self._reader.ask_faults()

    def close(self) -> None:
        for process in self.ranks.values():
            process.close()
        self.ranks, self.launcher = {}, None
        self._reader.close()

    def look(self, now: float, ended: set[int]) -> None:
        """Everything is up to date as of `now`; `ended` are the pidfds that were readable."""
        self.beats = self._reader.read()
        self._register(now)
        self._collect_exits(now, ended)
        if ended or now >= self._files_at + _FILES_EVERY:
            self._files_at = now
            self._collect_raised()
            self._measure_logs(now)
        starting = self.launcher is not None and len(self.seen_ranks) < self.nproc
        at_work = not starting and all(glance.state in "RS" for glance in self._kernel.values())
        if now >= self._kernel_at + (_KERNEL_CALM if at_work and not self.quiet(now) else _KERNEL_EVERY):
            self._look_at_kernel(now)

    def group(self) -> Group:
        """What there is beside the ranks that have registered."""
        launcher = Member(self._launcher_pid, stopped=self._launcher_stopped, launcher=True) if self.launcher else None
        return Group(self.nproc, launcher, self._unborn)

    def views(self) -> tuple[RankView, ...]:
        """The living ranks."""
        return tuple(self._view(beat) for beat in self.beats if beat.rank in self.ranks)

    def steps(self) -> dict[int, int]:
        """By rank, the last step finished in this attempt, of the ranks that have finished one; -1 if nothing tells which."""
        done = [b for b in self.beats if b.phase >= Phase.TRAIN and b.step > (b.first_step if b.placed else 0)]
        return {b.rank: b.step if b.placed else -1 for b in done}

    def from_step(self) -> int | None:
        """The step that this attempt went on from; -1 while nobody trains, None if nothing tells it."""
        steps = self.steps()
        trained = [beat for beat in self.beats if beat.rank in steps]
        if not all(beat.placed for beat in trained):
            return None
        return min((max(beat.first_step, 0) for beat in trained), default=-1)

    def notes(self) -> list[tuple[int, dict[str, Any]]]:
        """What the ranks have noted since the last call, with the rank."""
        return self._notes.read()

    def saved(self) -> int:
        """How often the script has saved by itself, to a file or not."""
        return max((beat.saves for beat in self.beats), default=0)

    def saved_unplaced(self) -> bool:
        """Whether it has saved something of which nothing tells the step."""
        return self.saves.unplaced or (self.saved() > 0 and self.saves.newest is None)

    def read_journals(self, now: float, final: bool) -> None:
        """`saves` is up to date; read when a save has ended, else now and then, and once the attempt is over."""
        counted = sum(beat.saves for beat in self.beats)
        if counted == self._counted and now < self._journals_at + _JOURNALS_EVERY and not final:
            return
        self._counted, self._journals_at = counted, now
        while lines := self._journals.read():
            for rank, line in lines:
                self.saves = hear(self.saves, rank, line)

    def quiet(self, now: float) -> bool:
        """Whether any rank has been silent for a moment."""
        return any(now - beat.at > _QUIET_AFTER for beat in self.beats)

    def _look_at_kernel(self, now: float) -> None:
        before, passed = self._kernel, now - self._kernel_at
        self._kernel_at = now
        self._kernel = {rank: kernel.glance(process.pid) for rank, process in self.ranks.items()}
        self._look_at_start()
        silent = [beat.rank for beat in self.beats if beat.phase is Phase.TRAIN and now - beat.at > _QUIET_AFTER]
        known = [rank for rank in silent if rank in self._kernel and rank in before]
        quiet = [rank for rank in known if self._kernel[rank].cpu - before[rank].cpu <= _QUIET_SHARE * passed]
        self._close = {rank: self._closely(rank) for rank in quiet}
        for beat in self.beats:
            if beat.rank in self.ranks and beat.rank not in self.replaced and now - beat.at > _QUIET_AFTER:
                self._look_at_program(beat.rank, self.ranks[beat.rank].pid)

    def _closely(self, rank: int) -> kernel.Close:
        close = kernel.closely(self.ranks[rank].pid)
        if close.polls is None:
            before = self._close.get(rank)
            close = replace(close, polls=before.polls if before is not None else False)
        return close

    def _look_at_program(self, rank: int, pid: int) -> None:
        """A program that has taken the place of ours has neither our handler nor the beats in its memory."""
        if not kernel.catches(pid, STACKS_SIGNAL) and kernel.maps(pid, self.folder.beats) is False:
            self.replaced.add(rank)

    def _look_at_start(self) -> None:
        """Who is to be a rank, while one is missing; and whether the launcher, which makes them, stands still."""
        self._unborn, self._launcher_stopped = (), False
        if self.launcher is None:
            return
        if len(self.seen_ranks) < self.nproc:
            known = set(self.seen_ranks.values())
            born = [pid for pid in kernel.children(self._launcher_pid) if pid not in known]
            self._unborn = tuple(self._to_be_rank(pid) for pid in born)
        if self._unborn or len(self.seen_ranks) < self.nproc or any(b.phase < Phase.TRAIN for b in self.beats):
            self._launcher_stopped = kernel.glance(self._launcher_pid).state == "T"

    def _to_be_rank(self, pid: int) -> Member:
        if kernel.glance(pid).state != "T":
            return Member(pid)
        for rank in range(self.nproc):
            with contextlib.suppress(OSError, ValueError):
                if int(self._gate.ready(rank).read_text()) == pid:
                    return Member(pid, rank, stopped=True)
        return Member(pid, kernel.rank(pid), stopped=True)

    def _view(self, beat: Beat) -> RankView:
        glance = self._kernel.get(beat.rank, kernel.Glance())
        close = self._close.get(beat.rank, kernel.Close(glance.cpu, False, ""))
        announces = beat.source is Source.LOOP or beat.phase is not Phase.STARTUP
        return RankView(
            rank=beat.rank,
            step=beat.step,
            phase=beat.phase.name.lower(),
            beat_at=beat.at,
            announces=announces and beat.source is not Source.HOOK,
            stopped=glance.state == "T",
            cpu=close.cpu,
            starved=glance.starved,
            disk=close.disk or glance.state == "D",
            held=close.held,
            polls=bool(close.polls),
            replaced=beat.rank in self.replaced,
            own=beat.own,
        )

    def _register(self, now: float) -> None:
        for beat in self.beats:
            if beat.rank in self.seen_ranks:
                continue
            try:
                self.ranks[beat.rank] = Process(beat.pid)
            except ProcessLookupError:
                self.exits.append(Exit(beat.rank, None, now))
            # Last: without a descriptor to hold it by, it is to be registered with the next look.
            self.seen_ranks[beat.rank] = beat.pid

    def _collect_exits(self, now: float, ended: set[int]) -> None:
        for rank, process in list(self.ranks.items()):
            if process.fd in ended:
                self.exits.append(Exit(rank, process.exit_status(self._reaped), now))
                process.close()
                del self.ranks[rank]
        if self.launcher is not None and self.launcher.fd in ended:
            self.exits.append(Exit(None, self.launcher.exit_status(self._reaped), now))
            self.launcher = None
            self._read_report(now)
        elif self.launcher is None and all(e.rank is not None for e in self.exits):
            # Of an adopted attempt: it went while nobody looked.
            self.exits.append(Exit(None, None, now))
            self._read_report(now)

    def _read_report(self, now: float) -> None:
        """What the launcher knows better: ranks that died before they registered, or whose status nobody told us; and
        its own status, where it is not our child and the kernel does not tell."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            report = read_json(self._gate.launcher_report)
            code, at = int(report["exit_code"]), min(now, float(report["mono"]))
            self.exits = [
                replace(e, status=code, at=at) if e.rank is None and e.status is None else e for e in self.exits
            ]
            for failure in report["failures"]:
                rank, status = int(failure["rank"]), int(failure["exit_code"])
                known = next((e for e in self.exits if e.rank == rank), None)
                if known is None or known.status is None:
                    self.exits = [e for e in self.exits if e.rank != rank]
                    self.exits.append(Exit(rank, status, min(now, float(failure["mono"]))))

    def _collect_raised(self) -> None:
        known = {raised.rank for raised in self.raised}
        for rank in range(self.nproc):
            if rank not in known and (record := _read_record(self.folder.error(rank))):
                self.raised.append(record)

    def _measure_logs(self, now: float) -> None:
        size = 0
        for rank in self.seen_ranks:
            with contextlib.suppress(OSError):
                size += self.folder.rank_log(rank).stat().st_size
        if size != self._log_bytes:
            self._log_bytes, self.log_grew_at = size, now


def _read_record(path: Path) -> Raised | None:
    try:
        body = read_json(path)
        return replace(_raised(body), because=tuple(_raised({**body, **each}) for each in body.get("because", [])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _raised(body: dict[str, Any]) -> Raised:
    return Raised(
        rank=int(body["rank"]),
        type=str(body["type"]),
        message=_gist(str(body["message"])),
        frame=str(body["frame"]),
        at=float(body["mono"]),
        exit_code=int(body["exit_code"]),
        bad_step=int(body.get("bad_step", -1)),
        data_step=int(body.get("data_step", -1)),
        kinds=tuple(map(str, body.get("kinds", []))),
        errno=body["errno"] if isinstance(body.get("errno"), int) else None,
        frames=tuple(map(str, body.get("frames", []))),
        unread=_file(body.get("file")),
    )


def _file(told: Any) -> tuple[str, int] | None:
    return (str(told["path"])[:_LONGEST_PATH], int(told["bytes"])) if isinstance(told, dict) else None


def _gist(text: str) -> str:
    """The line of a message that says most: the first, and the last too where another process's traceback lies between."""
    lines = text.strip().splitlines() or [""]
    if any(line.lstrip().startswith(("Traceback (most", "Original Traceback (most")) for line in lines):
        return f"{lines[0][:100]} {lines[-1].strip()}"[:300]
    return lines[0][:300]


def last_beat(folder: AttemptDir) -> int:
    """The highest step that the ranks of an attempt have left in their beats, or -1."""
    return max((b.step for b in last_beats(folder.beats) if b.phase >= Phase.TRAIN and b.placed), default=-1)
