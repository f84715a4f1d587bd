"""How the single files of a run come to be: events.jsonl, run.json, metrics that start over, faults, and what is only
for the living."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from supervisor.commands.folder import Folder
from supervisor.reading.events_file import read_events
from supervisor.run import spec as specs
from supervisor.run.events import EventLog
from supervisor.run.folder.lock import RunLock, holder
from supervisor.run.folder.stops import Stops
from supervisor.run.runs import load
from supervisor.run.spec import Spec
from tests.support.jobs import state_of
from tests.support.kernel import Recorder
from tests.support.protocols import Marks, Protocol
from tests.support.protocols_of_events import EVENTS, LONG, Allowed, made_in, run_of, synced
from trainer.checkpoint import load_checkpoint, save_checkpoint
from trainer.checkpoint.disk import store
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import Damaged
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.gpt.metrics import Metrics
from trainer.rank.preload.modules import remember
from trainer.rundir.files.durable import DISK, replace_file
from trainer.rundir.records import faults
from trainer.rundir.records.gate import Gate
from trainer.rundir.records.learned import remembered
from trainer.rundir.records.notes import NoteReader, NoteWriter

SPEC = Spec("gpt", "abc", ("trainer",), True, 1, "/")


def old_or_new(old: Any, new: Any) -> Allowed:
    """One of the two, and the new one once it was said to be durable."""

    def allowed(marks: Marks, seen: Any) -> str | None:
        may = [new] if "durable" in marks else [old, new]
        return None if seen in may else f"found {seen!r}, not {may!r}"

    return allowed


# ── run.json, and a launch from nothing ───────────────────────────────────────────────────────────────────────────────


def _nproc(root: Path) -> int | None:
    known = load(run_of(root).path)
    return specs.restore(known.spec).nproc if known else None


def _first_run_json(root: Path, recorder: Recorder) -> None:
    with Folder() as folder:
        folder.make(run_of(root))
        specs.save(run_of(root), SPEC)
    recorder.mark("durable")


def _second_run_json(root: Path, recorder: Recorder) -> None:
    specs.save(run_of(root), dataclasses.replace(SPEC, nproc=2))
    recorder.mark("durable")


def _with_run_json(root: Path) -> None:
    made_in(root)
    specs.save(run_of(root), SPEC)


def _launch(root: Path, recorder: Recorder) -> None:
    """From no folder at all to the first checkpoint."""
    run = run_of(root)
    with Folder() as folder:
        folder.make(run)
    with RunLock(run):
        specs.save(run, SPEC)
        log = EventLog(run, "gpt")
        log.emit("run_started")
        synced(log, recorder)
        metrics = Metrics(run.metrics)
        metrics.write(step=1)
        order = Order(run.checkpoints, 1, pack(state_of(1)), capture_rank(0), seal=metrics.sync)
        assert save(order, Ranks(), DISK).error is None
        recorder.mark("durable")
        log.close()
        metrics.close()


def _launched(root: Path) -> tuple[Any, ...]:
    run = run_of(root)
    newest = store.newest_good(run.checkpoints)
    events = [event["msg"] for event in read_events(run.events)[0]]
    return _nproc(root), newest.step if newest else None, events, run.metrics.exists() and run.metrics.read_bytes()


def _launch_allowed(marks: Marks, seen: tuple[Any, ...]) -> str | None:
    whole = (1, 1, ["run_started"], b'{"step": 1}\n')
    if "durable" in marks or seen[1] is not None:
        return None if seen == whole else f"with a checkpoint: {seen}"
    return None if seen[0] in (None, 1) else f"run.json: {seen}"


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_LINES = b"".join(b'{"step": %d}\n' % step for step in range(1, 400))


def _with_metrics(root: Path) -> None:
    made_in(root)
    run_of(root).metrics.write_bytes(_LINES)


def _start_over(root: Path, recorder: Recorder) -> None:
    metrics = Metrics(run_of(root).metrics)
    metrics.start_over()
    recorder.mark("durable")
    metrics.write(step=1)
    os.close(metrics._fd)


def _superseded(root: Path) -> bool:
    """Whether the old lines are somewhere, whole."""
    return any(path.read_bytes().startswith(_LINES) for path in run_of(root).path.glob("metrics*.jsonl"))


def _fault(root: Path, recorder: Recorder) -> None:
    folder = run_of(root).faults
    faults.arm(folder, faults.parse_fault("kill:rank=1@step=40"))
    (fault,) = faults.armed(folder)
    assert faults.claim(folder, fault, 1, 0, 40)
    recorder.mark("claimed")


def _fault_state(root: Path) -> tuple[int, bool, bool]:
    """(armed, fired, may fire again)."""
    folder = run_of(root).faults
    known = faults.armed(folder)
    return len(known), bool(faults.fired(folder)), any(not faults.has_fired(folder, fault, 1) for fault in known)


def _fires_once(marks: Marks, seen: tuple[int, bool, bool]) -> str | None:
    return "it may fire again" if "claimed" in marks and seen != (1, True, False) else None


def _modules(root: Path, recorder: Recorder) -> None:
    remember(run_of(root).modules)
    recorder.mark("durable")


def _modules_known(root: Path) -> str:
    names = remembered(run_of(root).modules)
    return "new" if "torch" in names else "old" if names == ["old"] else "none"


def _old_modules(root: Path) -> None:
    made_in(root)
    run_of(root).modules.write_text('["old"]')


def _stop(root: Path, recorder: Recorder) -> None:
    replace_file(run_of(root).stop, b"now")
    recorder.mark("durable")


def _stop_read(root: Path) -> tuple[Any, bool]:
    stops = Stops()
    stops.read(run_of(root).stop)
    return (stops.kind.value if stops.kind else None), stops.now


def _plain(step: int) -> Callable[..., None]:
    def act(root: Path, recorder: Recorder | None = None) -> None:
        torch.manual_seed(step)
        model = torch.nn.Linear(40, 40)
        save_checkpoint(root / "model.pt", model, torch.optim.SGD(model.parameters(), lr=0.1), step)
        if recorder:
            recorder.mark("durable")

    return act


def _plain_step(root: Path) -> Any:
    try:
        return load_checkpoint(root / "model.pt", torch.nn.Linear(40, 40))[0]
    except (FileNotFoundError, Damaged) as error:
        return type(error).__name__


def _lock(root: Path, recorder: Recorder) -> None:
    with RunLock(run_of(root)):
        recorder.mark("durable")


def _release(root: Path, recorder: Recorder) -> None:
    gate = Gate(root / "standby" / "0001")
    fd = gate.close()
    gate.open(fd, {"attempt": 3, "env": {"A": "b" * 5000}, "arguments": ["x"]})
    recorder.mark("durable")


def _released(root: Path) -> int | None:
    gate = Gate(root / "standby" / "0001")
    return json.loads(gate.release.read_bytes())["attempt"] if gate.release.exists() else None


def _note(root: Path, recorder: Recorder) -> None:
    note = NoteWriter(root / "notes")
    for number in range(3):
        note("warning", text=LONG, number=number)
        recorder.mark(str(number))


def _notes(root: Path) -> list[int]:
    return [note["number"] for note in NoteReader(root / "notes").read()]


def _all_noted(marks: Marks, seen: list[int]) -> str | None:
    return None if len(seen) >= len(marks) and seen == list(range(len(seen))) else f"noted {len(marks)}, found {seen}"


FILES: dict[str, Protocol] = {
    **EVENTS,
    "first run.json": Protocol(_first_run_json, _nproc, old_or_new(None, 1)),
    "run.json again": Protocol(_second_run_json, _nproc, old_or_new(1, 2), _with_run_json),
    "launch to the first checkpoint": Protocol(_launch, _launched, _launch_allowed, mutated=False),
    "metrics start over": Protocol(
        _start_over,
        _superseded,
        old_or_new(True, True),
        _with_metrics,
        {"no sync runs/gpt/metrics.jsonl": "either is allowed to the file itself: a resume cuts it"},
    ),
    "a fault": Protocol(_fault, _fault_state, _fires_once, made_in),
    "learned modules": Protocol(_modules, _modules_known, old_or_new("old", "new"), _old_modules),
    "a stop": Protocol(_stop, _stop_read, old_or_new((None, False), ("user", True)), made_in),
    "save_checkpoint": Protocol(_plain(2), _plain_step, old_or_new(1, 2), _plain(1)),
    "the lock's holder": Protocol(
        _lock,
        lambda root: holder(run_of(root)).get("pid"),
        old_or_new(None, os.getpid()),
        made_in,
        {
            "rename runs/gpt/.lock.json.tmp-* runs/gpt/lock.json before sync runs/gpt/.lock.json.tmp-*": (
                "one that cannot be read counts as none, and there was none before"
            )
        },
    ),
    # Only for the living: a power cut ends those that would read it.
    "the gate's release": Protocol(_release, _released, old_or_new(None, 3), power=False),
    "notes": Protocol(_note, _notes, _all_noted, power=False),
}
