"""The next worker group, kept warm: how and when it is made, and what happens if that fails.

    fork server loading ──ready──> fork a group once the attempt has settled ──parked──> taken by the next launch
          │ unfit or dead                       │ dies: replaced, after a pause
          └─ three times: no fork server any more; groups are started cold (exec), import the same, and wait

It waits at the script's first line, or in Checkpointer.restore() (see parking).

Without --standby every group is started cold and released at once.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from supervisor.core.standby.parking import Place
from supervisor.group.fork_server import ForkServer
from supervisor.group.group import WorkerGroup
from supervisor.group.launch import environment, start_cold
from supervisor.group.learned import Learned
from supervisor.group.parking import Parking
from supervisor.group.seat import Seat
from supervisor.process.kill import kill
from supervisor.process.proctree import carries
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release
from trainer.rundir.variables import PRELOAD

SETTLED = 0.5
"""Seconds between an attempt's first step and the start of its standby. The recovery itself comes first."""
_LOADING = 60.0
"""Seconds that a launch waits for the imports of the fork server. Then it goes on without it."""
_PAUSE = 2.0
_TRIES = 3
_LOOK_EVERY = 5.0
"""Seconds between two looks whether a group that waits at the first line could wait in restore()."""


class Standby:
    """Keeps at most one waiting group. Nothing here blocks; tick() does the work."""

    def __init__(
        self, spec: Spec, run: RunDir, outer: Mapping[str, str], log: EventLog, adopted: Path | None = None
    ) -> None:
        """Folders that an earlier supervisor left are removed, except that of the `adopted` group."""
        left = [folder for folder in run.standby.glob("[0-9]*") if folder.is_dir()]
        for folder in left:
            if folder != adopted:
                shutil.rmtree(folder, ignore_errors=True)
        self._spec, self._run, self._log = spec, run, log
        self._env = environment(spec, run, outer)
        self._fork_server: ForkServer | None = None
        self._group: WorkerGroup | None = None
        self._unborn: dict[str, WorkerGroup] = {}
        self._count = max((int(folder.name) for folder in left), default=0)
        self._failures = 0
        self._why = ""
        """The reason for the last loss of a standby."""
        self._not_before = 0.0
        self._since: float | None = None
        self._trains_since: float | None = None
        self._said_parked = False
        self._loaded: list[str] = []
        self._learned = Learned(spec, run)
        self._growing = False
        """Whether the fork server is importing the modules that this run has imported."""
        self._knows = 0
        """The number of times that the fork server has learned more."""
        self._parking = Parking(spec, run)
        self._look_at = 0.0
        self._warned = set[str]()

    # ── what the driver asks ────────────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float, body: Callable[[], Release]) -> WorkerGroup | None:
        """The warmest group that exists, for the attempt of `body`, which starts now. None while it is better to wait
        for the fork server.

        OSError if not even a cold group can be started.
        """
        if self._group is not None:
            group, self._group = self._group, None
            if not (why := self._parking.refused(group, body)):
                return group
            self._disband(group)
            self._log.emit("standby_lost", reason=f"the standby is not used: {why}")
        if self._spec.standby and self._fork_server is None and self._failures < _TRIES:
            self._start_fork_server(now)
        if self._fork_server is not None and not self._fork_server.unfit:
            if self._fork_server.ready:
                return self._fork(self._fork_server)
            if self._since is not None and now < self._since + _LOADING:
                return None
        return self._cold(park=False)

    @property
    def warm(self) -> bool:
        """Whether a restart would import nothing."""
        return self._group is not None or (self._fork_server is not None and self._fork_server.ready)

    def tick(self, now: float, ended: set[int], trains: bool, attempt: int) -> None:
        """Starts all work that is due. `ended` are the fds that were readable. `trains`: the newest attempt, `attempt`,
        has made its first step and goes on."""
        self._listen(now)
        self._check_group(now, ended)
        self._trains_since = (self._trains_since or now) if trains else None
        settled = self._trains_since is not None and now >= self._trains_since + SETTLED
        if not self._spec.standby or not settled or now < self._not_before:
            return
        fork_server = self._fork_server
        if fork_server is None and self._failures < _TRIES:
            self._start_fork_server(now)
        elif fork_server is not None and fork_server.ready:
            self._learn(fork_server)
        if (
            self._group is not None
            and self._group.knows < self._knows
            and fork_server is not None
            and fork_server.ready
        ):
            self._disband(self._group)
            self._group = None
        if self._group is not None and self._group.expected is None and self._parking.why and now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            if (fork_server is None or not fork_server.loading) and self._parking.expected(attempt) is not None:
                # What spoke against it is over: a dead attempt held memory of the GPU, say.
                self._disband(self._group)
                self._group = None
        if self._group is None:
            self._order(now, attempt)
            self._look_at = now + _LOOK_EVERY

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is news for tick()."""
        group = [self._group.launcher.fd] if self._group and self._group.launcher else []
        return group + (self._fork_server.fds() if self._fork_server else [])

    @property
    def on_gpu(self) -> bool:
        """Whether the waiting group may hold memory of a GPU."""
        return self._group is not None and self._group.expected is not None and self._parking.on_gpu

    def out_of_gpu_memory(self) -> None:
        """The attempt was out of memory on a GPU. If a standby held some, none will again."""
        self._parking.crowded |= self.on_gpu

    def is_warming(self) -> bool:
        """Whether a group is being made."""
        return self._group is not None and not self._said_parked

    def spared(self) -> set[int]:
        """The root processes of the trees that belong to no attempt yet."""
        roots = {self._fork_server.pid} if self._fork_server else set()
        if self._group is not None and self._group.launcher is not None:
            roots |= {self._group.launcher.pid, *self._group.rank_pids()}
        return roots

    def close(self) -> None:
        """No group waits any more. The caller must still kill the processes."""
        if self._group is not None:
            self._group.dissolve()
            self._group = None
        if self._fork_server is not None:
            self._fork_server.close()
            self._fork_server = None

    # ── the fork server ───────────────────────────────────────────────────────────────────────────────────────────────

    def _start_fork_server(self, now: float) -> None:
        folder = self._run.standby
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._loaded = self._learned.ask(self._wanted)
            self._fork_server = ForkServer(self._spec, self._env, self._wanted, folder / "fork_server.log")
            self._since = now
        except OSError as error:
            self._lost(now, f"the fork server cannot be started: {error}")

    @property
    def _wanted(self) -> Path:
        return self._run.standby / "wanted.json"

    def _learn(self, fork_server: ForkServer) -> None:
        if fork_server.loading or not self._learned.has_news() or set(self._learned.names()) <= set(self._loaded):
            return
        try:
            self._loaded = self._learned.ask(self._wanted)
        except OSError:
            return  # The disk is full. So the waiting group is less warm.
        self._growing = True
        fork_server.load(self._wanted, gently=True)

    def _listen(self, now: float) -> None:
        fork_server = self._fork_server
        if fork_server is None:
            return
        fork_server.listen()
        while fork_server.born:
            folder, pid = fork_server.born.popleft()
            self._born(folder, pid)
        if fork_server.found is not None:
            self._learned.leave_out(fork_server.found)
            fork_server.found = None
            self._knows += self._growing
            self._growing = False
        if fork_server.unfit:
            # Its other children (perhaps an attempt) live on, as our children.
            kill([fork_server.process])
            fork_server.close()
            self._fork_server, self._growing = None, False
            for group in self._unborn.values():
                group.stillborn = True
            self._unborn.clear()
            self._lost(now, f"the fork server is of no use: {fork_server.unfit}")

    # ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _order(self, now: float, attempt: int) -> None:
        fork_server = self._fork_server
        try:
            if fork_server is not None and fork_server.ready:
                self._group = self._fork(fork_server, None if fork_server.loading else self._parking.expected(attempt))
            elif fork_server is None and self._failures >= _TRIES:
                self._group = self._cold(park=True, expected=self._parking.expected(attempt))
        except OSError as error:
            self._lost(now, f"no group can be started: {error}")
        self._said_parked = False

    def _new(self, kind: str, expected: Release | None) -> WorkerGroup:
        self._count += 1
        return WorkerGroup.ordered(self._run.standby / f"{self._count:04d}", Seat((self._spec.nproc,)), kind, expected)

    def _fork(self, fork_server: ForkServer, expected: Release | None = None) -> WorkerGroup:
        group = self._new("fork", expected)
        group.knows, group.server = self._knows, fork_server.serving
        self._unborn[str(group.gate.path)] = group
        fork_server.fork(group.gate, group.seat)
        return group

    def _cold(self, park: bool, expected: Release | None = None) -> WorkerGroup:
        group = self._new("exec", expected)
        env = {**self._env, PRELOAD: str(self._run.modules)} if park else self._env
        group.born(start_cold(self._spec, group.gate, env, group.seat))
        return group

    def _born(self, folder: str, pid: int) -> None:
        group = self._unborn.pop(folder, None)
        if group is not None:
            try:
                group.born(pid)
            except ProcessLookupError:
                group.stillborn = True

    def _check_group(self, now: float, ended: set[int]) -> None:
        group = self._group
        if group is None:
            return
        if group.stillborn or (group.launcher is not None and group.launcher.fd in ended):
            self._group = None
            why = self._parking.lost(group) if group.expected is not None and not group.parked else ""
            self._disband(group)
            if why:
                # It is the program's own doing, and not that of the fork server.
                self._not_before = now + _PAUSE
                self._log.emit("standby_lost", "warning", reason=why)
            else:
                self._lost(now, "the waiting worker group has died")
        elif not self._said_parked and group.parked:
            self._said_parked = True
            assert group.launcher is not None
            self._log.emit("standby_ready", kind=group.kind, launcher_pid=group.launcher.pid, **self._told(group))
            self._warn(group)

    def _told(self, group: WorkerGroup) -> dict[str, Any]:
        """The fields of standby_ready for `group`: its processes, the modules left out, or the reason why it was not
        forked."""
        server = self._fork_server
        fields: dict[str, Any] = {"pids": group.rank_pids(), "forkserver_pid": server.pid if server else None}
        fields["at"] = Place.START.value if group.expected is None else Place.RESTORE.value
        if group.expected is None and self._parking.why:
            fields["why_start"] = self._parking.why
        if group.kind != "fork":
            return {**fields, "why": self._why}
        if server is not None and group.server not in (server.pid, None):
            fields["serving_pid"] = group.server
        if self._learned.left_out.causes:
            fields |= {
                "left_out": self._learned.left_out.causes,
                "left_out_s": round(self._learned.left_out.seconds, 1),
            }
        return fields

    def _warn(self, group: WorkerGroup) -> None:
        """Warns, once, of what the program does before restore() and a standby should not do."""
        for what in {what for parked in group.parked_ranks() for what in parked.told} - self._warned:
            self._warned.add(what)
            text = f"the standby {what} before Checkpointer.restore(), while the training runs: do that after it"
            self._log.emit("warning", "warning", text=text)

    def _disband(self, group: WorkerGroup) -> None:
        """`group` is ended. None of its processes waits any more."""
        pids = [*group.rank_pids(), *([group.launcher.pid] if group.launcher else [])]
        found = [process for pid in pids if (process := _process(pid, self._spec.mark))]
        kill([*found, *(child for process in found for child in _children(process))])
        self._unborn.pop(str(group.gate.path), None)
        group.dissolve()

    def _lost(self, now: float, reason: str) -> None:
        self._failures += 1
        self._why = reason
        self._not_before = now + _PAUSE * self._failures
        self._log.emit("standby_lost", "warning", reason=reason)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _process(pid: int, mark: str) -> psutil.Process | None:
    """The process with this pid, if it belongs to the run. None if it is gone, or another process has the pid now."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process if carries(pid, mark) else None
    return None
