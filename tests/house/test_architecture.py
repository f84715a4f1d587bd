"""The house: who may import whom, which seams there are, and how large things may grow."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = {"__future__", "collections", "dataclasses", "datetime", "enum", "math", "re", "typing", "supervisor", "trainer"}
SHARED = ("trainer.rundir.codes", "trainer.rundir.records.fault_kinds")
"""What the core shares with the ranks: numbers, and the table of faults."""
NEVER = {
    "supervisor": {"torch", "trainer.rank", "trainer.gpt"},
    "trainer": {"supervisor", "psutil", "structlog", "click"},
    "trainer/rundir": {"torch", "numpy"},
}
LAW = {
    "trainer.rundir": "",
    "trainer.adapters": "trainer.rundir",
    "trainer.rank": "trainer.adapters",
    "trainer.checkpoint": "trainer.rank",
    "trainer.callbacks": "trainer.checkpoint",
    "trainer.gpt": "trainer.checkpoint",
    "supervisor.core": "trainer.rundir",
    "supervisor.process": "trainer.rundir",
    "supervisor.reading": "trainer.rundir",
    "supervisor.live": "supervisor.core supervisor.reading",
    "supervisor.run": "supervisor.live supervisor.process trainer.checkpoint",
    "supervisor.group": "supervisor.run",
    "supervisor.attempt": "supervisor.group",
    "supervisor.nodes": "supervisor.attempt",
    "supervisor.loop": "supervisor.nodes",
    "supervisor.checkup": "supervisor.attempt",
    "supervisor.pages": "supervisor.run",
    "supervisor.chaos": "supervisor.pages",
    "supervisor.web": "supervisor.pages",
    "supervisor.notify": "supervisor.run",
    "supervisor.commands": "supervisor.loop supervisor.notify supervisor.checkup supervisor.chaos supervisor.web",
}
"""What a folder may import of ours: itself, those in its line, and what they may. Read from the bottom, it is the way
that a launch takes; no line looks down."""
NO_PACKAGES = {"trainer.startup"}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The trainer imports itself relatively, because it is loaded under a name of its own; nobody else does.
            parts = path.relative_to(ROOT).parts
            assert (node.level > 0) == (parts[0] == "trainer" and _is_own(node)), f"{path}:{node.lineno}"
            above = list(parts[: -node.level]) if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _is_own(node: ast.ImportFrom) -> bool:
    return node.level > 0 or (node.module or "").partition(".")[0] in ("trainer", "_supervise")


@functools.cache
def calls(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    called = (node.func for node in nodes if isinstance(node, ast.Call))
    return frozenset(ast.unparse(func) for func in called if isinstance(func, ast.Attribute))


def room(module: str) -> str:
    """The folder that the law speaks of: `supervisor.core` of supervisor.core.hangs.hang; "" of what lies on top."""
    top, inner = (*module.split("."), "")[:2]
    return f"{top}.{inner}" if (ROOT / top / inner).is_dir() and inner else ""


def lawful(folder: str) -> set[str]:
    """Itself, what stands beside it in the table, and what those may import in turn."""
    return {folder}.union(*(lawful(other) for other in LAW[folder].split()))


def test_every_folder_has_its_law() -> None:
    """The table names the folders that there are."""
    folders = {room(".".join(path.relative_to(ROOT).parts)) for path in [*modules("supervisor"), *modules("trainer")]}
    assert folders - {"", *NO_PACKAGES} == set(LAW)


@pytest.mark.parametrize("folder", LAW)
def test_the_law_of_imports(folder: str) -> None:
    """A folder imports what the table says and nothing else of ours."""
    for path in modules(folder.replace(".", "/")):
        assert {room(name) for name in imports(path)} - {""} <= lawful(folder), path


@pytest.mark.parametrize(
    "path",
    [*modules("supervisor/core"), *(ROOT / f"{name.replace('.', '/')}.py" for name in SHARED)],
    ids=lambda p: p.stem,
)
def test_core_is_pure(path: Path) -> None:
    """The core imports nothing that could read a clock, a file or a process."""
    names = imports(path)
    assert {name.partition(".")[0] for name in names} <= CORE
    assert all(name.startswith(SHARED) for name in names if name.startswith("trainer"))
    assert not any(call.endswith((".now", ".today")) for call in calls(path))


def test_what_is_imported_from_outside() -> None:
    """The supervisor needs no torch, the ranks nothing that only the supervisor has, and the leaf no package but
    msgspec."""
    for folder, never in NEVER.items():
        for path in modules(folder):
            assert not {name for name in imports(path) if f"{name}.".startswith(tuple(f"{n}." for n in never))}, path


@pytest.mark.parametrize(
    "module", ["trainer.rundir.layout", "trainer.checkpoint.disk.store", "supervisor.commands.session"]
)
def test_torch_is_not_loaded(module: str) -> None:
    """Neither the shared parts nor the whole supervisor load torch."""
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_renames_and_syncs_have_one_home() -> None:
    """Whoever wants a file to survive goes through trainer.rundir.files.durable, where the power is cut in tests;
    whoever wants it alone, through flock beside it."""
    appenders = {"events.py", "faults.py", "metrics.py"}
    for path in [*modules("supervisor"), *modules("trainer")]:
        called = calls(path)
        if path.name != "durable.py":
            assert not {"os.rename", "os.replace"} & called, path
        if path.name not in {"durable.py", *appenders}:
            assert "os.fsync" not in called, path
        if path.name != "flock.py":
            assert not {"fcntl.flock", "fcntl.lockf"} & called, path


def test_one_place_ends_processes() -> None:
    """Outside the ranks SIGKILL goes out in process/kill.py, inside them from a parent to its own child. Whoever ends
    itself (a fault, a rank that must die of the signal it got) needs nobody."""
    senders = {
        "kill.py": "signal.pidfd_send_signal",
        "proctree.py": "signal.pidfd_send_signal",
        "children.py": "os.kill",
    }
    for path in [*modules("supervisor"), *modules("trainer")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("kill", "terminate", "killpg", "send_signal", "pidfd_send_signal", "send"):
                continue
            name, first = ast.unparse(node.func), ast.unparse(node.args[0]) if node.args else ""
            where = f"{path}:{node.lineno}"
            if name == senders.get(path.name) or (name == "os.kill" and first == "os.getpid()"):
                continue
            assert node.func.attr == "send" and "SIGKILL" not in first, where


def test_nothing_unpickles() -> None:
    """No module reads a pickle: torch.load is called with weights_only=True, and nothing else of the kind is used."""
    for path in [*modules("supervisor"), *modules("trainer")]:
        assert not {"dill", "cloudpickle", "shelve"} & {n.partition(".")[0] for n in imports(path)}, path
        assert not {"pickle.load", "pickle.loads", "pickle.Unpickler"} & calls(path), path
        if "torch.load" not in calls(path):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") == "True", path


@pytest.mark.parametrize(
    "path", [*modules("supervisor"), *modules("trainer")], ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_sizes(path: Path) -> None:
    """A module is one noun of at most 350 lines, a function is read at once, and every module says what it is for."""
    tree = ast.parse(path.read_text())

    assert len(path.read_text().splitlines()) <= 350
    assert ast.get_docstring(tree), path
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{path}: {node.name}"


def test_folders_are_rooms() -> None:
    """A folder has at most 14 modules; supervisor/commands has one for each command."""
    count = Counter(path.parent for path in [*modules("supervisor"), *modules("trainer")] if path.stem != "__init__")
    assert {str(folder.relative_to(ROOT)) for folder, number in count.items() if number > 14} == {"supervisor/commands"}


WALL_CLOCK = {
    "events.py": "what people read in an event",
    "lock.py": "since when the run is held",
    "epoch.py": "since when a leader leads",
    "spec.py": "when the run was made",
    "commit.py": "when a checkpoint was made",
    "checkpoints.py": "the age of a checkpoint",
    "registry.py": "when an entry that leads nowhere is dropped",
    "status.py": "the age of a checkpoint",
    "console.py": "which lines of a log are new",
    "line.py": "the age of the last save",
    "tail.py": "--since",
    "ls.py": "--since, and the year",
    "run_page.py": "when a page was made",
    "app.py": "from when a page asks for news",
    "follow.py": "when a line was seen",
    "log_times.py": "when a log grew",
    "checks.py": "whether the clock is set at all",
    "faults.py": "when a fault was asked for",
    "page.py": "when a chaos report was made",
    "reporter.py": "when an exception was raised",
    "going_on.py": "whether a tracker's file is older than this attempt",
    "roads.py": "whether the clocks of two nodes agree",
    "torn.py": "whether a file is of a save or older than it",
    "kept.py": "whether a file has changed since it was loaded",
    "kernel.py": "when a rank's own wait, for a time of day, will end",
}
"""Who may ask what time of day it is, and for what: nothing that decides."""


def test_nothing_decides_by_the_time_of_day() -> None:
    """The modules that read the wall clock are these."""
    sources = [*(ROOT / "supervisor").rglob("*.py"), *(ROOT / "trainer").rglob("*.py")]
    asking = re.compile(r"time\.time\b|datetime\.now\b|utcnow|time\.ctime|CLOCK_REALTIME")
    assert {path.name for path in sources if asking.search(path.read_text())} <= WALL_CLOCK.keys()
