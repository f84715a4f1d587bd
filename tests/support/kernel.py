"""What a program asks the kernel to do to a folder, as a list of operations.

    with Recorder(root) as recorder:       what this process does below `root`, from any thread
        …
    recorder.ops

Every call of `os` that changes names or syncs is seen as it is made. Contents are also compared before each of them, so
that what C code, a mapping or a buffered file has written is in the list too. At the end the list must lead from the
folder as it was to the folder as it is: if the recorder had missed anything, there would be an error and no list.
"""

from __future__ import annotations

import builtins
import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Tree = dict[str, bytes | None]
"""Path below the root to content; None for a folder."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. `kind` is create, mkdir, write, size, sync, link, rename, remove, rmdir, or mark: a moment that
    the test has named, at which nothing happens. `who` is the thread or process; all meet at a `barrier`."""

    kind: str
    path: str = ""
    target: str = ""
    at: int = 0
    data: bytes = b""
    who: int = 0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, nameless(self.path), nameless(self.target))))


def nameless(path: str) -> str:
    """`path` without what differs from run to run."""
    path = re.sub(r"\.spec-\d+", ".spec-*", path)
    return re.sub(r"\.tmp-(pruned-|flush-)?([0-9a-f]{12}|\d+-\d+)", r".tmp-\1*", path)


def tree_of(root: Path) -> Tree:
    """What is below `root` now; only folders and regular files."""
    found: Tree = {}
    for folder, folders, files in os.walk(root):
        for name in folders:
            found[os.path.relpath(f"{folder}/{name}", root)] = None
        for name in files:
            if stat.S_ISREG(os.lstat(f"{folder}/{name}").st_mode):
                with _open(f"{folder}/{name}", "rb") as file:
                    found[os.path.relpath(f"{folder}/{name}", root)] = file.read()
    return found


_open = open


