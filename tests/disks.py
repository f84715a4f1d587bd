"""Disks that stop, fail, or forget.

    CrashingDisk(n)   the process dies at its n-th call: what was done before is there, nothing after it
    LossyDisk(n)      the power goes at its n-th call: whatever was not synced may be lost, kept or cut short
    FullDisk(n)       from the n-th call on there is no space left

What LossyDisk takes for possible after a power cut: each change of a folder's entries (creation, rename, removal) that was
not followed by a sync of that folder is there or not, independently of the others; a rename is there whole or not at all.
The data of a file that was not synced is whole, cut in half, zeros, or absent.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.rundir.durable import Buffer, Disk


class Cut(BaseException):
    """The process is gone. No handler of the code under test may catch it."""


class CrashingDisk(Disk):
    def __init__(self, calls: int | None = None) -> None:
        self.calls = 0
        self._last = calls

    def _point(self) -> None:
        if self.calls == self._last:
            raise Cut
        self.calls += 1

    def create(self, path: Path, chunks: Iterable[Buffer]) -> None:
        self._point()
        super().create(path, chunks)

    def write(self, fd: int, path: Path, chunk: Buffer) -> None:
        try:
            self._point()
        except Cut:
            os.write(fd, memoryview(chunk).cast("B")[: len(chunk) // 2])
            raise
        super().write(fd, path, chunk)

    def fsync(self, fd: int, path: Path) -> None:
        self._point()
        super().fsync(fd, path)

    def mkdir(self, path: Path) -> None:
        self._point()
        super().mkdir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._point()
        super().rename(source, target)

    def sync_dir(self, path: Path) -> None:
        self._point()
        super().sync_dir(path)

    def remove(self, path: Path) -> None:
        self._point()
        super().remove(path)

    def rmdir(self, path: Path) -> None:
        self._point()
        super().rmdir(path)


class FullDisk(CrashingDisk):
    def _point(self) -> None:
        self.calls += 1
        if self._last is not None and self.calls > self._last:
            raise OSError(errno.ENOSPC, "No space left on device")

    # What frees space works on a full disk.
    def remove(self, path: Path) -> None:
        Disk.remove(self, path)

    def rmdir(self, path: Path) -> None:
        Disk.rmdir(self, path)


@dataclass(eq=False)
class _Node:
    """A file's content, or a folder's entries."""

    data: bytes | None = None
    synced: bool = True
    entries: dict[str, _Node] = field(default_factory=dict)


@dataclass(eq=False)
class _Change:
    """Entries that one call changed: (folder, name, what it is now). All of it happens or none."""

    edits: list[tuple[_Node, str, _Node | None]]
    waiting: set[int]
    """Folders still to be synced before it is certain."""


def _read(path: Path) -> _Node:
    if path.is_dir():
        return _Node(entries={p.name: _read(p) for p in path.iterdir()})
    return _Node(path.read_bytes())


class LossyDisk(CrashingDisk):
    """All below `root` as it is now counts as synced."""

    def __init__(self, root: Path, calls: int | None = None) -> None:
        super().__init__(calls)
        self._root = root
        self._durable = _read(root)
        self._now: dict[Path, _Node] = {}
        self._index(root, self._durable)
        self._changes: list[_Change] = []

    def _index(self, path: Path, node: _Node) -> None:
        self._now[path] = node
        for name, child in node.entries.items():
            self._index(path / name, child)

    def _changed(self, *edits: tuple[Path, _Node | None]) -> None:
        listed = [(self._now[path.parent], path.name, node) for path, node in edits]
        self._changes.append(_Change(listed, {id(folder) for folder, _, _ in listed}))

    def create(self, path: Path, chunks: Iterable[Buffer]) -> None:
        self._point()
        node = self._now[path] = _Node(b"", synced=False)
        self._changed((path, node))
        Disk.create(self, path, chunks)

    def write(self, fd: int, path: Path, chunk: Buffer) -> None:
        super().write(fd, path, chunk)
        node = self._now[path]
        node.data, node.synced = (node.data or b"") + bytes(chunk), False

    def fsync(self, fd: int, path: Path) -> None:
        super().fsync(fd, path)
        self._now[path].synced = True

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        node = self._now[path] = _Node()
        self._changed((path, node))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        moved = [(path, node) for path, node in self._now.items() if path == source or source in path.parents]
        self._changed((source, None), (target, self._now[source]))
        for path, _ in moved:
            del self._now[path]
        for path, node in moved:
            self._now[target / path.relative_to(source)] = node

    def remove(self, path: Path) -> None:
        super().remove(path)
        if path in self._now:
            self._changed((path, None))
            del self._now[path]

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self._changed((path, None))
        del self._now[path]

    def sync_dir(self, path: Path) -> None:
        super().sync_dir(path)
        for change in self._changes:
            change.waiting.discard(id(self._now[path]))

    def survivors(self, place: Path) -> Iterator[Path]:
        """A folder under `place` for each state that the disk may be in once the power is back."""
        open_ones = [change for change in self._changes if change.waiting]
        seen = set()
        for kept in itertools.product((False, True), repeat=len(open_ones)):
            lost = {id(c) for c, keep in zip(open_ones, kept, strict=True) if not keep}
            tree = _applied(self._durable, [c for c in self._changes if id(c) not in lost])
            for variant in _variants(tree):
                if (key := repr(sorted(variant.items()))) not in seen:
                    seen.add(key)
                    yield _materialise(variant, place / f"state-{len(seen)}")


def _applied(base: _Node, changes: list[_Change]) -> dict[str, _Node]:
    """Path to node, of all that is reachable."""
    entries: dict[int, dict[str, _Node]] = {}

    def of(node: _Node) -> dict[str, _Node]:
        return entries.setdefault(id(node), dict(node.entries))

    for change in changes:
        for folder, name, node in change.edits:
            if node is None:
                of(folder).pop(name, None)
            else:
                of(folder)[name] = node

    found: dict[str, _Node] = {}

    def walk(node: _Node, path: str) -> None:
        found[path] = node
        if node.data is None:
            for name, child in of(node).items():
                walk(child, f"{path}/{name}")

    walk(base, ".")
    return found


def _variants(tree: dict[str, _Node]) -> Iterator[dict[str, bytes | None]]:
    fixed = {path: node.data for path, node in tree.items()}
    unsure = [path for path, node in tree.items() if node.data is not None and not node.synced]
    choices = []
    for path in unsure:
        data = tree[path].data or b""
        choices.append([b"", data[: len(data) // 2], bytes(len(data)), data])
    for picked in itertools.product(*choices):
        yield {**fixed, **dict(zip(unsure, picked, strict=True))}


def _materialise(tree: dict[str, bytes | None], place: Path) -> Path:
    for path, data in tree.items():
        if data is None:
            (place / path).mkdir(parents=True, exist_ok=True)
        else:
            (place / path).write_bytes(data)
    return place
