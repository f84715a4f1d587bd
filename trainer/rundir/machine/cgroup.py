"""Memory cgroups of both versions: the group of this process, its counters, and small groups made for a fault.

v1  memory.oom_control  memory.failcnt  memory.{limit,usage,max_usage}_in_bytes  memory.stat  each group counts its own
v2  memory.events       memory.{max,current,peak}                                        a group counts those below too

A group made for a fault is called supervise-<mark>.<attempt>-<pid>. If its maker dies, others find it by the mark.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 1 << 62
"""v1 says "no limit" with a number about as large as this."""


class NoGroup(OSError):
    """No memory group can be read, or made; the text says why."""


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """One memory cgroup."""

    path: Path
    version: int

    def oom_kills(self) -> int:
        """The number of its processes that the kernel's OOM killer has killed. NoGroup if the kernel does not tell."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return self._field(name, "oom_kill")

    def counters(self) -> dict[str, int | None]:
        """oom_kills; hits: how often the limit was reached; limit, used, peak in bytes. None if the kernel does not
        tell."""
        if self.version == 1:
            return {
                "oom_kills": self._maybe("memory.oom_control", "oom_kill"),
                "hits": self._maybe("memory.failcnt"),
                "limit": self._maybe("memory.stat", "hierarchical_memory_limit"),
                "used": self._maybe("memory.usage_in_bytes"),
                "peak": self._maybe("memory.max_usage_in_bytes"),
            }
        return {
            "oom_kills": self._maybe("memory.events", "oom_kill"),
            "hits": self._maybe("memory.events", "max"),
            "limit": self._narrowest(),
            "used": self._maybe("memory.current"),
            "peak": self._maybe("memory.peak"),
        }

    def headroom(self) -> int | None:
        """The bytes that its processes can still get: what is free, and the pages of files that the kernel would drop
        first. None without a limit."""
        now = self.counters()
        limit, used = now["limit"], now["used"]
        if limit is None or used is None:
            return None
        dropped = self._maybe("memory.stat", "total_inactive_file" if self.version == 1 else "inactive_file")
        return limit - used + (dropped or 0)

    def _narrowest(self) -> int | None:
        """The limit that applies: the smallest of this group and the groups above it that the mount shows."""
        limits = []
        folder = self.path
        while (folder / "cgroup.procs").exists():
            limits.append(MemoryGroup(folder, 2)._maybe("memory.max"))
            folder = folder.parent
        return min((limit for limit in limits if limit is not None), default=None)

    def _maybe(self, name: str, field: str = "") -> int | None:
        try:
            value = self._field(name, field)
        except NoGroup:
            return None
        return None if value >= _UNLIMITED else value

    def _field(self, name: str, field: str = "") -> int:
        try:
            for line in (self.path / name).read_text().splitlines():
                words = line.split()
                if words[:1] == [field] or not field:
                    return int(words[-1])
        except (OSError, ValueError, IndexError) as error:
            raise NoGroup(f"{self.path / name}: {getattr(error, 'strerror', None) or error}") from None
        raise NoGroup(f"{self.path / name} has no {field}")


def own_group(proc: Path = Path("/proc/self")) -> MemoryGroup:
    """The memory group of the process with the folder `proc`. NoGroup if none can be seen."""
    try:
        places = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines() if line.count(":") >= 2]
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError as error:
        raise NoGroup(f"{proc}: {error.strerror}") from None
    v1 = next((place[2] for place in places if "memory" in place[1].split(",")), None)
    v2 = next((place[2] for place in places if place[0] == "0"), None)
    for version, place in ((1, v1), (2, v2)):
        if place is None:
            continue
        for mount in mounts:
            head, _, tail = mount.partition(" - ")
            fields, [kind, _, options, *_] = head.split(), [*tail.split(" ", 2), "", ""]
            if kind != ("cgroup" if version == 1 else "cgroup2") or (
                version == 1 and "memory" not in options.split(",")
            ):
                continue
            group = MemoryGroup(_below(fields[4], fields[3], place), version)
            if version == 1 or (group.path / "memory.events").exists():
                return group
    raise NoGroup("no memory cgroup is mounted here, or this process is in the root group, which counts nothing")


def _below(mountpoint: str, root: str, place: str) -> Path:
    """The folder of the group `place` under a mount that shows the hierarchy from `root` on (a container's own
    part)."""
    inside = place[len(root) :] if root != "/" and place.startswith(root) else place
    path = Path(mountpoint) / inside.lstrip("/")
    return path if path.is_dir() else Path(mountpoint)


def _homes(group: MemoryGroup) -> list[Path]:
    """Places for a group made for a fault: below this one, else beside it (v2 allows no processes in a group above
    others)."""
    beside = [group.path.parent] if (group.path.parent / "cgroup.procs").exists() else []
    return [group.path, *beside]


def groups_of(mark: str) -> list[MemoryGroup]:
    """The groups that faults of the run with that mark have made and that still exist."""
    name = re.compile(rf"\Asupervise-{re.escape(mark)}\.\d+-\d+\Z")
    with contextlib.suppress(OSError):
        group = own_group()
        found = [path for home in _homes(group) for path in _folders(home) if name.match(path.name)]
        return [MemoryGroup(path, group.version) for path in found]
    return []


def attempt_of(group: MemoryGroup) -> int:
    """The attempt whose fault made the group."""
    return int(group.path.name.rpartition(".")[2].partition("-")[0])


def _folders(home: Path) -> list[Path]:
    try:
        with os.scandir(home) as entries:
            return [Path(entry.path) for entry in entries if entry.name.startswith("supervise-") and entry.is_dir()]
    except OSError:
        return []


def make(mark: str, limit: int) -> MemoryGroup:
    """A new group, named after `mark` (of an attempt) and this process. It may use `limit` bytes and no swap; when it
    needs more, the kernel kills. NoGroup if the system does not allow it; then nothing was made."""
    own, name = own_group(), f"supervise-{mark}-{os.getpid()}"
    refused = ""
    for home in _homes(own):
        group = MemoryGroup(home / name, own.version)
        try:
            group.path.mkdir()
        except OSError as error:
            refused = f"{group.path}: {error.strerror}"
            continue
        try:
            _bound(group, limit)
            return group
        except OSError as error:
            refused = f"{group.path}: {error.strerror or error}"
            remove(group.path)
    raise NoGroup(refused)


def _bound(group: MemoryGroup, limit: int) -> None:
    swap = "memory.memsw.limit_in_bytes" if group.version == 1 else "memory.swap.max"
    (group.path / ("memory.limit_in_bytes" if group.version == 1 else "memory.max")).write_text(str(limit))
    with contextlib.suppress(OSError):
        # The file is missing if the kernel does not count swap. A machine without swap needs no bound.
        (group.path / swap).write_text(str(limit) if group.version == 1 else "0")
    if group.version == 1 and MemoryGroup(group.path, 1)._maybe("memory.oom_control", "oom_kill_disable"):
        # The setting is inherited. With it, the group's processes would wait for memory for ever.
        (group.path / "memory.oom_control").write_text("0")
    if group.counters()["limit"] != limit:
        raise OSError(errno.EINVAL, "the limit was not taken")


def enter(group: MemoryGroup) -> None:
    """This process is in the group. Memory that it had before stays with the old group. OSError if that is not
    allowed."""
    (group.path / "cgroup.procs").write_text(str(os.getpid()))


def remove(path: Path) -> bool:
    """The group in that folder is removed. False while a process is in it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