def _opened_as(fd: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return "nowhere"


def applied(tree: Tree, op: Op) -> Tree:
    """`tree` after `op`, if nothing is ever lost."""
    after = dict(tree)
    match op.kind:
        case "create":
            after[op.path] = b""
        case "mkdir":
            after[op.path] = None
        case "write":
            old = after[op.path] or b""
            after[op.path] = old[: op.at].ljust(op.at, b"\0") + op.data + old[op.at + len(op.data) :]
        case "size":
            after[op.path] = (after[op.path] or b"")[: op.at].ljust(op.at, b"\0")
        case "link":
            after[op.target] = after[op.path]
        case "rename":
            moved = [p for p in tree if p == op.path or p.startswith(op.path + "/")]
            after = {p: c for p, c in tree.items() if p not in moved}
            after |= {op.target + p[len(op.path) :]: tree[p] for p in moved}
        case "remove" | "rmdir":
            del after[op.path]
    return after


class Recorder:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.before = self._tree = tree_of(self.root)
        self.ops: list[Op] = []
        self._lock = threading.RLock()
        self._threads: dict[int, int] = {}
        self._undo: list[tuple[Any, str, Any]] = []

    # ── the list ────────────────────────────────────────────────────────────────────────────────────────────────────

    def add(self, kind: str, path: str = "", target: str = "", at: int = 0, data: bytes = b"") -> None:
        who = self._threads.setdefault(threading.get_ident(), len(self._threads))
        op = Op(kind, path, target, at, data, who)
        self._tree = applied(self._tree, op)
        if kind != "write" or not self._goes_on(op):
            self.ops.append(op)

    def _goes_on(self, op: Op) -> bool:
        """Whether it was the same as if the thread's last operation had written more, which that now has."""
        for index in range(len(self.ops) - 1, -1, -1):
            last = self.ops[index]
            if last.kind == "barrier":
                return False
            if last.who == op.who:
                if (last.kind, last.path, last.at + len(last.data)) != ("write", op.path, op.at):
                    return False
                self.ops[index] = replace(last, data=last.data + op.data)
                return True
        return False

    def mark(self, name: str) -> None:
        """The moment is in the list under `name`."""
        with self._lock:
            self._settle()
            self.add("mark", name)

    def barrier(self) -> None:
        """Whatever any thread does from now on comes after what any has done."""
        with self._lock:
            self.add("barrier")

    def _settle(self) -> None:
        """What was written behind our back is in the list."""
        for path, known in self._tree.items():
            if known is None:
                continue
            with _open(self.root / path, "rb") as file:
                now = file.read()
            if now != known:
                self._tell(path, known, now)

    def _tell(self, path: str, known: bytes, now: bytes) -> None:
        if len(now) < len(known):
            self.add("size", path, at=len(now))
            known = known[: len(now)]
        if now != known:
            same = next((i for i, (a, b) in enumerate(zip(known, now, strict=False)) if a != b), len(known))
            self.add("write", path, at=same, data=now[same:])

    # ── the calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _name(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Below the root; None for what is elsewhere."""
        if isinstance(path, int):
            full = _opened_as(path)
        else:
            base = Path.cwd() if dir_fd is None else Path(_opened_as(dir_fd))
            full = os.path.normpath(base / os.fsdecode(path))
        inside = full.startswith(f"{self.root}/") and not full.endswith(" (deleted)")
        return os.path.relpath(full, self.root) if inside else None

    def _patch(self, module: Any, name: str, make: Callable[[Any], Any]) -> None:
        genuine = getattr(module, name)
        self._undo.append((module, name, genuine))
        setattr(module, name, make(genuine))

    def __enter__(self) -> Recorder:
        for name in ("fsync", "fdatasync"):
            self._patch(os, name, self._synced)
        for name in ("rename", "replace", "link"):
            self._patch(
                os, name, lambda genuine, kind="link" if name == "link" else "rename": self._moved(genuine, kind)
            )
        for name, kind in (("mkdir", "mkdir"), ("rmdir", "rmdir"), ("unlink", "remove"), ("remove", "remove")):
            self._patch(os, name, lambda genuine, kind=kind: self._named(genuine, kind))
        self._patch(os, "write", self._written)
        for name in ("ftruncate", "truncate", "posix_fallocate", "pwrite", "writev"):
            self._patch(os, name, self._before_and_after)
        self._patch(os, "open", self._opened)
        for module in (io, builtins):
            self._patch(module, "open", self._opened)
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        for module, name, genuine in reversed(self._undo):
            setattr(module, name, genuine)
        self._undo.clear()
        self._settle()
        if kind is None:
            assert self._tree == tree_of(self.root), "the recorder has missed something"

    def _synced(self, genuine: Any) -> Any:
        def call(fd: int) -> None:
            with self._lock:
                self._settle()
                genuine(fd)
                name = self._name(fd)
                if name is not None or _opened_as(fd) == str(self.root):
                    self.add("sync", name or ".")

        return call

    def _moved(self, genuine: Any, kind: str) -> Any:
        def call(source: Any, target: Any, **more: Any) -> None:
            with self._lock:
                self._settle()
                genuine(source, target, **more)
                names = self._name(source, more.get("src_dir_fd")), self._name(target, more.get("dst_dir_fd"))
                if names[0] is not None and names[1] is not None:
                    self.add(kind, names[0], names[1])

        return call

    def _named(self, genuine: Any, kind: str) -> Any:
        def call(path: Any, *args: Any, **more: Any) -> None:
            with self._lock:
                self._settle()
                name = self._name(path, more.get("dir_fd"))
                genuine(path, *args, **more)
                if name is not None and (kind == "mkdir" or name in self._tree):
                    self.add(kind, name)

        return call

    def _written(self, genuine: Any) -> Any:
        def call(fd: int, data: Any) -> int:
            with self._lock:
                name = self._name(fd)
                if name is None or name not in self._tree:
                    return int(genuine(fd, data))
                self._settle()
                written = int(genuine(fd, data))
                end = os.lseek(fd, 0, os.SEEK_CUR)
                self.add("write", name, at=end - written, data=bytes(memoryview(data).cast("B")[:written]))
                return written

        return call

    def _before_and_after(self, genuine: Any) -> Any:
        def call(*args: Any) -> Any:
            with self._lock:
                self._settle()
                result = genuine(*args)
                self._settle()
                return result

        return call

    def _opened(self, genuine: Any) -> Any:
        def call(path: Any, *args: Any, **more: Any) -> Any:
            with self._lock:
                name = None if isinstance(path, int) else self._name(path, more.get("dir_fd"))
                known = name is None or name in self._tree
                result = genuine(path, *args, **more)
                if name is not None and not known and stat.S_ISREG(os.lstat(self.root / name).st_mode):
                    self.add("create", name)
                elif name is not None and name in self._tree and self._tree[name] is not None:
                    self._settle()
                return result

        return call


@contextmanager
def recorded(root: Path) -> Iterator[Recorder]:
    """What is done below `root` inside the block."""
    with Recorder(root) as recorder:
        yield recorder
