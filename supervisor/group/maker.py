"""Makes worker groups: the fork server with its learned imports, and the cold start where there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from supervisor.group.fork_server import Fork, ForkServer
from supervisor.group.group import WorkerGroup
from supervisor.group.launch import environment, start_cold
from supervisor.group.learned import Learned
from supervisor.group.seat import Seat
from supervisor.process.family import walk
from supervisor.process.kill import kill
from supervisor.process.proctree import carries
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.proc import stat
from trainer.rundir.records.gate import Release
from trainer.rundir.records.learned import Settings
from trainer.rundir.variables import PRELOAD

_LOADING = 60.0
"""Seconds that a launch waits for the imports of the fork server. Then it goes on without it."""
_IMPORTS, _STAYS = 10.0, 15.0
"""Seconds that the end of a run waits for the fork server that stays: until it has imported what it was asked to, and
for its answer."""
_STOPPED, _STILL, _GAP = 2.0, 20.0, 0.5
"""Seconds for which a fork server may leave a group unborn: if somebody has stopped it; if it waits and uses no CPU
(its pages may come back from the swap); and the most that count between two looks: a longer gap is a pause of the
machine, or of the supervisor."""
_PAUSE = 2.0
_TRIES, _FORGOTTEN = 3, 900.0
"""Losses after which no fork server is started any more; the seconds after which the losses before count no more."""


class GroupMaker:
    """Has at most one fork server. Nothing here blocks; listen() does the work."""

    def __init__(self, spec: Spec, run: RunDir, outer: Mapping[str, str], tell: Callable[..., object]) -> None:
        """`tell` is given the name of an event, and its fields."""
        self._spec, self._run, self._tell = spec, run, tell
        self._env = environment(spec, run, outer)
        self.server: ForkServer | None = None
        self.learned = Learned(spec, run)
        self.knows = 0
        """The number of times that the fork server has learned more."""
        self.why = ""
        """The reason for the last loss."""
        self.not_before = 0.0
        """The time before which nothing more is tried."""
        self._unborn: dict[str, WorkerGroup] = {}
        self._looked_at = self._still = self._used = 0.0
        """The last look; the seconds for which the fork server has made none of the groups that it should and has not
        moved; the CPU time that it has used."""
        folders = [int(folder.name) for folder in run.standby.glob("[0-9]*") if folder.is_dir()]
        self._count = max(folders, default=0)
        self._failures, self._lost_at = 0, -_FORGOTTEN
        self._since: float | None = None
        self._loaded: list[str] = []
        self._told = Settings()
        """The variables and modules of the script that the fork server was told of."""
        self._growing = False
        """Whether the fork server is importing the modules that this run has imported."""

    # ── the fork server ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def hopeless(self) -> bool:
        """Whether there is no fork server, and none will be started any more."""
        return self.server is None and self._failures >= _TRIES

    @property
    def ready(self) -> ForkServer | None:
        """The fork server, if it can fork now."""
        return self.server if self.server is not None and self.server.ready and not self.server.unfit else None

    def is_due(self, now: float) -> bool:
        """Whether it is worth waiting for the fork server, which still imports."""
        fit = self.server is not None and not self.server.unfit
        return fit and self._since is not None and now < self._since + _LOADING

    def start(self, now: float) -> None:
        """A fork server is being started, if there is none and it is worth another try."""
        if self.server is not None or self._failures >= _TRIES:
            return
        folder = self._run.standby
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._loaded, self._told = self.learned.ask(self._wanted), self.learned.settings
            self.server = ForkServer(self._spec, self._env, self._wanted, folder / "fork_server.log")
            self._since = now
            if self.server.stayed:
                self._tell("fork_server_taken", pid=self.server.pid)
            elif self.server.why_cold:
                self._tell("fork_server_refused", reason=self.server.why_cold)
        except OSError as error:
            self.lost(now, f"the fork server cannot be started: {error}")

    @property
    def _wanted(self) -> Path:
        return self._run.standby / "wanted.json"

    def learn(self) -> None:
        """The fork server imports what the run has imported since, if it is ready."""
        server = self.ready
        if server is None or server.loading or not self.learned.has_news():
            return
        if set(self.learned.names()) <= set(self._loaded) and self.learned.settings == self._told:
            return
        try:
            self._loaded, self._told = self.learned.ask(self._wanted), self.learned.settings
        except OSError:
            return  # The disk is full. So the waiting group is less warm.
        self._growing = True
        server.load(self._wanted, gently=True)

    def listen(self, now: float) -> None:
        """All answers of the fork server so far are handled."""
        server = self.server
        if server is None:
            return
        server.listen()
        self._wait_for(server, now)
        while server.born:
            folder, pid = server.born.popleft()
            self._born(folder, pid)
        if server.found is not None:
            self.learned.leave_out(server.found)
            server.found = None
            self.knows += self._growing
            self._growing = False
        if server.unfit:
            # Its other children (perhaps an attempt) live on, as our children.
            kill([server.process])
            server.close()
            # A group of it that waits gives way to one that knows more, once there is one.
            self.knows += self._growing
            self.server, self._growing = None, False
            for group in self._unborn.values():
                group.stillborn = True
            self._unborn.clear()
            self.lost(now, f"the fork server is of no use: {server.unfit}")

    def _wait_for(self, server: ForkServer, now: float) -> None:
        """`server` is unfit if it stands still. Somebody has stopped it, or it waits for a disk: it would be asked for
        ever, and no attempt would begin."""
        passed, self._looked_at = min(now - self._looked_at, _GAP), now
        found = stat(server.serving or server.pid) if self._unborn and not server.born else None
        stopped = found is not None and found.state in "Tt"
        # One that runs, waits for a core, or for a child that tries an import, is only late.
        if found is None or found.state == "R" or found.cpu != self._used or (server.loading and not stopped):
            self._still, self._used = 0.0, found.cpu if found is not None else 0.0
            return
        self._still += passed
        if self._still >= (_STOPPED if stopped else _STILL) and not server.unfit:
            server.unfit = "it stands still"

    def lost(self, now: float, reason: str) -> None:
        """Something was lost that should not have been. It is told; the next try comes later, and later each time."""
        if now >= self._lost_at + _FORGOTTEN:
            self._failures = 0
        if now >= self._lost_at + _PAUSE / 2:
            self._failures += 1  # else it went with what was lost just before
        self._lost_at, self.why = now, reason
        self.rest(now, _PAUSE * self._failures)
        self._tell("standby_lost", "warning", reason=reason)

    def rest(self, now: float, seconds: float = _PAUSE) -> None:
        self.not_before = now + seconds

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is news for listen()."""
        return self.server.fds() if self.server else []

    def run(self, name: str, arguments: list[str], mark: str) -> Fork | None:
        """A program of ours will run as a fork of the fork server. None if there is none that has time."""
        server = self.ready
        if server is None or server.loading:
            return None
        return server.run(name, arguments, mark)

    def keep(self) -> int | None:
        """With --keep-warm a fork server stays for the next run. Returns its pid."""
        seconds = self._spec.keep_warm
        if seconds and self.server is not None:
            # A run that ends soon after it began ends while the script's modules are imported.
            self.server.imported(_IMPORTS)
            self.listen(time.monotonic())
        server = self.ready
        if not seconds or server is None:
            return None
        server.stay(_STAYS)
        if server.stays:
            self._tell("fork_server_stays", pid=server.stays, seconds=seconds)
        else:
            self._tell("fork_server_refused", reason=server.why_gone or "it does not answer")
        return server.stays or None

    def close(self) -> None:
        """There is no fork server any more. The caller must still kill the processes."""
        if self.server is not None:
            self.server.close()
            self.server = None

    # ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def fork(self, server: ForkServer, seat: Seat, expected: Release | None = None) -> WorkerGroup:
        """A new group, which `server` is forking. OSError if its gate cannot be made."""
        group = self._new("fork", seat, expected)
        group.knows, group.server, group.foreign = self.knows, server.serving, server.stayed
        self._unborn[str(group.gate.path)] = group
        server.fork(group.gate, seat)
        return group

    def cold(self, seat: Seat, park: bool, expected: Release | None = None) -> WorkerGroup:
        """A new group of fresh interpreters. With `park`, they import what the run has imported while they wait.
        OSError if it cannot be started."""
        group = self._new("exec", seat, expected)
        env = {**self._env, PRELOAD: str(self._run.modules)} if park else self._env
        try:
            group.born(start_cold(self._spec, group.gate, env, seat))
        except OSError:
            group.dissolve()
            raise
        return group

    def _new(self, kind: str, seat: Seat, expected: Release | None) -> WorkerGroup:
        self._count += 1
        name = f"{self._count:04d}"
        log = self._run.launcher_log(name) if self._run.place is not None else None
        return WorkerGroup.ordered(self._run.standby / name, seat, kind, expected, log)

    def _born(self, folder: str, pid: int) -> None:
        group = self._unborn.pop(folder, None)
        if group is not None:
            try:
                group.born(pid)
            except ProcessLookupError:  # of 0, too
                group.stillborn, group.crowded = True, pid == 0

    def disband(self, group: WorkerGroup) -> None:
        """`group` is ended. None of its processes waits any more."""
        pids = {*group.rank_pids(), *group.roots()}
        try:
            found = [process for pid in pids if (process := _process(pid)) and carries(pid, self._spec.mark)]
            more = walk(process.pid for process in found)
            kill([*found, *(process for pid in more if (process := _process(pid)))])
        finally:
            # Where there are no descriptors to look with, its processes end by themselves, for they find no gate.
            self._unborn.pop(str(group.gate.path), None)
            group.dissolve()


def _process(pid: int) -> psutil.Process | None:
    """The process that has this pid now. None if there is none."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None
