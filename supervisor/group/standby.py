"""The next worker group, kept warm: who makes it, when, and what happens when making it fails.

    fork server loading ──ready──> fork a group once the attempt has settled ──parked──> taken by the next launch
          │ unfit or dead                       │ dies: replaced, after a pause
          └─ three times: no fork server any more; groups are started cold (exec), and wait after importing the same

Without --standby every gang is started cold and released at once.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from supervisor.group.fork_server import Nursery
from supervisor.group.group import Gang
from supervisor.group.launch import environment, start_cold
from supervisor.group.learned import Learned
from supervisor.process import proctree
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from trainer.rundir.gate import PRELOAD
from trainer.rundir.layout import RunDir

SETTLED = 0.5
"""Seconds after an attempt's first step before its standby is made: the recovery itself comes first."""
_LOADING = 60.0
"""Seconds that the nursery may take for its imports before a launch goes on without it."""
_PAUSE = 2.0
_TRIES = 3


class Standby:
    """Keeps at most one gang in waiting. Nothing here blocks; tick() moves it on."""

    def __init__(
        self, spec: Spec, run: RunDir, outer: Mapping[str, str], log: EventLog, adopted: Path | None = None
    ) -> None:
        """Of what an earlier supervisor left, the folder of the `adopted` gang stays."""
        left = [folder for folder in run.standby.glob("[0-9]*") if folder.is_dir()]
        for folder in left:
            if folder != adopted:
                shutil.rmtree(folder, ignore_errors=True)
        self._spec, self._run, self._log = spec, run, log
        self._env = environment(spec, run, outer)
        self._nursery: Nursery | None = None
        self._gang: Gang | None = None
        self._unborn: dict[str, Gang] = {}
        self._count = max((int(folder.name) for folder in left), default=0)
        self._failures = 0
        self._why = ""
        """What happened to the last standby that was lost."""
        self._not_before = 0.0
        self._since: float | None = None
        self._said_parked = False
        self._loaded: list[str] = []
        self._learned = Learned(spec, run)
        self._growing = False
        """Whether the fork server imports what the run has been seen to import."""
        self._knows = 0
        """Grows each time the nursery has learned more."""

    # ── what the driver asks ────────────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float) -> Gang | None:
        """A gang for the attempt that starts now, the warmest there is; None while it is worth waiting for the nursery.

        OSError if not even a cold one can be started.
        """
        if self._gang is not None:
            gang, self._gang = self._gang, None
            return gang
        if self._spec.standby and self._nursery is None and self._failures < _TRIES:
            self._start_nursery(now)
        if self._nursery is not None and not self._nursery.unfit:
            if self._nursery.ready:
                return self._fork(self._nursery)
            if self._since is not None and now < self._since + _LOADING:
                return None
        return self._cold(park=False)

    @property
    def warm(self) -> bool:
        """Whether a restart now need not import anything."""
        return self._gang is not None or (self._nursery is not None and self._nursery.ready)

    def tick(self, now: float, ended: set[int], settled: bool) -> None:
        """Whatever is due is under way. `ended` are the fds that were readable."""
        self._listen(now)
        self._check_gang(now, ended)
        if not self._spec.standby or not settled or now < self._not_before:
            return
        nursery = self._nursery
        if nursery is None and self._failures < _TRIES:
            self._start_nursery(now)
        elif nursery is not None and nursery.ready:
            self._learn(nursery)
        if self._gang is not None and self._gang.knows < self._knows and nursery is not None and nursery.ready:
            self._disband(self._gang)
            self._gang = None
        if self._gang is None:
            self._order(now)

    def fds(self) -> list[int]:
        """Readable when there is news for tick()."""
        gang = [self._gang.launcher.fd] if self._gang and self._gang.launcher else []
        return gang + (self._nursery.fds() if self._nursery else [])

    def is_warming(self) -> bool:
        """Whether a gang is in the making."""
        return self._gang is not None and not self._said_parked

    def spared(self) -> set[int]:
        """The processes at the root of what belongs to no attempt yet."""
        roots = {self._nursery.pid} if self._nursery else set()
        if self._gang is not None and self._gang.launcher is not None:
            roots |= {self._gang.launcher.pid, *self._gang.rank_pids()}
        return roots

    def close(self) -> None:
        """Nobody waits any more; the processes are the caller's to kill."""
        if self._gang is not None:
            self._gang.dissolve()
            self._gang = None
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    # ── the nursery ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_nursery(self, now: float) -> None:
        folder = self._run.standby
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._loaded = self._learned.ask(self._wanted)
            self._nursery = Nursery(self._spec, self._env, self._wanted, folder / "fork_server.log")
            self._since = now
        except OSError as error:
            self._lost(now, f"the fork server cannot be started: {error}")

    @property
    def _wanted(self) -> Path:
        return self._run.standby / "wanted.json"

    def _learn(self, nursery: Nursery) -> None:
        if nursery.loading or not self._learned.has_news() or set(self._learned.names()) <= set(self._loaded):
            return
        try:
            self._loaded = self._learned.ask(self._wanted)
        except OSError:
            return  # a full disk: what waits is less warm
        self._growing = True
        nursery.load(self._wanted, gently=True)

    def _listen(self, now: float) -> None:
        nursery = self._nursery
        if nursery is None:
            return
        nursery.listen()
        while nursery.born:
            folder, pid = nursery.born.popleft()
            self._born(folder, pid)
        if nursery.found is not None:
            self._learned.leave_out(nursery.found)
            nursery.found = None
            self._knows += self._growing
            self._growing = False
        if nursery.unfit:
            # Its other children (an attempt, perhaps) live on, as ours.
            nursery.process.send(signal.SIGKILL)
            nursery.close()
            self._nursery, self._growing = None, False
            for gang in self._unborn.values():
                gang.stillborn = True
            self._unborn.clear()
            self._lost(now, f"the fork server is of no use: {nursery.unfit}")

    # ── gangs ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _order(self, now: float) -> None:
        nursery = self._nursery
        try:
            if nursery is not None and nursery.ready:
                self._gang = self._fork(nursery)
            elif nursery is None and self._failures >= _TRIES:
                self._gang = self._cold(park=True)
        except OSError as error:
            self._lost(now, f"no gang can be started: {error}")
        self._said_parked = False

    def _new(self, kind: str) -> Gang:
        self._count += 1
        return Gang.ordered(self._run.standby / f"{self._count:04d}", self._spec.nproc, kind)

    def _fork(self, nursery: Nursery) -> Gang:
        gang = self._new("fork")
        gang.knows, gang.server = self._knows, nursery.serving
        self._unborn[str(gang.gate.path)] = gang
        nursery.fork(gang.gate)
        return gang

    def _cold(self, park: bool) -> Gang:
        gang = self._new("exec")
        env = {**self._env, PRELOAD: str(self._run.modules)} if park else self._env
        gang.born(start_cold(self._spec, gang.gate, env))
        return gang

    def _born(self, folder: str, pid: int) -> None:
        gang = self._unborn.pop(folder, None)
        if gang is not None:
            try:
                gang.born(pid)
            except ProcessLookupError:
                gang.stillborn = True

    def _check_gang(self, now: float, ended: set[int]) -> None:
        gang = self._gang
        if gang is None:
            return
        if gang.stillborn or (gang.launcher is not None and gang.launcher.fd in ended):
            self._gang = None
            self._disband(gang)
            self._lost(now, "the waiting worker group has died")
        elif not self._said_parked and gang.parked:
            self._said_parked = True
            assert gang.launcher is not None
            self._log.emit("standby_ready", kind=gang.kind, launcher_pid=gang.launcher.pid, **self._told(gang))

    def _told(self, gang: Gang) -> dict[str, Any]:
        """What standby_ready tells of `gang`: who it is, what it could not import beforehand, or why it was not forked."""
        server = self._nursery
        fields: dict[str, Any] = {"pids": gang.rank_pids(), "nursery_pid": server.pid if server else None}
        if gang.kind != "fork":
            return {**fields, "why": self._why}
        if server is not None and gang.server not in (server.pid, None):
            fields["serving_pid"] = gang.server
        if self._learned.causes:
            fields |= {"left_out": self._learned.causes, "left_out_s": round(self._learned.seconds, 1)}
        return fields

    def _disband(self, gang: Gang) -> None:
        """Nothing of `gang` waits any more."""
        pids = [*gang.rank_pids(), *([gang.launcher.pid] if gang.launcher else [])]
        proctree.send_all([p for pid in pids if (p := _process(pid))], signal.SIGKILL)
        self._unborn.pop(str(gang.gate.path), None)
        gang.dissolve()

    def _lost(self, now: float, reason: str) -> None:
        self._failures += 1
        self._why = reason
        self._not_before = now + _PAUSE * self._failures
        self._log.emit("standby_lost", "warning", reason=reason)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
