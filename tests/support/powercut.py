"""What a disk may hold when the power comes back: every state that a list of operations allows, at every moment of it.

Taken for possible, after the crash of a machine with ext4, xfs or btrfs, whatever order they write in:

    names      a creation, removal or rename that no sync of its folder followed is there or not, whatever became of
    others;
               a rename is there whole or not at all, and may be there before the content of what it names
    contents   of a file that was not synced each page of 4096 bytes is as it was or as it is; what is new of its length
    is
               there, or not, or half of it, and where a page did not make it there are zeros, or whatever lay on the
               disk
    syncs      of a file: its content, not its name; of a folder: its names, not their contents

Where threads or processes are at work, every combination of how far each has come. For a death of the process alone
(`power=False`) all that was done is there, and the last write perhaps by half.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.kernel import Op, Tree

PAGE = 4096
_GARBAGE = b"\x5a\n"
MOST = 1 << 14
"""Combinations at one moment; more would be an error of the test, not a sample."""


@dataclass(eq=False)
class _File:
    synced: bytes = b""
    now: bytes = b""
    sizes: set[int] = field(default_factory=set)
    """Its lengths since it was synced."""


@dataclass(eq=False)
class _Folder:
    synced: dict[str, _Node] = field(default_factory=dict)
    now: dict[str, _Node] = field(default_factory=dict)


_Node = _File | _Folder


@dataclass(eq=False)
class _Change:
    """Names that one call changed, all of them or none; `open` are the folders that are still to be synced."""

    edits: list[tuple[_Folder, str, _Node | None]]
    open: set[int]


class Machine:
    """A folder on a disk, as programs see it and as it may be found after a power cut."""

    def __init__(self, before: Tree) -> None:
        self.root = _Folder()
        for path, content in sorted(before.items()):
            folder, name = self._parent(path)
            node: _Node = _Folder() if content is None else _File(content, content)
            folder.now[name] = folder.synced[name] = node
        self._changes: list[_Change] = []

    def _node(self, path: str) -> _Node:
        node: _Node = self.root
        for name in () if path in ("", ".") else path.split("/"):
            assert isinstance(node, _Folder), path
            node = node.now[name]
        return node

    def _parent(self, path: str) -> tuple[_Folder, str]:
        above, _, name = path.rpartition("/")
        folder = self._node(above)
        assert isinstance(folder, _Folder)
        return folder, name

    def _file(self, path: str) -> _File:
        node = self._node(path)
        assert isinstance(node, _File)
        return node

    def _edit(self, *edits: tuple[str, _Node | None]) -> None:
        found = [(*self._parent(path), node) for path, node in edits]
        for folder, name, node in found:
            if node is None:
                folder.now.pop(name)
            else:
                folder.now[name] = node
        self._changes.append(_Change(found, {id(folder) for folder, _, _ in found}))

    def do(self, op: Op) -> None:
        match op.kind:
            case "create":
                self._edit((op.path, _File()))
            case "mkdir":
                self._edit((op.path, _Folder()))
            case "remove" | "rmdir":
                self._edit((op.path, None))
            case "link":
                self._edit((op.target, self._node(op.path)))
            case "rename":
                self._edit((op.path, None), (op.target, self._node(op.path)))
            case "write":
                file = self._file(op.path)
                file.now = file.now[: op.at].ljust(op.at, b"\0") + op.data + file.now[op.at + len(op.data) :]
                file.sizes.add(len(file.now))
            case "size":
                file = self._file(op.path)
                file.now = file.now[: op.at].ljust(op.at, b"\0")
                file.sizes.add(op.at)
            case "sync":
                self._sync(self._node(op.path))

    def _sync(self, node: _Node) -> None:
        if isinstance(node, _File):
            node.synced, node.sizes = node.now, set()
        for change in self._changes:
            change.open.discard(id(node))
        # Only what all came before it is settled for good: a later change of the same name may hang on an earlier one.
        while self._changes and not self._changes[0].open:
            for folder, name, child in self._changes.pop(0).edits:
                _set(folder.synced, name, child)

    def states(self) -> Iterator[Tree]:
        """Every tree that may be found."""
        unsure = [change for change in self._changes if change.open]
        assert 2 ** len(unsure) <= MOST, f"{len(unsure)} names are unsure"
        for kept in itertools.product((True, False), repeat=len(unsure)):
            lost = {id(change) for change, keep in zip(unsure, kept, strict=True) if not keep}
            yield from _filled(self._tree([change for change in self._changes if id(change) not in lost]))

    def _tree(self, changes: list[_Change]) -> dict[str, _Node]:
        names: dict[int, dict[str, _Node]] = {}
        for change in changes:
            for folder, name, node in change.edits:
                _set(names.setdefault(id(folder), dict(folder.synced)), name, node)
        found: dict[str, _Node] = {}

        def walk(folder: _Folder, path: str) -> None:
            for name, node in names.get(id(folder), folder.synced).items():
                found[path + name] = node
                if isinstance(node, _Folder):
                    walk(node, f"{path}{name}/")

        walk(self.root, "")
        return found


def _set(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _filled(nodes: dict[str, _Node]) -> Iterator[Tree]:
    fixed: Tree = {path: node.synced if isinstance(node, _File) else None for path, node in nodes.items()}
    unsure = {path: contents(node) for path, node in nodes.items() if isinstance(node, _File) and node.sizes}
    for picked in itertools.product(*unsure.values()):
        yield {**fixed, **dict(zip(unsure, picked, strict=True))}


def contents(file: _File) -> list[bytes]:
    """What may be found in a file that was changed since it was synced."""
    old, new = file.synced, file.now
    end = max(len(old), len(new))
    pages = [at for at in range(0, end, PAGE) if old[at : at + PAGE] != new[at : at + PAGE]]
    found = dict.fromkeys([new, old])
    for size in {len(old), len(new), min(file.sizes)}:
        for there in _subsets(pages):
            data = bytearray(old.ljust(end, b"\0"))
            for at in there:
                data[at : at + PAGE] = new[at : at + PAGE].ljust(min(PAGE, end - at), b"\0")
            found[bytes(data[:size])] = None
    if len(new) > len(old):
        found[new[: (len(old) + len(new)) // 2]] = None
        found[old + (_GARBAGE * len(new))[: len(new) - len(old)]] = None
    return list(found)


def _subsets(pages: list[int]) -> Iterator[Sequence[int]]:
    """All of them; of more than three pages none and all, the first and the last, and all but those."""
    if len(pages) > 3:
        yield from ([], pages, pages[:1], pages[-1:], pages[1:], pages[:-1])
        return
    for count in range(len(pages) + 1):
        yield from itertools.combinations(pages, count)


def moments(ops: Sequence[Op]) -> Iterator[list[int]]:
    """What has been done at each moment, by place in `ops`: all before a barrier, and after it every combination of how
    far each `who` is."""
    done: list[int] = []
    parts = itertools.groupby(range(len(ops)), lambda at: ops[at].kind == "barrier")
    yield done
    for section in (list(part) for is_barrier, part in parts if not is_barrier):
        own = [[at for at in section if ops[at].who == who] for who in sorted({ops[at].who for at in section})]
        for ends in itertools.product(*(range(len(each) + 1) for each in own)):
            if any(ends):
                yield done + [at for each, end in zip(own, ends, strict=True) for at in each[:end]]
        done = done + section


def _after(before: Tree, done: Sequence[Op]) -> Machine:
    machine = Machine(before)
    for op in done:
        machine.do(op)
    return machine


def _found(before: Tree, done: Sequence[Op], power: bool) -> Iterator[Tree]:
    if power:
        yield from _after(before, done).states()
        return
    yield next(_after(before, done).states())
    if done and done[-1].kind == "write":
        half = replace(done[-1], data=done[-1].data[: len(done[-1].data) // 2])
        yield next(_after(before, [*done[:-1], half]).states())


def laid_out(tree: Tree, place: Path) -> Path:
    """A folder that holds `tree`."""
    place.mkdir(parents=True)
    for path, content in sorted(tree.items()):
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)
    return place


@dataclass
class Count:
    """How much was tried."""

    moments: int = 0
    states: int = 0
    distinct: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.moments + other.moments, self.states + other.states, self.distinct + other.distinct)

    def __str__(self) -> str:
        return f"{self.moments:5} moments {self.states:6} states, {self.distinct:5} of them different"


@dataclass
class Sweep:
    """Looks at what is found after `before`, in folders of its own in `place`; states that are equal, once."""

    before: Tree
    look: Callable[[Path], object]
    allowed: Callable[[frozenset[str], object], str | None]
    place: Path
    power: bool = True
    seen: dict[frozenset[tuple[str, bytes | None]], object] = field(default_factory=dict)

    def __call__(self, ops: Sequence[Op], since: int = -1) -> Count:
        """`allowed` has nothing to say against any state after a crash at any moment of `ops` at which more is done
        than those before `since`; AssertionError with its words if it has."""
        count, known = Count(), len(self.seen)
        for marks, trees in self.crashes(ops, since):
            count.moments += 1
            for tree in trees:
                count.states += 1
                seen = self._seen(tree)
                problem = f"a reader fails: {seen!r}" if isinstance(seen, Exception) else self.allowed(marks, seen)
                assert problem is None, f"{problem}; it had passed {sorted(marks)}; found: {sorted(tree)}"
        count.distinct = len(self.seen) - known
        return count

    def crashes(self, ops: Sequence[Op], since: int = -1) -> Iterator[tuple[frozenset[str], Iterator[Tree]]]:
        """(marks passed, what may be found) for each moment."""
        for at in moments(ops):
            if max(at, default=-1) >= since:
                done = [ops[each] for each in at]
                yield frozenset(op.path for op in done if op.kind == "mark"), _found(self.before, done, self.power)

    def _seen(self, tree: Tree) -> object:
        key = frozenset(tree.items())
        if key not in self.seen:
            place = laid_out(tree, self.place / str(len(self.seen)))
            try:
                self.seen[key] = self.look(place)
            except Exception as error:
                self.seen[key] = error
            shutil.rmtree(place)
        return self.seen[key]


def _reaching(ops: Sequence[Op], index: int, earlier: int) -> list[Op]:
    """`ops` with the rename at `index` made before the operation at `earlier`, which then knows things by the new
    name."""
    rename = ops[index]

    def known(path: str) -> str:
        return rename.target + path[len(rename.path) :] if (path + "/").startswith(rename.path + "/") else path

    later = [replace(op, path=known(op.path)) for op in ops[earlier:index]]
    return [*ops[:earlier], rename, *later, *ops[index + 1 :]]


@dataclass(frozen=True)
class Mutant:
    """A careless program: `ops`, which are other than they should be from the one at `since` on."""

    name: str
    ops: list[Op]
    since: int


def mutants(ops: Sequence[Op]) -> Iterator[Mutant]:
    """`ops` without each sync in turn, and with each rename made before the sync that precedes it."""
    times: Counter[str] = Counter()
    for index, op in enumerate(ops):
        times[str(op)] += 1
        name = str(op) if times[str(op)] == 1 else f"{op} ({times[str(op)]})"
        if op.kind == "sync":
            yield Mutant(f"no {name}", [*ops[:index], *ops[index + 1 :]], index)
        if op.kind == "rename":
            earlier = next(
                (i for i in range(index - 1, -1, -1) if ops[i].kind == "sync" and ops[i].who == op.who), None
            )
            if earlier is not None:
                yield Mutant(f"{name} before {ops[earlier]}", _reaching(ops, index, earlier), earlier)
