"""Finds a run by a path, the name of its folder, an id, a unique prefix of these, or nothing for the newest."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.errors import NoSuchRun, Refusal
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir

RUNS = Path("runs")
SCHEMA = 1
INODE = "inode"


@dataclass(frozen=True, slots=True)
class Known:
    """A run directory and its run.json."""

    run: RunDir
    spec: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.spec["run"])

    @property
    def label(self) -> str:
        """The run, as people are told of it."""
        return label(self.run, self.id)

    @property
    def name(self) -> str:
        """The run, as a command typed here names it: also if it is a copy, or its folder has another name."""
        return name_here(self.run)


def label(run: RunDir, run_id: str) -> str:
    """The name of the folder, as `ls` has it, if it is in RUNS of this folder; else the id."""
    path = run.path.resolve()
    return path.name if path.parent == RUNS.resolve() else run_id


def name_here(run: RunDir) -> str:
    """The name of the folder if it is in RUNS of this folder, else its path from here, quoted for a shell."""
    path = run.path.resolve()
    return path.name if path.parent == RUNS.resolve() else shlex.quote(os.path.relpath(path))


def load(path: Path) -> Known | None:
    """The run at `path`, or None without a run.json. Refusal if it cannot be read or is of a newer version."""
    run = RunDir(path)
    try:
        spec = read(run.run_json, dict[str, Any], unique=True)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except (OSError, ValueError) as error:
        raise Refusal(f"{run.run_json} cannot be read: {error}; restore it, or use another --run-dir") from None
    named = isinstance(spec.get("run"), str) and spec["run"].isprintable()
    if not named or not isinstance(spec.get("schema"), int):
        raise Refusal(f"{run.run_json} is not a run of supervise; use another --run-dir")
    if spec["schema"] > SCHEMA:
        raise Refusal(
            f"{run.run_json} has schema {spec['schema']}, this supervise reads up to {SCHEMA}; "
            "use the newer supervise that wrote it"
        )
    if spec.get(INODE) != inode(run):
        # A copy is another run. With the original's mark, it would kill the original's ranks and take its shared
        # memory.
        spec["mark"] = f"{spec.get('mark')}x{inode(run):x}"
    return Known(run, spec)


def inode(run: RunDir) -> int:
    """A number that differs between a run's folder and every copy of it."""
    return run.path.stat().st_ino


def all_runs(root: Path = RUNS) -> list[Known]:
    """Every readable run under `root`, newest first. A run that a link there leads to as well comes once."""
    return survey(root)[0]


def survey(root: Path = RUNS) -> tuple[list[Known], dict[str, Refusal]]:
    """all_runs(), and why the others cannot be read, by the names of their folders."""
    found, refused = dict[Path, Known](), dict[str, Refusal]()
    # The name of a folder is better than that of a link to it: so the links are last.
    for path in sorted(root.iterdir() if root.is_dir() else (), key=lambda path: (path.is_symlink(), path.name)):
        try:
            known = load(path)
        except Refusal as refusal:
            refused[path.name] = refusal
            continue
        if known:
            found.setdefault(path.resolve(), known)
    return sorted(found.values(), key=lambda known: str(known.spec.get("created", "")), reverse=True), refused


def find(name: str | None, root: Path = RUNS) -> Known:
    """The run that `name` means: by a path, else by the name of its folder, else by its id, else by a unique prefix of
    one of these. NoSuchRun names the existing runs. Refusal if the run that is meant cannot be read."""
    if name is None:
        return _newest(root)
    if not name:
        # As a path it would be the current folder, and every name begins with it.
        raise NoSuchRun("RUN is an empty word; give an id, a unique prefix of one, or a path")
    if known := load(Path(name)) or load(root / name):
        return known
    runs, refused = survey(root)
    matches, unread = [run for run in runs if run.id == name], list[str]()
    if not matches:
        matches = [run for run in runs if run.id.startswith(name) or run.run.path.name.startswith(name)]
        unread = [folder for folder in refused if folder.startswith(name)]
    if len(matches) + len(unread) > 1:
        names = " ".join([*(run.label for run in matches), *unread])
        raise NoSuchRun(f"{name!r} could be any of: {names}; give more of it")
    if unread:
        raise refused[unread[0]]
    if not matches:
        names = " ".join(run.label for run in runs[:8]) or "none"
        raise NoSuchRun(f"no run {name!r} in {root}/; there are: {names}")
    return matches[0]


def _newest(root: Path) -> Known:
    if here := load(Path()):
        return here
    runs, refused = survey(root)
    if not runs:
        raise next(iter(refused.values()), NoSuchRun(f"no run in {root}/; start one with: supervise launch"))
    return runs[0]
