"""The program's own saves that it could resume from: files, and folders of frameworks. They are whole and still
there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from supervisor.core.own_saves import holdings
from supervisor.core.own_saves.folders import is_numbered, will_be_numbered
from supervisor.run.own_saves import Journals, says_more
from trainer.adapters.handed.trainings import TRIAL
from trainer.adapters.protocol import Checkpoint
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import Saved, lines_of, saved_of, whole_place
from trainer.rundir.records.rollback import Rollback

_Line = tuple[int, dict[str, Any]]
"""(rank, a line of its journal)."""
_TAIL = 256 << 10
"""Bytes that are read from the end of a journal: a thousand saves."""
_TAIL_SEVERAL = 4 << 20
"""Those of a program with several trainings: the first one may have ended long ago."""
_MOST = 50
"""The most checkpoints that are looked for on the disk, and as many that are not under their names any more."""
_MOST_EACH, _MOST_OF_ALL = 5, 200
"""The same for each of several trainings, and for all of them: a variable of the environment has to hold them."""
_MOST_READ = 50
"""The most attempts whose journals are read."""
_MOST_NAMES = 10_000
_HF = re.compile(r"checkpoint-(\d+)")
_DEEPSPEED = re.compile(r".*_(model|optim)_states\.pt")
_RANK = re.compile(r"[_.-]?rank[_-]?\d+", re.IGNORECASE)
"""In the name of a rank's part of a checkpoint: not its number."""
_BESIDE = re.compile(r"best|ema|weights|(^|[_-])opt|optim|sched|scaler|rng|final", re.IGNORECASE)
"""In the name of a file that lies beside the checkpoint, but is not the one to resume from."""
_BY_FRAMEWORK = ("huggingface", "accelerate", "deepspeed")
"""Kinds of folders that are checkpoints by the framework that made them, whatever their files seem to hold."""


@dataclass(slots=True)
class _Unit:
    """One file, or one folder with all saves into it, from one attempt."""

    path: str
    kind: str
    attempt: int
    saved: dict[str, Saved] = field(default_factory=dict)
    torn: bool = False
    resumable: bool | None = None
    counts: bool = False
    """Whether it holds a counter of steps or epochs."""
    training: tuple[float, int] = (0.0, 0)
    """When it was saved last, and by which of the program's trainings."""
    sure: bool = False
    """Whether it is surely one to resume from."""
    beside_model: bool = False
    """Whether it is the file of an optimizer, whose model is in another one."""

    def newest(self) -> tuple[int, float]:
        return max(((each.step, each.mono) for each in self.saved.values()), default=(-1, 0.0))

    def parts(self) -> set[str]:
        """The names of its files, without the number of their folder."""
        number = re.sub(r"\D", "", os.path.basename(self.path)).lstrip("0") or "0"
        return {re.sub(rf"0*{number}(?!\d)", "#", os.path.basename(path), count=1) for path in self.saved}

    def hear(self, saved: Saved, line: Mapping[str, Any]) -> None:
        """Takes one more save into it."""
        before = self.saved.get(saved.path)
        # The journals come rank by rank: the last line about a path is not the latest where all ranks save to it.
        self.saved[saved.path] = saved if before is None or says_more(saved, before) else before
        training = line.get("training")
        self.training = max(self.training, (saved.mono, training if type(training) is int else 0))
        name, keys = os.path.basename(saved.path), holdings.keys_of(line)
        self.sure = self.sure or self.kind == "accelerate" or holdings.is_sure(name, line)
        self.beside_model = self.beside_model or holdings.is_beside_model(name, keys)
        if keys is not None:
            self.resumable = self.resumable or holdings.has_optimizer(keys)
            self.counts = self.counts or holdings.has_counter(keys)

    def order(self) -> tuple[bool, int, int, bool, bool, float]:
        step, at = self.newest()
        use = self.resumable is not False
        beside = _BESIDE.search(os.path.basename(self.path)) is not None
        return use or self.kind in _BY_FRAMEWORK, self.attempt, step, use, not beside, at


