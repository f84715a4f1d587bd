"""The program's own saves that it could resume from: files, and folders of frameworks. They are whole and still
there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from supervisor.run.own_saves import says_more
from trainer.adapters.protocol import Checkpoint
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import Saved, lines_of, saved_of, whole_place
from trainer.rundir.records.rollback import Rollback

_Line = tuple[int, dict[str, Any]]
"""(rank, a line of its journal)."""
_TAIL = 256 << 10
"""Bytes that are read from the end of a journal: a thousand saves."""
_MOST = 50
"""The most checkpoints that are looked for on the disk."""
_MOST_NAMES = 10_000
_HF = re.compile(r"checkpoint-(\d+)")
_DEEPSPEED = re.compile(r".*_(model|optim)_states\.pt")
_RANK = re.compile(r"[_.-]?rank[_-]?\d+", re.IGNORECASE)
"""In the name of a rank's part of a checkpoint: not its number."""
_BESIDE = re.compile(r"best|ema|weights|(^|[_-])opt|optim|sched|scaler|rng|final", re.IGNORECASE)
"""In the name of a file that lies beside the checkpoint, but is not the one to resume from."""
_OPTIMIZER = re.compile(r"(^|[_.])opt(im\w*|s|_\w+)?$|optimizer", re.IGNORECASE)
"""The name of an optimizer's state in a checkpoint."""
_COUNTER = re.compile(
    r"(finished_|start_|global_|current_)?(epochs?|iter(ation)?s?|steps?)(_run|_num|_count)?", re.IGNORECASE
)
"""The name of a counter of steps or epochs in a checkpoint."""


@dataclass(slots=True)
class _Unit:
    """One file, or one folder with all saves into it, from one attempt."""

    path: str
    kind: str
    saved: dict[str, Saved] = field(default_factory=dict)
    torn: bool = False
    resumable: bool | None = None
    counts: bool = False
    """Whether it holds a counter of steps or epochs."""
    training: tuple[float, int] = (0.0, 0)
    """When it was saved last, and by which of the program's trainings."""

    def newest(self) -> tuple[int, float]:
        return max(((each.step, each.mono) for each in self.saved.values()), default=(-1, 0.0))

    def order(self) -> tuple[int, bool, bool, float]:
        step, at = self.newest()
        return step, self.resumable is not False, not _BESIDE.search(os.path.basename(self.path)), at


def candidates(run: RunDir, world: int, since: int = 0, rollback: Rollback | None = None) -> tuple[Checkpoint, ...]:
    """The checkpoints of the newest attempt that has saved come first, the highest step first. Attempts before `since`,
    and saves that a rollback excludes, are left out. A save from before an attempt's first step is no checkpoint."""
    units = (unit for number in reversed(run.attempts()) if number >= since for unit in _units(run, number))
    found = []
    for unit in itertools.islice(units, _MOST):
        step = unit.newest()[0]
        attempt = max(saved.attempt for saved in unit.saved.values())
        if rollback is not None and rollback.covers(attempt, step):
            continue
        if not unit.torn and (checkpoint := _looked(unit, world)) is not None:
            found.append(checkpoint)
    return tuple(found)


def _units(run: RunDir, number: int) -> list[_Unit]:
    """The saves of an attempt, the newest first."""
    units: dict[str, _Unit] = {}
    lines = list(lines_of(run.attempt(number), _TAIL))
    for saved, line in _saves(lines, number):
        path, kind = _unit_of(saved.path, line)
        unit = units.setdefault(path, _Unit(path, kind))
        before = unit.saved.get(saved.path)
        # The journals come rank by rank: the last line about a path is not the latest where all ranks save to it.
        unit.saved[saved.path] = saved if before is None or says_more(saved, before) else before
        training = line.get("training")
        unit.training = max(unit.training, (saved.mono, training if type(training) is int else 0))
        holds = line.get("holds")
        if isinstance(holds, list):
            unit.resumable = unit.resumable or any(_OPTIMIZER.search(str(key)) for key in holds)
            unit.counts = unit.counts or any(_COUNTER.fullmatch(str(key)) for key in holds)
    for path in _under_way(lines):
        unit_path, _ = _unit_of(path, {})
        if unit_path in units:
            units[unit_path].torn = True
    if not any(unit.resumable for unit in units.values()):
        # The program saves no optimizer's state at all. Then a save with a counter is the one to resume from.
        for unit in units.values():
            unit.resumable = unit.resumable if unit.resumable is None else unit.counts
    return sorted(units.values(), key=_Unit.order, reverse=True)


