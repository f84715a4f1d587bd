"""How the checkpoints of a run come to be, are restored, put aside, pruned and exported, with its metrics."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.checkpoints_found import (
    checkpoints_in,
    metrics_from,
    one_of,
    restored,
    resumed,
)
from tests.support.jobs import ThreadRanks, state_of, write
from tests.support.kernel import Recorder
from tests.support.protocols import Marks, Protocol
from tests.support.snapshots import snapshot_of
from trainer.checkpoint.disk import retention
from trainer.checkpoint.disk.commit import tidy
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import Tiers, restore
from trainer.checkpoint.disk.save import Order, save
from trainer.checkpoint.errors import NoUsableCheckpoint
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state.packing import pack
from trainer.checkpoint.state.state import capture_rank
from trainer.checkpoint.transfer.safetensors_files import export_safetensors
from trainer.checkpoint.transfer.torch_files import export_torch
from trainer.gpt.metrics import Metrics
from trainer.rundir.files.durable import DISK


def _two(root: Path) -> None:
    for step in (1, 2):
        write(root / "run" / "checkpoints", step)


def _save(folder: Path, step: int, recorder: Recorder, ranks: Ranks, keep: int) -> None:
    outcome = save(Order(folder, step, pack(state_of(step)), capture_rank(ranks.rank)), ranks, DISK)
    assert outcome.error is None
    if ranks.rank == 0:
        recorder.mark(str(step))
        assert tidy(folder, step, keep, DISK) is None


def _save_alone(root: Path, recorder: Recorder) -> None:
    _save(root / "run" / "checkpoints", 3, recorder, Ranks(), keep=2)


class _RecordedRanks(ThreadRanks):
    recorder: Recorder

    def exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = json.dumps(value)
        if self._barrier.wait() == 0:
            self.recorder.barrier()
        self._barrier.wait()
        values = [json.loads(text) for text in self._board]
        self._barrier.wait()
        return values


def _save_by_two(root: Path, recorder: Recorder) -> None:
    barrier, board = threading.Barrier(2, timeout=60), [None] * 2
    ranks = [_RecordedRanks(rank, 2, barrier, board) for rank in range(2)]
    _RecordedRanks.recorder = recorder
    threads = [
        threading.Thread(target=_save, args=(root / "run" / "checkpoints", 3, recorder, each, 2)) for each in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _flush(root: Path, recorder: Recorder) -> None:
    """A run whose metrics the flush is to seal: lines that another process has written and not synced."""
    run = root / "run"
    with (run / "metrics.jsonl").open("ab") as metrics:
        metrics.write(b'{"step": 3}\n')
    with tempfile.TemporaryDirectory(dir="/dev/shm") as segment:
        snapshot_of(Path(segment), 3)
        outcome = flush(Path(segment), run / "checkpoints", 3, 2, run / "metrics.jsonl")
    assert outcome["step"] == 3
    assert "error" not in outcome
    recorder.mark("3")


def two_with_metrics(root: Path) -> None:
    _two(root)
    (root / "run" / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n')


def trained(root: Path, folder: str = "run/checkpoints") -> dict[str, Any]:
    """As above, and the metrics of a run that goes on from there."""
    seen = checkpoints_in(root, folder)
    step = seen["restored"] if isinstance(seen["restored"], int) else 0
    lines = metrics_from(root / "run", step)
    return {**seen, "metrics": lines == list(range(1, step + 2)), "lines": lines}


def with_metrics(inner: Callable[[Marks, Any], str | None]) -> Callable[[Marks, Any], str | None]:
    def allowed(marks: Marks, seen: dict[str, Any]) -> str | None:
        return inner(marks, seen) or (None if seen["metrics"] else f"{seen['restored']}, but lines {seen['lines']}")

    return allowed


def _train(root: Path, recorder: Recorder) -> None:
    """Three steps, each saved, from nothing, the checkpoints on another disk."""
    metrics = Metrics(root / "run" / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.write(step=step)
        order = Order(root / "big", step, pack(state_of(step)), capture_rank(0), seal=metrics.sync)
        assert save(order, Ranks(), DISK).error is None
        recorder.mark(str(step))
    metrics.write(step=4)
    os.close(metrics._fd)


def _resume(root: Path, recorder: Recorder) -> None:
    loaded = restore(Tiers(root / "run" / "checkpoints"), "auto", Ranks(), DISK)
    assert loaded is not None
    metrics = Metrics(root / "run" / "metrics.jsonl")
    metrics.resume_at(loaded.manifest.step)
    metrics.write(step=loaded.manifest.step + 1)
    os.close(metrics._fd)


def _ahead(root: Path) -> None:
    """Checkpoint 2, lines up to step 4 and half of one, an interrupted save, and an interrupted prune."""
    _two(root)
    (root / "run" / "metrics.jsonl").write_bytes(b"".join(b'{"step": %d}\n' % n for n in range(1, 5)) + b'{"ste')
    for name in (retention.temporary_name(3), retention.temporary_name(1, "pruned-")):
        folder = root / "run" / "checkpoints" / name
        folder.mkdir()
        (folder / "rank0.safetensors").write_bytes(b"half")


def _damaged(root: Path) -> None:
    _two(root)
    path = root / "run" / "checkpoints" / "step-00000002" / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _only_one_damaged(root: Path) -> None:
    folder = root / "run" / "checkpoints"
    write(folder, 2)
    (folder / "latest").unlink()
    (folder / "step-00000002" / "manifest.json").write_bytes(b"{}")


def _restore(root: Path, recorder: Recorder) -> None:
    loaded = restore(Tiers(root / "run" / "checkpoints"), "auto", Ranks(), DISK)
    assert loaded is not None
    assert loaded.manifest.step == 1


def _restore_nothing(root: Path, recorder: Recorder) -> None:
    with contextlib.suppress(NoUsableCheckpoint):
        restore(Tiers(root / "run" / "checkpoints"), "auto", Ranks(), DISK)


def _start_over(root: Path, recorder: Recorder) -> None:
    assert restore(Tiers(root / "run" / "checkpoints"), "never", Ranks(), DISK) is None
    recorder.mark("none")


def _start_over_and_save(root: Path, recorder: Recorder) -> None:
    restore(Tiers(root / "run" / "checkpoints"), "never", Ranks(), DISK)
    _save(root / "run" / "checkpoints", 7, recorder, Ranks(), keep=2)


def _none_lost(inner: Callable[[Marks, Any], str | None]) -> Callable[[Marks, Any], str | None]:
    """As `inner`, and steps 1 and 2 are where they were or moved aside."""

    def allowed(marks: Marks, seen: dict[str, Any]) -> str | None:
        found = {*seen["good"], *(int(path[-8:]) for path in seen["aside"])}
        return inner(marks, seen) or (None if found >= {1, 2} else f"steps 1 and 2 are not all there: {seen}")

    return allowed


def _export(root: Path, recorder: Recorder, export: Callable[[Path, Path], Any]) -> None:
    export(root / "run" / "checkpoints" / "step-00000002", root / "out")
    recorder.mark("durable")


def _exported(root: Path) -> bytes | None:
    return (root / "out").read_bytes() if (root / "out").exists() else None


def _whole_file(marks: Marks, seen: bytes | None) -> str | None:
    if seen is None:
        return "there is no file" if "durable" in marks else None
    return None if seen in (_expected(export_safetensors), _expected(export_torch)) else f"a file of {len(seen)} bytes"


@functools.cache
def _expected(export: Callable[[Path, Path], Any]) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), 2)
        export(Path(place) / "step-00000002", Path(place) / "out")
        return (Path(place) / "out").read_bytes()


def _run_folder(root: Path) -> None:
    (root / "run").mkdir()


_HINT = "`latest` is a hint: an old one, or none, is as good"
_LATER = "the sync after `latest` covers it, before anything is said or pruned"
_AGAIN = "what is damaged is found damaged wherever it lies, and moved by the next restore"
_WHY = "the text beside it is for people"
_FINISHED = "a start over that was cut short is finished by the next start"
_IN_QUARANTINE = "run/checkpoints/quarantine"
_TO_QUARANTINE = f"rename run/checkpoints/step-00000002 {_IN_QUARANTINE}/step-00000002-1"
_TEXT = f"{_IN_QUARANTINE}/.step-00000002-1.txt.tmp-*"
_ONLY_ONE = {
    f"no sync {_IN_QUARANTINE}": _AGAIN,
    "no sync run/checkpoints (2)": _AGAIN,
    f"no sync {_TEXT}": _WHY,
    f"rename {_TEXT} {_IN_QUARANTINE}/step-00000002-1.txt before sync {_TEXT}": _WHY,
    f"no sync {_IN_QUARANTINE} (2)": _WHY,
}
_QUARANTINE = {
    **_ONLY_ONE,
    "no sync run/checkpoints": _AGAIN,
    f"{_TO_QUARANTINE} before sync run/checkpoints": _AGAIN,
}
_PRUNE = {
    "no sync run/checkpoints (2)": _HINT,
    "rename run/checkpoints/step-00000001 run/checkpoints/.step-00000001.tmp-pruned-* "
    "before sync run/checkpoints": _HINT,
}
_START_OVER = {
    "rename run/checkpoints/latest run/checkpoints/superseded-1.tmp/latest before sync run/checkpoints": _HINT,
    "no sync run/checkpoints (3)": _FINISHED,
}
_CUT_AGAIN = (
    "the lines up to the step are the same before and after, and what is beyond it is cut off by the next resume"
)

CHECKPOINTS: dict[str, Protocol] = {
    "first save": Protocol(
        _save_alone, checkpoints_in, one_of(None, 3), _run_folder, {"no sync run/checkpoints (2)": _HINT}
    ),
    "save, prune": Protocol(_save_alone, checkpoints_in, one_of(2, 3, good=2), _two, _PRUNE, recover=restored),
    "save by two ranks, prune": Protocol(
        _save_by_two, checkpoints_in, one_of(2, 3, good=2), _two, _PRUNE, recover=restored
    ),
    "flush, prune": Protocol(
        _flush,
        trained,
        with_metrics(one_of(2, 3, good=2)),
        two_with_metrics,
        {**_PRUNE, "no sync run/checkpoints": _LATER, "no sync run": "metrics.jsonl was there before"},
        recover=resumed,
    ),
    "three saves with metrics": Protocol(
        _train, functools.partial(trained, folder="big"), with_metrics(one_of(None, 1, 2, 3)), _run_folder
    ),
    "resume with metrics": Protocol(
        _resume,
        trained,
        with_metrics(one_of(2, good=2)),
        _ahead,
        {"no sync run/metrics.jsonl": _CUT_AGAIN},
        recover=resumed,
    ),
    "quarantine of the only one": Protocol(
        _restore_nothing,
        checkpoints_in,
        one_of("NoUsableCheckpoint", bad=(2,)),
        _only_one_damaged,
        _ONLY_ONE,
        recover=restored,
    ),
    "quarantine": Protocol(
        _restore, checkpoints_in, one_of(1, good=1, bad=(2,)), _damaged, _QUARANTINE, recover=restored
    ),
    "start over": Protocol(
        _start_over, checkpoints_in, _none_lost(one_of(2, None)), _two, _START_OVER, recover=restored
    ),
    "start over, save": Protocol(
        _start_over_and_save,
        checkpoints_in,
        _none_lost(one_of(2, None, 7)),
        _two,
        {**_START_OVER, "no sync run/checkpoints (5)": _HINT},
        recover=restored,
    ),
    "export to safetensors": Protocol(
        functools.partial(_export, export=export_safetensors), _exported, _whole_file, _two
    ),
    "export to torch": Protocol(functools.partial(_export, export=export_torch), _exported, _whole_file, _two),
}
