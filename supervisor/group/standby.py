"""The next worker group, kept warm: how and when it is made, and what happens if that fails.

    fork server loading ──ready──> fork a group once the attempt has settled ──parked──> taken by the next launch
          │ unfit or dead                       │ dies: replaced, after a pause
          └─ three times: no fork server any more; groups are started cold (exec), import the same, and wait

It waits at the script's first line, or in Checkpointer.restore() (see parking).

Without --standby every group is started cold and released at once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from supervisor.core.model import Cause
from supervisor.core.standby.cost import Meter
from supervisor.core.standby.parking import Place
from supervisor.core.telling.progress import Trained
from supervisor.group.fork_server import Fork, ForkServer
from supervisor.group.group import WorkerGroup
from supervisor.group.maker import GroupMaker
from supervisor.group.parking import Parking
from supervisor.group.seat import Seat, Seats
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release

SETTLED = 0.5
"""Seconds between an attempt's first step and the start of its standby. The recovery itself comes first."""
_LOOK_EVERY = 5.0
"""Seconds between two looks whether a group that waits at the first line could wait in restore()."""


class Standby:
    """Keeps at most one waiting group. Nothing here blocks; tick() does the work."""

    def __init__(
        self,
        spec: Spec,
        run: RunDir,
        outer: Mapping[str, str],
        log: EventLog,
        adopted: Path | None = None,
        seats: Seats | None = None,
    ) -> None:
        """Folders that an earlier supervisor left are removed, except that of the `adopted` group. `seats` orders the
        other nodes' part of a new group, and tells the part of this one. None: this node is alone."""
        self._spec, self._log = spec, log
        self._maker = GroupMaker(spec, run, outer, log.emit)
        self.kept = set[int]()
        """The process that stays after the run. It is not of the run any more."""
        for folder in list(run.standby.glob("[0-9]*")):
            if folder.is_dir() and folder != adopted:
                shutil.rmtree(folder, ignore_errors=True)
        self._seats: Seats = seats or (lambda _: (Seat((spec.nproc,)), None))
        self._group: WorkerGroup | None = None
        self._trains_since: float | None = None
        self._said_parked = False
        self._parking = Parking(spec, run)
        self._look_at = 0.0
        self._warned = set[str]()
        self._meter = Meter()

    # ── what the driver asks ────────────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float, body: Callable[[], Release]) -> WorkerGroup | None:
        """The warmest group that exists, for the attempt of `body`, which starts now. None while it is better to wait
        for the fork server.

        OSError if not even a cold group can be started.
        """
        if self._group is not None:
            # It is ours until it is known that it can be taken: `body` reads the disk.
            group = self._group
            why = _lost_elsewhere(group) or group.dead() or self._parking.refused(group, body)
            self._group = None
            if not why:
                return group
            self._maker.disband(group)
            self._log.emit("standby_lost", reason=f"the standby is not used: {why}")
        maker = self._maker
        if self._spec.standby:
            maker.start(now)
        if server := maker.ready:
            return self._fork(server)
        return None if maker.is_due(now) else self._cold(park=False)

    def disband(self, group: WorkerGroup) -> None:
        """As GroupMaker.disband()."""
        self._maker.disband(group)

    @property
    def warm(self) -> bool:
        """Whether a restart would import nothing."""
        return self._group is not None or self._maker.ready is not None

    def tick(self, now: float, ended: set[int], trains: bool, attempt: int) -> None:
        """Starts all work that is due. `ended` are the fds that were readable. `trains`: the newest attempt, `attempt`,
        has made its first step and goes on."""
        maker = self._maker
        maker.listen(now)
        if self._group is not None and self._group.knows < maker.knows and maker.server is None:
            # The fork server could not learn what was to be known, so its group is of no use either.
            self._drop()
        self._check_group(now, ended)
        self._trains_since = (self._trains_since or now) if trains else None
        settled = self._trains_since is not None and now >= self._trains_since + SETTLED
        if not self._spec.standby or not settled or now < maker.not_before:
            return
        if maker.server is None:
            maker.start(now)
        else:
            maker.learn()
        if self._group is not None and self._group.knows < maker.knows and maker.ready:
            self._drop()
        if self._group is not None and self._group.expected is None and self._parking.why and now >= self._look_at:
            self._look_at = now + _LOOK_EVERY
            if (maker.server is None or not maker.server.loading) and self._parking.expected(attempt) is not None:
                # What spoke against it is over: a dead attempt held memory of the GPU, say.
                self._drop()
        if self._group is None:
            self._order(now, attempt)
            self._look_at = now + _LOOK_EVERY

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is news for tick()."""
        group = [self._group.launcher.fd] if self._group and self._group.launcher else []
        return group + self._maker.fds()

    @property
    def on_gpu(self) -> bool:
        """Whether the waiting group may hold memory of a GPU."""
        return self._group is not None and self._group.expected is not None and self._parking.on_gpu

    def failed(self, cause: Cause) -> None:
        """The attempt has failed, of `cause`. If it was out of memory while a standby held some, none will again."""
        if cause is Cause.GPU_BUSY and self.on_gpu:
            self._parking.crowded = "GPU memory"
        elif cause is Cause.HOST_OOM and self._group is not None and self._group.expected is not None:
            self._parking.crowded = "memory"

    def is_warming(self) -> bool:
        """Whether a group is being made."""
        return self._group is not None and not self._said_parked

    def measure(self, attempt: int, trained: Trained | None) -> None:
        """The attempt has come that far. What the making of a standby has taken from its steps is told, once that is
        known."""
        if trained is None or not self._spec.standby:
            return
        server = self._maker.server
        making = self.is_warming() or (server is not None and (server.loading or not server.ready))
        if (paid := self._meter.see(attempt, trained.step, trained.at, making)) is not None:
            found: dict[str, Any] = {"cost_s": paid.seconds, "share": paid.share, "made_s": paid.made_s}
            self._log.emit("standby_cost", **{name: round(value, 4) for name, value in found.items()})

    def spared(self) -> set[int]:
        """The root processes of the trees that belong to no attempt yet."""
        roots = {self._maker.server.pid} if self._maker.server else set()
        return roots if self._group is None else roots | self._group.roots()

    def run(self, name: str, arguments: list[str], mark: str) -> Fork | None:
        """As GroupMaker.run()."""
        return self._maker.run(name, arguments, mark)

    def keep(self) -> None:
        """With --keep-warm a fork server stays for the next run. It is `kept`."""
        self.kept = {pid} if (pid := self._maker.keep()) else set()

    def disperse(self) -> None:
        """No group waits any more; the fork server is there."""
        if self._group is not None:
            self._group.dissolve()
            self._group = None

    def close(self) -> None:
        """No group waits any more. The caller must still kill the processes."""
        self.disperse()
        self._maker.close()

    # ── the waiting group ───────────────────────────────────────────────────────────────────────────────────────────

    def _order(self, now: float, attempt: int) -> None:
        server = self._maker.server
        try:
            if server is not None and server.ready:
                self._group = self._fork(server, None if server.loading else self._parking.expected(attempt))
            elif self._maker.hopeless:
                self._group = self._cold(park=True, expected=self._parking.expected(attempt))
        except OSError as error:
            self._maker.lost(now, f"no group can be started: {error}")
        self._said_parked = False

    def _fork(self, server: ForkServer, expected: Release | None = None) -> WorkerGroup:
        return self._made(expected, lambda seat: self._maker.fork(server, seat, expected))

    def _cold(self, park: bool, expected: Release | None = None) -> WorkerGroup:
        return self._made(expected, lambda seat: self._maker.cold(seat, park, expected))

    def _made(self, expected: Release | None, make: Callable[[Seat], WorkerGroup]) -> WorkerGroup:
        """A group at a new seat, with its parts on the other nodes."""
        seat, elsewhere = self._seats(expected)
        try:
            group = make(seat)
        except OSError:
            if elsewhere is not None:
                elsewhere.drop()
            raise
        group.elsewhere = elsewhere
        return group

    def _drop(self) -> None:
        if self._group is not None:
            self._maker.disband(self._group)
            self._group = None

    def _check_group(self, now: float, ended: set[int]) -> None:
        group, maker = self._group, self._maker
        if group is None:
            return
        if why := _lost_elsewhere(group):
            if group.expected is not None and group.elsewhere is not None and group.elsewhere.unfit:
                self._parking.failed(why)
            self._drop()
            maker.rest(now)
            self._log.emit("standby_lost", reason=why)
        elif group.stillborn or (group.launcher is not None and group.launcher.fd in ended):
            why = self._parking.lost(group) if group.expected is not None and not group.parked else ""
            self._drop()
            if why:
                # It is the program's own doing, and not that of the fork server.
                maker.rest(now)
                self._log.emit("standby_lost", "warning", reason=why)
            else:
                maker.lost(now, "the waiting worker group has died")
        elif not self._said_parked and group.parked:
            self._said_parked = True
            assert group.launcher is not None
            self._log.emit("standby_ready", kind=group.kind, launcher_pid=group.launcher.pid, **self._told(group))
            self._warn(group)
        if self._group is not None:
            self._group.look(now)

    def _told(self, group: WorkerGroup) -> dict[str, Any]:
        """The fields of standby_ready for `group`: its processes, the modules left out, or the reason why it was not
        forked."""
        server, left_out = self._maker.server, self._maker.learned.left_out
        fields: dict[str, Any] = {"pids": group.rank_pids(), "forkserver_pid": server.pid if server else None}
        fields["at"] = Place.START.value if group.expected is None else Place.RESTORE.value
        if group.expected is None and self._parking.why:
            fields["why_start"] = self._parking.why
        if group.kind != "fork":
            return {**fields, "why": self._maker.why}
        if server is not None and group.server not in (server.pid, None):
            fields["serving_pid"] = group.server
        if left_out.causes:
            fields |= {"left_out": left_out.causes, "left_out_s": round(left_out.seconds, 1)}
        return fields

    def _warn(self, group: WorkerGroup) -> None:
        """Warns, once, of what the program does before restore() and a standby should not do."""
        for what in {what for parked in group.parked_ranks() for what in parked.told} - self._warned:
            self._warned.add(what)
            text = f"the standby {what} before Checkpointer.restore(), while the training runs: do that after it"
            self._log.emit("warning", "warning", text=text)


def _lost_elsewhere(group: WorkerGroup) -> str:
    """Why the parts of `group` on other nodes cannot be used; empty if they can."""
    return group.elsewhere.lost if group.elsewhere is not None else ""