def _saves(lines: Iterable[_Line], number: int) -> Iterator[tuple[Saved, Mapping[str, Any]]]:
    begun: dict[tuple[int, object], dict[str, Any]] = {}
    for rank, line in lines:
        if line["kind"] == "save_begun":
            begun[rank, line.get("n")] = line
        saved = saved_of(line, number, rank)
        if saved is not None and saved.here > 0:
            yield saved, {**begun.get((rank, line.get("n")), {}), **line}


def _under_way(lines: Iterable[_Line]) -> set[str]:
    """Paths whose save has begun and has not ended. Saves that are written beside the old file are left out."""
    left: dict[tuple[int, object], str] = {}
    for rank, line in lines:
        key = rank, line.get("n")
        if line["kind"] == "save_begun" and isinstance(line.get("path"), str) and line.get("beside") is not True:
            left[key] = line["path"]
        elif line["kind"] in ("save_done", "save_failed"):
            left.pop(key, None)
    return {*left.values()}


def _unit_of(path: str, line: Mapping[str, Any]) -> tuple[str, str]:
    """The file or folder that a save of `path` belongs to, and its kind."""
    within = line.get("within")
    folder = within if isinstance(within, str) else os.path.dirname(path)
    names = _names(folder)
    # First: diffusers lets accelerate save into folders that are named as Hugging Face's.
    if any(name.startswith("random_states_") for name in names):
        return folder, "accelerate"
    if _HF.fullmatch(os.path.basename(folder)) and (within or "trainer_state.json" in names or "optimizer.pt" in names):
        return folder, "huggingface"
    if _DEEPSPEED.fullmatch(os.path.basename(path)) and not within:
        return folder, "deepspeed"
    if os.path.isdir(path):
        inside = _names(path)
        if any(name.startswith("random_states_") for name in inside):
            return path, "accelerate"
        if _HF.fullmatch(os.path.basename(path)):
            return path, "huggingface"
        return path, "dcp"
    return path, "lightning" if line.get("how") == "lightning" or path.endswith(".ckpt") else "file"


def _names(folder: str) -> tuple[str, ...]:
    with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
        return tuple(sorted(entry.name for _, entry in zip(range(_MOST_NAMES), entries, strict=False)))
    return ()


def _looked(unit: _Unit, world: int) -> Checkpoint | None:
    """The unit as it is on the disk. None if it is not whole."""
    step = unit.newest()[0]
    name = os.path.basename(unit.path)
    digits = re.findall(r"\d+", _RANK.sub("", name.partition(".")[0]))
    number = int(digits[-1]) if digits and len(digits[-1]) < 16 else -1
    known = Checkpoint(unit.path, step, unit.kind, number, unit.resumable, training=unit.training[1])
    if unit.kind in ("file", "lightning"):
        saved = next(iter(unit.saved.values()))
        path = whole_place(saved)
        return replace(known, path=path) if path is not None else None
    names = _names(unit.path)
    known = replace(known, names=names)
    return known if _WHOLE[unit.kind](unit.path, names, world) else None


def _whole_huggingface(path: str, names: tuple[str, ...], world: int) -> bool:
    """The state is there, which is written last, and so is the generator of every rank."""
    if "checkpoint-is-incomplete.txt" in names or "trainer_state.json" not in names:
        return False
    if world > 1 and sum(name.startswith("rng_state_") for name in names) < world:
        return False
    try:
        return "global_step" in read(Path(path) / "trainer_state.json", dict)
    except (OSError, ValueError, TypeError):
        return False


def _whole_accelerate(path: str, names: tuple[str, ...], world: int) -> bool:
    return sum(name.startswith("random_states_") for name in names) >= world


def _whole_dcp(path: str, names: tuple[str, ...], world: int) -> bool:
    return ".metadata" in names


def _whole_deepspeed(path: str, names: tuple[str, ...], world: int) -> bool:
    """DeepSpeed writes that file last. It loads the checkpoint that the file names."""
    with contextlib.suppress(OSError, ValueError), open(os.path.join(os.path.dirname(path), "latest")) as file:
        return file.read(1000).strip() == os.path.basename(path)
    return False


_WHOLE = {
    "huggingface": _whole_huggingface,
    "accelerate": _whole_accelerate,
    "dcp": _whole_dcp,
    "deepspeed": _whole_deepspeed,
}
