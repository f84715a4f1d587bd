"""Checkpoints that must not stay in their place are quarantined, pruned, moved aside, or swept away.

    quarantine:  step-N        -> rename -> quarantine/step-N-1 (and step-N-1.txt: why)
    prune:       step-N        -> rename -> .step-N.tmp-pruned-<id> -> fsync folder -> files removed
    start over:  all there is  -> rename one by one -> superseded-1.tmp/ -> rename = done -> superseded-1/
    sweep:       .step-*.tmp-* and .latest.tmp-* of dead processes removed; a start over that was cut short is finished

Only rank 0 calls these functions. A flush calls prune, and what concerns its own temporary folder; the supervisor
sweeps after a flush that died, and once no rank is alive. A death at any point leaves nothing that a reader could take
for a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

from ...rundir.files.durable import Disk, ensure_dir, replace_file, unfinished
from ...rundir.files.flock import locked
from ...rundir.layout import committed_steps, step_name
from .store import LATEST, QUARANTINE, listing, read_latest

FLUSHED = "flush-"
"""The label of the folders that flushes write into."""
_TEMPORARY = re.compile(r"\A\.step-[0-9]{8,}\.tmp-[A-Za-z0-9-]+\Z")
_SUPERSEDED = re.compile(r"\Asuperseded-([0-9]+)(\.tmp)?\Z")


def temporary_name(step: int, label: str = "") -> str:
    """A folder name that nobody else uses and that no reader takes for a checkpoint."""
    return f".{step_name(step)}.tmp-{label}{uuid.uuid4().hex[:12]}"


def remove_tree(path: Path, disk: Disk) -> None:
    """`path` and its content are removed. Links are removed, never followed. OSError if something cannot be removed."""
    with os.scandir(path) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(Path(entry.path), disk)
            else:
                disk.remove(Path(entry.path))
    disk.rmdir(path)


def discard(path: Path, disk: Disk) -> None:
    """The temporary folder `path` is removed as far as possible. A later attempt sweeps the rest."""
    with contextlib.suppress(OSError):
        remove_tree(path, disk)


def quarantine(folder: Path, name: str, reason: str, disk: Disk) -> Path:
    """Moves the checkpoint `name` to the path that is returned. A text beside it says why. OSError if it cannot be
    moved."""
    place = folder / QUARANTINE
    if place.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and may point anywhere", str(place))
    ensure_dir(place, disk)
    number = 1
    while os.path.lexists(target := place / f"{name}-{number}"):
        number += 1
    disk.rename(folder / name, target)
    disk.sync_dir(place)
    disk.sync_dir(folder)
    with contextlib.suppress(OSError):
        replace_file(
            target.with_name(target.name + ".txt"), f"{name}: {reason}\n".encode(errors="backslashreplace"), disk
        )
    return target


def prune(folder: Path, keep: int, disk: Disk) -> list[int]:
    """The steps that were removed: all but the newest `keep` (at least two) that are whole by size. Never the one that
    `latest` names. Never a damaged one: it is for quarantine, and does not count as kept."""
    good = [found.step for found in listing(folder) if found.problem is None]
    latest = read_latest(folder)
    removed = [step for step in good[: -max(2, keep)] if step != latest]
    for step in removed:
        # Under its own name a half-removed checkpoint would look damaged. So it durably loses its name first.
        away = folder / temporary_name(step, "pruned-")
        with contextlib.suppress(FileNotFoundError):  # a flush prunes too
            disk.rename(folder / step_name(step), away)
            disk.sync_dir(folder)
            remove_tree(away, disk)
    return removed


@contextlib.contextmanager
def in_use(path: Path) -> Iterator[None]:
    """While the block runs, the temporary folder `path` is not swept. FileNotFoundError if it was swept before."""
    with locked(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)):
        path.stat()
        yield


def _sweep(path: Path, disk: Disk) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    with locked(fd, wait=False) as ours:
        if ours:  # else a flush is at work in it
            discard(path, disk)


def sweep_flushes(folder: Path, disk: Disk) -> None:
    """No temporary folder of a dead flush is left. Ranks may be saving meanwhile: their folders are not locked."""
    for path in folder.glob(f".step-*.tmp-{FLUSHED}*"):
        _sweep(path, disk)


def sweep(folder: Path, disk: Disk) -> None:
    """No temporary folder or file of a dead process is left. A start over that was cut short is finished. No rank is
    saving."""
    if not folder.is_dir():
        return
    quarantine = folder / QUARANTINE
    for path in [*unfinished(folder), *(unfinished(quarantine) if quarantine.is_dir() else [])]:
        with contextlib.suppress(OSError):
            disk.remove(path)
    for name in sorted(p.name for p in folder.iterdir()):
        if _TEMPORARY.match(name):
            _sweep(folder / name, disk)
        elif (match := _SUPERSEDED.match(name)) and match[2]:
            _move_aside(folder, folder / name, disk)


def start_over(folder: Path, disk: Disk) -> Path | None:
    """No checkpoint is left in `folder`. All were moved to the folder that is returned (None if there were none)."""
    if not ever_held(folder):
        return None
    taken = [int(m[1]) for p in folder.iterdir() if (m := _SUPERSEDED.match(p.name))]
    aside = folder / f"superseded-{max(taken, default=0) + 1}.tmp"
    disk.mkdir(aside)
    disk.sync_dir(folder)
    return _move_aside(folder, aside, disk)


def _move_aside(folder: Path, aside: Path, disk: Disk) -> Path:
    names = [step_name(step) for step in committed_steps(folder)]
    for name in [*names, QUARANTINE, LATEST]:
        if os.path.lexists(folder / name):
            disk.rename(folder / name, aside / name)
    disk.sync_dir(aside)
    # A rename concerns two folders. Nothing promises that a sync of the new one also syncs the old one.
    disk.sync_dir(folder)
    # The name without .tmp means: no part of the old history is left outside this folder.
    done = aside.with_suffix("")
    disk.rename(aside, done)
    disk.sync_dir(folder)
    return done


def held(folder: Path) -> list[str]:
    """The names of the committed checkpoints in `folder`, oldest first."""
    return [step_name(step) for step in committed_steps(folder)]


def _quarantined(folder: Path) -> list[str]:
    place = folder / QUARANTINE
    if not place.is_dir():
        return []
    return sorted(p.name for p in place.iterdir() if not p.name.endswith(".txt") and not p.name.startswith("."))


def ever_held(folder: Path) -> list[str]:
    """Every trace of a checkpoint in `folder`: committed, quarantined, and a `latest` whose target is gone."""
    traces = held(folder) + [f"{QUARANTINE}/{name}" for name in _quarantined(folder)]
    return traces or [LATEST for _ in range(os.path.lexists(folder / LATEST))]
