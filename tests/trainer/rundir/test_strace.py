"""The kernel's own view: what `strace` sees of the real programs is what was recorded, and survives the same
crashes."""

from __future__ import annotations

import functools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkpoints_found import found_by_restore, metrics_from, one_of
from tests.support.jobs import ROOT, TINY, environment
from tests.support.kernel import Op, recorded, tree_of
from tests.support.powercut import Sweep
from tests.support.protocols_of_checkpoints import (
    CHECKPOINTS,
    trained,
    two_with_metrics,
    with_metrics,
)
from tests.support.protocols_of_files import FILES
from tests.support.snapshots import snapshot_of
from tests.support.straced import joined, operations, straced
from trainer.rundir.programs import program

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")

_ACT = "import sys, tests.trainer.rundir.test_strace as t; t.act_all(t.Path(sys.argv[1]))"
PROTOCOLS = {**CHECKPOINTS, **FILES}
# One rank alone: how threads interleave differs from run to run.
NAMES = [
    name
    for name in PROTOCOLS
    if name not in ("save by two ranks, prune", "export to safetensors", "the gate's release")
]


class _Deaf:
    """What a protocol tells its moments to, where nobody records."""

    def mark(self, name: str) -> None:
        pass

    def barrier(self) -> None:
        pass


def act_all(place: Path) -> None:
    for name in NAMES:
        PROTOCOLS[name].act(place / name, _Deaf())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shm() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        yield Path(place)


def _told(ops: list[Op]) -> list[str]:
    return [str(op) for op in joined([op for op in ops if op.kind not in ("mark", "barrier")])]


@functools.cache
def _recorded(name: str, place: Path) -> list[Op]:
    root = place / "recorded" / name
    root.mkdir(parents=True)
    PROTOCOLS[name].before(root)
    with recorded(root) as recorder:
        PROTOCOLS[name].act(root, recorder)
    return recorder.ops


def test_the_recorder_hides_nothing(shm: Path, tried: dict[str, str]) -> None:
    """Each protocol, done in another process, asks the kernel for what was recorded, call for call."""
    roots = {name: shm / "straced" / name for name in NAMES}
    before = {}
    for name, root in roots.items():
        root.mkdir(parents=True)
        PROTOCOLS[name].before(root)
        before[name] = tree_of(root)
    trace = straced([sys.executable, "-c", _ACT, str(shm / "straced")], shm, environment(), ROOT)

    calls = 0
    for name, root in roots.items():
        seen = operations(trace, root, before[name])
        assert _told(seen) == _told(_recorded(name, shm)), name
        calls += len(seen)
    tried["seen by strace as recorded"] = f"{len(NAMES)} protocols, {calls} system calls"


def test_the_real_flush_process(shm: Path, tried: dict[str, str]) -> None:
    """The program as the supervisor starts it: its system calls are those recorded of the function, and at every moment
    between them the power may go."""
    root = shm / "flush"
    root.mkdir()
    two_with_metrics(root)
    run = root / "run"
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 3}\n')
    before = tree_of(root)
    segment = shm / "segment"
    segment.mkdir(mode=0o700)
    snapshot_of(segment, 3)
    command = [
        sys.executable,
        *program("checkpoint.disk.flush"),
        str(segment),
        str(run / "checkpoints"),
    ]
    trace = straced(
        [*command, "--step", "3", "--keep", "2", "--seal", str(run / "metrics.jsonl")], shm, environment(), Path("/")
    )

    ops = joined(operations(trace, root, before))
    assert _told(ops) == [told for told in _told(_recorded("flush, prune", shm)) if told != "write run/metrics.jsonl"]
    sweep = Sweep(before, trained, with_metrics(one_of(2, 3, good=2)), shm / "flush-states")
    count = sweep([*ops, Op("mark", "3", who=ops[-1].who)])
    tried["the real flush process, by strace"] = str(count)


def test_a_real_training_run(shm: Path, tried: dict[str, str]) -> None:
    """`python -m trainer` from nothing, with a save at every second step and pruning: all that it and its threads ask
    of the kernel, and a crash at every moment of it. What is restored is never older than what it had said to be
    saved."""
    root = shm / "trainer"
    (root / "run").mkdir(parents=True)
    flags = [*TINY, "--steps", "6", "--checkpoint-every", "2", "--keep", "2", "--out", str(root / "run")]
    trace = straced([sys.executable, "-m", "trainer", *flags], shm, environment(), ROOT)

    ops = joined(operations(trace, root, {"run": None}))
    commits = [op for op in ops if op.kind == "rename" and op.target.startswith("run/checkpoints/step-")]
    assert [op.target[-1] for op in commits] == ["2", "4", "6"]
    sweep = Sweep({"run": None}, _progress, _no_gap, shm / "states")
    tried["a real training run, by strace"] = str(sweep([*ops, Op("mark", "ended", who=ops[-1].who)]))


def _progress(root: Path) -> tuple[object, list[int], list[int]]:
    """(restored, checkpoints that are whole, lines of metrics once it goes on)."""
    step, good = found_by_restore(root / "run" / "checkpoints")
    return step, good, metrics_from(root / "run", step if isinstance(step, int) else 0)


def _no_gap(marks: frozenset[str], seen: tuple[object, list[int], list[int]]) -> str | None:
    step, good, lines = seen
    if step not in ((6,) if marks else (None, 2, 4, 6)):
        return f"restored {step}"
    if len(good) < min(2, int(step or 0) // 2):  # type: ignore[call-overload]
        return f"only {good} are whole"
    return None if lines == list(range(1, int(step or 0) + 2)) else f"restored {step}, lines {lines}"  # type: ignore[call-overload]
