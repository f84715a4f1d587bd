"""Looks at one attempt: its launcher and ranks by pidfd, its beats, notes and error records. Reports what it saw."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import replace
from pathlib import Path

from supervisor.attempt import steps
from supervisor.attempt.logs import Logs
from supervisor.attempt.records import Notes, exception_of
from supervisor.attempt.sampler import Sampler
from supervisor.core.members import Group, Member
from supervisor.core.model import Exit, Raised, RankView
from supervisor.core.own_saves.saves import Saves, hear
from supervisor.core.telling.news import News
from supervisor.group.group import WorkerGroup
from supervisor.process import kernel
from supervisor.process.proctree import Process
from supervisor.process.reaper import Reaper
from trainer.rundir.codes import Phase
from trainer.rundir.environment import STACKS_SIGNAL
from trainer.rundir.files.codec import read
from trainer.rundir.layout import SCRIPT, AttemptDir
from trainer.rundir.records.beats import Beat, BeatReader, Role, Source
from trainer.rundir.records.gate import Report
from trainer.rundir.records.notes import NoteReader

_KERNEL_EVERY = 0.15
"""Seconds between two looks at the state and CPU time of the ranks, when one of them is silent or was not at work."""
_KERNEL_CALM = 1.0
"""The same, while all ranks step."""
_QUIET_AFTER = 0.4
"""A rank without CPU use gets a close look after this many seconds without a beat."""
_QUIET_SHARE = 0.1
_FILES_EVERY = 0.2
_JOURNALS_EVERY = 1.0
"""Seconds between two looks for saves that have begun, or failed."""


class Watch:
    """Watches one attempt. It decides nothing and sends nothing."""

    def __init__(self, folder: AttemptDir, group: WorkerGroup, reaper: Reaper, cwd: Path) -> None:
        """The `group` of the attempt has been released. Its script runs in `cwd`."""
        self.folder = folder
        self._asked = group.seat.ranks
        # The journals of all ranks are in the shared folder, and one node reads them.
        self._read_by_us = range(group.seat.world) if group.seat.node == 0 else range(0)
        self.beats: list[Beat] = []
        self.ranks: dict[int, Process] = {}
        """Living ranks that have registered."""
        self.seen_ranks: dict[int, int] = {}
        """The pid of every rank that ever registered. Under SCRIPT: the script, if it was a rank once."""
        self.script: Process | None = None
        """The living process of a script that has started the ranks and is not a rank."""
        self._joined: list[tuple[int, int]] = []
        """(rank, pid) of the ranks that the script has started, until news() has returned them."""
        self._spawned: dict[int, Role] = {}
        self._ends = NoteReader(folder.ended)
        self.launcher = group.launcher
        self._launcher_pid = group.launcher.pid if group.launcher else 0
        self._group = group
        self.exits: list[Exit] = []
        self.raised: list[Raised] = []
        self._reaper, self._reader = reaper, BeatReader(folder.beats)
        self.sampler = Sampler(cwd)
        self._notes, self._journals = Notes(folder.notes), Notes(folder.saves)
        self.saves = Saves()
        """The script's own saves in this attempt."""
        self._counted = -1
        self._kernel, self._close = dict[int, kernel.Glance](), dict[int, kernel.Close]()
        self._unborn: tuple[Member, ...] = ()
        self._launcher_stopped = False
        self.replaced: set[int] = set()
        """The ranks whose process has become another program."""
        self._kernel_at = self._files_at = self._journals_at = float("-inf")
        self.logs = Logs(folder)

    @property
    def pids(self) -> dict[int | None, int]:
        """The pids of the launcher, under None, and of every rank that ever registered."""
        return dict([(None, self._launcher_pid), *self.seen_ranks.items()])

    def fds(self) -> list[int]:
        """The pidfds that become readable when a process of the attempt ends."""
        launcher = [self.launcher.fd] if self.launcher else []
        script = [self.script.fd] if self.script else []
        return launcher + script + [process.fd for process in self.ranks.values()]

    def ask_faults(self) -> None:
        """Every rank will look for new faults at its next step."""
        self._reader.ask_faults()

    def close(self) -> None:
        for process in [*self.ranks.values(), *([self.script] if self.script else [])]:
            process.close()
        self.ranks, self.launcher, self.script = {}, None, None
        self.sampler.close()
        self.logs.look(self.seen_ranks.keys() - {SCRIPT}, self._files_at)
        self.logs.close()
        self._reader.close()

    def look(self, now: float, ended: set[int]) -> None:
        """All values are as of `now`. `ended` are the pidfds that were readable."""
        self.beats = self._reader.read()
        # The number of a pidfd that was closed in this turn may be that of a new one.
        own = ended.intersection(self.fds())
        self._register(now)
        self._collect_exits(now, own)
        self._read_ends()
        if ended or now >= self._files_at + _FILES_EVERY:
            self._files_at = now
            self._collect_raised()
            self.logs.look(self.seen_ranks.keys() - {SCRIPT}, now)
        starting = self.launcher is not None and len(self.seen_ranks) < len(self._asked)
        at_work = not starting and all(glance.state in "RS" for glance in self._kernel.values())
        if now >= self._kernel_at + (_KERNEL_CALM if at_work and not self.quiet(now) else _KERNEL_EVERY):
            self._look_at_kernel(now)

    def group(self) -> Group:
        """The processes beside the registered ranks."""
        launcher = Member(self._launcher_pid, stopped=self._launcher_stopped, launcher=True) if self.launcher else None
        return Group(len(self._asked), launcher, self._unborn)

    def views(self) -> tuple[RankView, ...]:
        """The living ranks."""
        return tuple(self._view(beat) for beat in self.beats if beat.rank in self.ranks)

    def news(self, now: float) -> News:
        """The news since the last call. The other values are as of the last look."""
        # Reads that may fail come first: then no news is lost.
        notes = tuple(self._notes.read(self._numbers()))
        joined, self._joined = tuple(self._joined), []
        return News(
            pids=dict(self.seen_ranks),
            replaced=frozenset(self.replaced),
            joined=joined,
            notes=notes,
            trained=steps.trained(self.beats),
            saves=self.saves,
            own_step=self.saves.step if steps.start(self.beats) is not None else -1,
            quiet=self.quiet(now),
        )

    def _numbers(self) -> list[int]:
        """The numbers of the requested ranks, and of the ranks that the script has started."""
        return [*self._asked, *(rank for rank in self.seen_ranks if rank not in (*self._asked, SCRIPT))]

    def saved(self) -> int:
        """The number of the script's own saves, in any form."""
        return max((beat.saves for beat in self.beats), default=0)

    def saved_unplaced(self) -> bool:
        """Whether the script has made a save whose step is unknown."""
        return self.saves.unplaced or (self.saved() > 0 and self.saves.newest is None)

    def read_journals(self, now: float, final: bool) -> None:
        """`saves` is up to date. The journals are read when a save has ended, from time to time, and when the attempt
        is over."""
        counted = sum(beat.saves for beat in self.beats)
        if counted == self._counted and now < self._journals_at + _JOURNALS_EVERY and not final:
            return
        self._counted, self._journals_at = counted, now
        ranks = [*self._read_by_us, *(rank for rank in self.seen_ranks if rank not in (*self._read_by_us, SCRIPT))]
        while lines := self._journals.read(ranks if self._read_by_us else ()):
            for rank, line in lines:
                self.saves = hear(self.saves, rank, line)

    def quiet(self, now: float) -> bool:
        """Whether any rank has been silent for a moment."""
        return any(now - beat.at > _QUIET_AFTER for beat in self.beats)

    def _look_at_kernel(self, now: float) -> None:
        before, passed = self._kernel, now - self._kernel_at
        self._kernel_at = now
        self._kernel = {rank: kernel.glance(process.pid, before.get(rank)) for rank, process in self.ranks.items()}
        self._look_at_start()
        silent = [beat.rank for beat in self.beats if beat.phase is Phase.TRAIN and now - beat.at > _QUIET_AFTER]
        known = [rank for rank in silent if rank in self._kernel and rank in before]
        quiet = [rank for rank in known if self._kernel[rank].cpu - before[rank].cpu <= _QUIET_SHARE * passed]
        pids = {process.pid for process in self.ranks.values()}
        looks = {rank: kernel.closely(self.ranks[rank].pid, pids) for rank in quiet}
        self._close = {rank: close.after(self._close.get(rank)) for rank, close in looks.items()}
        held = any(close.held for close in self._close.values())
        if held and self.script is not None and not kernel.waits_for_ranks(self.script.pid, pids):
            # A rank that waits for a lock may wait for the script, and the script does not wait for the ranks.
            self._close = {rank: replace(close, held="") for rank, close in self._close.items()}
        for beat in self.beats:
            if beat.rank in self.ranks and beat.rank not in self.replaced and now - beat.at > _QUIET_AFTER:
                self._look_at_program(beat.rank, self.ranks[beat.rank].pid)

    def _look_at_program(self, rank: int, pid: int) -> None:
        """Finds a program that has replaced ours by exec. It has neither our handler nor the beats in its memory."""
        if not kernel.catches(pid, STACKS_SIGNAL) and kernel.maps(pid, self.folder.beats) is False:
            self.replaced.add(rank)

    def _look_at_start(self) -> None:
        """Finds the processes that will become ranks, while a rank is missing. Finds out whether the launcher is
        stopped."""
        self._unborn, self._launcher_stopped = (), False
        if self.launcher is None:
            return
        if len(self.seen_ranks) < len(self._asked):
            known = set(self.seen_ranks.values())
            born = [pid for pid in kernel.children(self._launcher_pid) if pid not in known]
            self._unborn = tuple(member for pid in born if (member := self._to_be_rank(pid)) is not None)
        if self._unborn or len(self.seen_ranks) < len(self._asked) or any(b.phase < Phase.TRAIN for b in self.beats):
            self._launcher_stopped = kernel.glance(self._launcher_pid).state == "T"

    def _to_be_rank(self, pid: int) -> Member | None:
        """None if it has ended. A rank without a beat has ended for its launcher alone, which waits for the others."""
        if (state := kernel.glance(pid).state) not in "TZ":
            return Member(pid)
        rank = next((rank for rank, came in self._group.came().items() if came == pid), None)
        if state == "T":
            return Member(pid, kernel.rank(pid) if rank is None else rank, stopped=True)
        if rank is not None:
            with contextlib.suppress(ProcessLookupError), contextlib.closing(Process(pid)) as process:
                self.exits.append(Exit(rank, self._reaper.exit_code(process), self._kernel_at))
                self.seen_ranks[rank] = pid
        return None

    def _view(self, beat: Beat) -> RankView:
        glance = self._kernel.get(beat.rank, kernel.Glance())
        close = self._close.get(beat.rank, kernel.Close(glance.cpu, False, ""))
        announces = beat.source is Source.LOOP or beat.phase is not Phase.STARTUP
        return RankView(
            rank=beat.rank,
            step=beat.step,
            phase=beat.phase,
            beat_at=beat.at,
            announces=announces and beat.source is not Source.HOOK,
            stopped=glance.state == "T",
            cpu=close.cpu,
            starved=glance.starved,
            disk=close.disk or glance.state == "D",
            held=close.held_by(self._kernel_at),
            sleeps=close.sleeps,
            polls=bool(close.polls),
            replaced=beat.rank in self.replaced,
            sample=self.sampler.samples.get(beat.rank),
            sampled=self.sampler.available,
            own=beat.own,
            apart=beat.role == Role.SPAWNED,
        )

    def _register(self, now: float) -> None:
        for beat in self.beats:
            if self.seen_ranks.get(beat.rank) == beat.pid:
                continue
            try:
                process = Process.as_of(beat.pid, beat.at)
            except ProcessLookupError:
                process = None
            self._give_way(beat)
            if process is not None:
                self.ranks[beat.rank] = process
            else:
                self.exits.append(Exit(beat.rank, None, now, self._is_spared(beat.rank, None)))
            # This comes last. If there is no descriptor for the process now, the next look registers it.
            self.seen_ranks[beat.rank] = beat.pid

    def _give_way(self, beat: Beat) -> None:
        """A rank that the script has started takes its number. The process that had it is the script, which is no rank,
        or a process that has done its work."""
        if not beat.role & Role.SPAWNED:
            return
        old = self.ranks.pop(beat.rank, None)
        if beat.rank in self._spawned:
            self.exits = [e for e in self.exits if e.rank != beat.rank]
            if old is not None:
                old.close()
        elif old is not None:
            self.script, self.seen_ranks[SCRIPT] = old, old.pid
        elif beat.rank == 0:
            self._find_script(beat.at)
        self._spawned[beat.rank] = beat.role
        self._joined.append((beat.rank, beat.pid))

    def _find_script(self, at: float) -> None:
        """Finds the script's process. It was no rank any more when this supervisor came, or was one for less than a
        look. It was alive at the time `at`."""
        if (pid := self._group.came().get(0)) is not None:
            self.seen_ranks[SCRIPT] = pid
            with contextlib.suppress(ProcessLookupError):
                self.script = Process.as_of(pid, at)

    def _is_spared(self, rank: int, status: int | None) -> bool:
        role = self._spawned.get(rank)
        return role is not None and (status == -signal.SIGTERM or not role & Role.GROUPED)

    def _collect_exits(self, now: float, ended: set[int]) -> None:
        for rank, process in list(self.ranks.items()):
            if process.fd in ended:
                status = self._reaper.exit_code(process)
                self.exits.append(Exit(rank, status, now, self._is_spared(rank, status)))
                process.close()
                del self.ranks[rank]
        if self.script is not None and self.script.fd in ended:
            self.exits.append(Exit(SCRIPT, self._reaper.exit_code(self.script), now))
            self.script.close()
            self.script = None
        if self.launcher is not None and self.launcher.fd in ended:
            self.exits.append(Exit(None, self._reaper.exit_code(self.launcher), now))
            self.launcher = None
            self._read_report(now)
        elif self.launcher is None and all(e.rank is not None for e in self.exits):
            # In an adopted attempt, the launcher may have ended while no supervisor ran.
            self.exits.append(Exit(None, None, now))
            self._read_report(now)

    def _read_ends(self) -> None:
        """Reads how ranks have ended that the script started. The script has waited for them. Older kernels tell nobody
        else."""
        for note in self._ends.read() if self._spawned else ():
            rank = next((r for r, pid in self.seen_ranks.items() if pid == note.get("pid")), None)
            known = next((e for e in self.exits if e.rank == rank and e.status is None), None)
            if rank is not None and known is not None and type(code := note.get("code")) is int:
                told = replace(known, status=code, spared=self._is_spared(rank, code))
                self.exits = [told if e is known else e for e in self.exits]

    def _read_report(self, now: float) -> None:
        """Reads the launcher's report. It tells of ranks that died before they registered, or whose status is not
        known. It tells the launcher's own status, if the launcher is not our child and the kernel does not tell it."""
        with contextlib.suppress(OSError, ValueError):
            report = read(self._group.gate.launcher_report, Report)
            code, at = report.exit_code, min(now, report.mono)
            self.exits = [
                replace(e, status=code, at=at) if e.rank is None and e.status is None else e for e in self.exits
            ]
            for failure in report.failures:
                rank, status, pid = failure.rank, failure.exit_code, failure.pid
                if self._spawned:
                    rank = next((r for r, known in self.seen_ranks.items() if known == pid), SCRIPT)
                known = next((e for e in self.exits if e.rank == rank), None)
                if known is None or known.status is None:
                    self.exits = [e for e in self.exits if e.rank != rank]
                    self.exits.append(Exit(rank, status, min(now, failure.mono)))

    def _collect_raised(self) -> None:
        known = {raised.rank for raised in self.raised}
        for rank in {*self._asked, *self.seen_ranks}:
            if rank not in known and (record := exception_of(self.folder.error(rank))):
                self.raised.append(replace(record, spared=self._is_spared(rank, None)))
