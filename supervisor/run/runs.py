"""Finds a run by an id, a unique prefix of one, a path, or nothing for the newest."""

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
    """Every readable run under `root`, newest first."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        try:
            known = load(path)
        except Refusal:
            continue
        if known:
            found.append(known)
    return sorted(found, key=lambda known: str(known.spec.get("created", "")), reverse=True)


def find(name: str | None, root: Path = RUNS) -> Known:
    """The run that `name` means. NoSuchRun names the existing runs."""
    if name is not None and (known := load(Path(name))):
        return known
    runs = all_runs(root)
    if name is None:
        if here := load(Path()):
            return here
        if not runs:
            raise NoSuchRun(f"no run in {root}/; start one with: supervise launch")
        return runs[0]
    matches = [r for r in runs if name in (r.id, r.run.path.name)]
    matches = matches or [r for r in runs if r.id.startswith(name) or r.run.path.name.startswith(name)]
    if len(matches) > 1:
        raise NoSuchRun(f"{name!r} could be any of: {' '.join(r.label for r in matches)}; give more of it")
    if not matches:
        names = " ".join(r.label for r in runs[:8]) or "none"
        raise NoSuchRun(f"no run {name!r} in {root}/; there are: {names}")
    return matches[0]
