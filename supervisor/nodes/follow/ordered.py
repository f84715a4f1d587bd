"""The worker groups of a node that follows: made, kept, released and dropped as the leader says."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from supervisor.group.group import WorkerGroup
from supervisor.group.maker import GroupMaker
from supervisor.group.seat import Seat
from supervisor.nodes.talk import messages as says
from supervisor.run.spec import Spec
from trainer.rundir.layout import RunDir
from trainer.rundir.records.gate import Release


class Ordered:
    """Nothing here blocks; tick() does the work. What becomes of the groups is told to the leader."""

    def __init__(
        self, spec: Spec, run: RunDir, outer: Mapping[str, str], tell: Callable[[msgspec.Struct], object]
    ) -> None:
        """Folders of groups that an earlier supervisor left are removed."""
        shutil.rmtree(run.standby, ignore_errors=True)
        self._spec, self._tell = spec, tell
        self._maker = GroupMaker(spec, run, outer, self._told_by_maker)
        self._wanted: dict[str, tuple[Seat, Release | None]] = {}
        self._groups: dict[str, WorkerGroup] = {}
        self._told = set[str]()
        self._due: tuple[str, Seat] | None = None

    # ── what the leader says ────────────────────────────────────────────────────────────────────────────────────────

    def make(self, name: str, seat: Seat, expected: Release | None) -> None:
        """A group will be made, as soon as it can be. Its ranks expect that release: then they wait in restore()."""
        self._wanted[name] = seat, expected

    def drop(self, name: str) -> None:
        """The group is ended, if it was not released."""
        self._wanted.pop(name, None)
        if (group := self._groups.pop(name, None)) is not None:
            self._maker.disband(group)

    def drop_all(self) -> None:
        """No group waits. The one that was released is the attempt's."""
        for name in [*self._wanted, *self._groups]:
            self.drop(name)

    def release(self, name: str, seat: Seat) -> None:
        """From now on take() takes that group."""
        self._due = name, seat

    # ── what the attempt and the loop ask ───────────────────────────────────────────────────────────────────────────

    def take(self, now: float, body: Callable[[], Release]) -> WorkerGroup | None:
        """The group that the leader has released. If it has died meanwhile, or was taken before: another one at its
        seat. None while there is none."""
        if self._due is None:
            return None
        name, seat = self._due
        self._wanted.pop(name, None)
        group = self._groups.pop(name, None)
        if group is not None and group.stillborn:
            self._maker.disband(group)
            group = None
        # What is taken may never get a launcher, as when the fork server dies. Then it is asked for once more.
        return group or self._make(seat, now, park=False)

    def disband(self, group: WorkerGroup) -> None:
        """As GroupMaker.disband()."""
        self._maker.disband(group)

    def tick(self, now: float, ended: set[int], calm: bool) -> None:
        """Starts all work that is due. `ended` are the fds that were readable. `calm`: no recovery waits for the
        machine."""
        maker = self._maker
        maker.listen(now)
        if self._spec.standby and now >= maker.not_before:
            maker.start(now)
        if calm:
            maker.learn()
        for name, (seat, expected) in list(self._wanted.items()):
            try:
                group = self._make(seat, now, True, expected)
            except OSError as error:
                del self._wanted[name]
                self._tell(says.GroupLost(name, str(error)))
                continue
            if group is not None:
                del self._wanted[name]
                self._groups[name] = group
        for name, group in list(self._groups.items()):
            self._check(name, group, ended)
            group.look(now)

    def _make(self, seat: Seat, now: float, park: bool, expected: Release | None = None) -> WorkerGroup | None:
        """A new group. None while it is better to wait for the fork server."""
        if server := self._maker.ready:
            return self._maker.fork(server, seat, expected)
        return None if self._maker.is_due(now) else self._maker.cold(seat, park and self._spec.standby, expected)

    def _check(self, name: str, group: WorkerGroup, ended: set[int]) -> None:
        if group.stillborn or (group.launcher is not None and group.launcher.fd in ended):
            del self._groups[name]
            why, unfit = group.unfit(), group.expected is not None and not group.parked
            self._maker.disband(group)
            self._tell(says.GroupLost(name, why or "the waiting worker group has died", unfit))
        elif name not in self._told and group.parked:
            self._told.add(name)
            self._tell(says.Parked(name))

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is news for tick()."""
        launchers = [group.launcher.fd for group in self._groups.values() if group.launcher is not None]
        return [*launchers, *self._maker.fds()]

    @property
    def on_gpu(self) -> bool:
        """Whether a waiting group may hold memory of a GPU."""
        return any(group.expected is not None for group in self._groups.values())

    @property
    def making(self) -> bool:
        """Whether a group is being made, or waits to be told."""
        return bool(self._wanted) or any(name not in self._told for name in self._groups)

    def spared(self) -> set[int]:
        """The root processes of the trees that belong to no attempt."""
        roots = {self._maker.server.pid} if self._maker.server else set()
        return roots.union(*(group.roots() for group in self._groups.values()))

    def close(self) -> None:
        """No group waits any more. The caller must still kill the processes."""
        with contextlib.suppress(OSError):
            self.drop_all()
        self._maker.close()

    def _told_by_maker(self, event: str, level: str = "info", **fields: Any) -> None:
        self._tell(says.Told(event, level, fields))