def candidates(
    journals: Journals, world: int, since: int = 0, rollback: Rollback | None = None
) -> tuple[Checkpoint, ...]:
    """The checkpoints of the newest attempt that has saved come first, the highest step first. Those that are known to
    be of no use for a resume come last. Each training of the program has its newest ones. Attempts before `since`, and
    saves that a rollback excludes, are left out. A save from before an attempt's first step is no checkpoint."""
    units: list[_Unit] = []
    read = 0
    for number in journals.newest_first():
        enough = len(units) >= _MOST and any(unit.sure for unit in units)
        # An earlier training may have ended in any attempt.
        if number < since or read >= _MOST_READ or (enough and not _several(units)):
            break
        units += (more := _units(journals.run, number))
        read += bool(more)
    _settle(units)
    units.sort(key=_Unit.order, reverse=True)
    found = []
    most = _MOST_EACH if _several(units) else _MOST
    there, gone = Counter[int](), Counter[int]()
    for unit in units:
        if unit.training[1] == TRIAL:
            continue
        # Most of them are gone by rotation. To look whether one has another name takes time.
        counts = there if os.path.lexists(unit.path) else gone
        if counts[unit.training[1]] >= most:
            continue
        counts[unit.training[1]] += 1
        step = unit.newest()[0]
        attempt = max(saved.attempt for saved in unit.saved.values())
        if rollback is not None and rollback.covers(attempt, step):
            continue
        if not unit.torn and not _lacks(unit, units) and (checkpoint := _looked(unit, world)) is not None:
            found.append(checkpoint)
    return tuple(found[:_MOST_OF_ALL])


def _several(units: Iterable[_Unit]) -> bool:
    """Whether the program has more than one training."""
    return any(unit.training[1] > 1 for unit in units)


def _units(run: RunDir, number: int) -> list[_Unit]:
    """The saves of an attempt."""
    units = _units_of(list(lines_of(run.attempt(number), _TAIL)), number)
    return _units_of(list(lines_of(run.attempt(number), _TAIL_SEVERAL)), number) if _several(units) else units


def _units_of(lines: list[_Line], number: int) -> list[_Unit]:
    units: dict[str, _Unit] = {}
    for saved, line in _saves(lines, number):
        path, kind = _unit_of(saved.path, line)
        units.setdefault(path, _Unit(path, kind, number)).hear(saved, line)
    for path in _under_way(lines):
        unit_path, _ = _unit_of(path, {})
        if unit_path in units:
            units[unit_path].torn = True
    return _joined(units)


def _joined(units: dict[str, _Unit]) -> list[_Unit]:
    """The units; but a numbered folder in which a file beside the model's has the optimizer's state is one. A program
    that saves so loads the folder."""
    folders: dict[str, list[_Unit]] = {}
    for unit in units.values():
        part = any(saved.within for saved in unit.saved.values())
        folder = os.path.dirname(unit.path)
        if unit.kind == "file" and not part and will_be_numbered(os.path.basename(folder)):
            folders.setdefault(folder, []).append(unit)
    for folder, files in folders.items():
        models = [unit for unit in files if not unit.beside_model]
        once = len({unit.newest()[0] for unit in files}) == 1
        if once and 0 < len(models) < len(files) and not any(unit.resumable for unit in models):
            saved = {path: each for unit in files for path, each in units.pop(unit.path).saved.items()}
            torn = any(unit.torn for unit in files)
            units[folder] = _Unit(folder, "folder", files[0].attempt, saved, torn, resumable=True, sure=True)
    return [*units.values()]


def _settle(units: list[_Unit]) -> None:
    """Decides about the saves of which it is not known whether they are of use, by the others of the run: a list of
    losses, a tensor and a model alone are no checkpoints where there is one."""
    if any(unit.sure for unit in units):
        for unit in units:
            if unit.resumable is None and unit.kind not in _BY_FRAMEWORK:
                unit.resumable = False
            elif unit.kind == "accelerate":
                unit.resumable = True
    elif not any(unit.resumable for unit in units):
        # The program saves no optimizer's state at all. Then a save with a counter is the one to resume from.
        for unit in units:
            unit.resumable = unit.resumable if unit.resumable is None else unit.counts


def _lacks(unit: _Unit, units: list[_Unit]) -> bool:
    """Whether a folder has fewer files than the one before it: a kill came between two."""
    if unit.kind != "folder":
        return False
    parent = os.path.dirname(unit.path)
    older = itertools.dropwhile(lambda other: other is not unit, units)
    alike = (other for other in older if other.kind == "folder" and os.path.dirname(other.path) == parent)
    return any(other.parts() - unit.parts() for other in itertools.islice(alike, 1, 2))


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
    if unit.kind == "folder":
        return _whole_files(unit, known)
    names = _names(unit.path)
    known = replace(known, names=names)
    if unit.kind == "huggingface":
        # Each of its files alone has too little, as far as anybody has looked inside.
        known = replace(known, resumable=holdings.is_resumable_trainer(names))
    return known if _WHOLE[unit.kind](unit.path, names, world) else None


def _whole_files(unit: _Unit, known: Checkpoint) -> Checkpoint | None:
    """The folder in which all of its files are now: it may have been renamed."""
    places = [whole_place(saved) for saved in unit.saved.values()]
    folders = {os.path.dirname(path) for path in places if path is not None}
    if None in places or len(folders) != 1 or not is_numbered(os.path.basename(folder := folders.pop())):
        return None
    return replace(known, path=folder, names=_names(folder))


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
