"""An explicit number of steps is a promise: each of those steps is on disk, or it is told that it is not."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from supervisor.core.telling.progress import Progress
from supervisor.loop.flush import Flusher, Outcome, Wanted
from tests.support.jobs import holds, write
from tests.support.snapshots import snapshot_of
from tests.support.supervised import Run
from tests.support.training import Here, Notes, training
from tests.support.waiting import until
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.interval import Stalls, time_limit
from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.tier import Wish
from trainer.rundir.layout import RunDir, committed_steps, step_name
from trainer.rundir.machine import shm

SCRIPT = """
import sys, time, torch, torch.distributed as dist
from trainer.checkpoint import Checkpointer
from trainer.rank.progress import progress
from trainer.rundir.files.durable import Disk

class Slow(Disk):
    def fsync(self, fd, path):
        time.sleep(0.02)
        super().fsync(fd, path)

progress().disk = Slow()
dist.init_process_group("gloo")
fast, steps = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
optimizer = torch.optim.AdamW(model.parameters())
ckpt = Checkpointer(model=model, optimizer=optimizer, every=10, snapshot_every=1, keep=1000)
for step in range(ckpt.restore(), steps):
    time.sleep(0.001 if step < fast else 0.05)
    model(torch.ones(8)).sum().backward()
    optimizer.step()
    ckpt.step(step + 1)
ckpt.close()
"""
"""Steps of 1 ms, and after them of 50 ms. A sync takes the ranks 20 ms: with any disk, their own saves are much."""


def test_each_tenth_step_is_on_disk(run: Run) -> None:
    """A rank is killed, a flush is killed: the steps on disk are each tenth one; what that took is in the ledger, and
    that it is much is said once."""
    faults = ("--inject", "kill:rank=1@step=143", "--inject", "kill-flush@step=60")
    assert run.launch("--nproc", "2", *faults, run.script(SCRIPT), "300", "330") == 0

    steps = committed_steps(run.dir.checkpoints)
    assert [step for step in steps if step % 10 == 0] == list(range(10, 331, 10))
    # Beside them there is the newest one that was in memory after the crash.
    assert len(steps) <= 34
    assert sorted(event["step"] for event in run.events("checkpoint_committed")) == steps
    assert {event["spec"] for event in run.events("fault_injected")} == {"kill-flush@step=60", "kill:rank=1@step=143"}
    said = [event["attempt"] for event in run.events("warning") if "checkpoints every 10 steps take" in event["text"]]
    assert said and said == sorted(set(said))
    stalls = [event.get("seconds", 0) + event.get("stall_s", 0) for event in run.events("checkpoint_committed")]
    assert sum(stalls) > 0.2


def test_nobody_waits_for_a_supervisor_that_is_gone(run: Run) -> None:
    """While nobody flushes, the ranks save each tenth step themselves; a new supervisor, and a stop, lose none
    either."""
    arguments = ("--nproc", "2", run.script(SCRIPT), "10", "100000")
    run.start(*arguments)
    run.until_event("first_step")
    run.kill_supervisor()
    there = max(committed_steps(run.dir.checkpoints), default=0)
    until(lambda: max(committed_steps(run.dir.checkpoints), default=0) >= there + 40)
    run.start(*arguments)
    run.until_event("adopted")
    there = max(committed_steps(run.dir.checkpoints))
    until(lambda: max(committed_steps(run.dir.checkpoints)) >= there + 20)
    run.cli("stop", "run")
    assert run.wait() == 103

    steps = committed_steps(run.dir.checkpoints)
    assert set(range(10, steps[-1], 10)) <= set(steps)
    # Beside them there is the step at which it was asked to stop.
    assert [step for step in steps if step % 10] in ([], [steps[-1]])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_no_flush_ever_comes(here: Here, notes: Notes) -> None:
    """The first due step stays pinned for the flush, and the others are saved by the ranks; each step has its
    snapshot."""
    with training(every=2) as made:
        made.run(9, Wish())
        assert committed_steps(here.checkpoints) == [4, 6, 8]
        assert snapshots.pinned(here.segment) == [2]
        made.copied()
        assert snapshots.newest_snapshot(here.segment) == 9
        assert made.memory().left_out is None
    assert [fields["step"] for kind, fields in notes.kept if kind == "flush_due"] == [2]


def test_how_long_a_flush_is_waited_for() -> None:
    """As long as a save takes, if the flush is about to end; not if it has most of its work before it or may never
    end."""
    assert time_limit(0.1, 1.0, 0.2) == 0.0
    assert time_limit(0.9, 1.0, 0.2) == 0.2
    assert time_limit(1.9, 1.0, 0.2) == 0.2
    assert time_limit(2.1, 1.0, 0.2) == 0.0
    assert time_limit(0.9, 1.0, None) == 0.0
    assert (time_limit(0.1, None, 0.2), time_limit(0.3, None, 0.2), time_limit(9.0, None, 0.2)) == (0.0, 0.2, 0.0)


def test_a_stall_is_said_once() -> None:
    """Above 5 % of the time, with a number that keeps to it; below that, never."""
    for stall, said in ((0.1, "checkpoints every 10 steps take 50 %"), (0.004, None)):
        stalls = Stalls("checkpoints", 10)
        sentences = []
        for step in range(1000):
            now = step * 0.01 + stall * (step // 10 + 1)
            if step % 10 == 0:
                stalls.held_up(stall)
            sentences.append(stalls.sentence(now))
        found = [sentence for sentence in sentences if sentence]
        assert len(found) == (said is not None)
        if said:
            assert found[0].startswith("checkpoints every 10 steps take") and "every 1" in found[0]


@pytest.fixture
def flusher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flusher:
    """Of a run whose snapshot of step 3 is promised, of which nobody has said a word; that of step 4 is newer."""
    monkeypatch.setattr(shm, "ROOT", tmp_path)
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    # A mark of its own: a flush that another test has started meanwhile is not one that was inherited.
    made = Flusher(run, f"test{uuid.uuid4().hex}")
    snapshot_of(made.segment, 3)
    found = snapshots.find(made.segment)
    assert found is not None
    snapshots.pin(found)
    snapshot_of(made.segment, 4)
    return made


def _told(outcomes: Iterable[Outcome | None]) -> list[tuple[str, int | None]]:
    """The events that tell of the flushes that have ended like that, with their steps."""
    progress, told = Progress(), list[tuple[str, int | None]]()
    for outcome in outcomes:
        assert outcome is not None
        progress, events = progress.flushed(outcome)
        told += [(event.event, event.fields.get("step")) for event in events]
    return told


def test_what_is_pinned_is_flushed_at_the_end(flusher: Flusher) -> None:
    """The rank died before it could say so, or the supervisor before it could hear it."""
    folder = flusher._run.checkpoints
    told = _told(flusher.finish())

    assert committed_steps(folder) == [3, 4]
    assert holds(folder, 3) and holds(folder, 4)
    assert told == [("checkpoint_committed", 3), ("checkpoint_committed", 4)]
    assert flusher.leave() is None and not flusher.segment.exists()


def test_a_flush_of_one_step_leaves_the_pin_of_another(flusher: Flusher) -> None:
    """After a crash the newest is flushed while the ranks pin what they will need next."""
    assert not list(flusher._start(flusher._under_way))
    assert flusher.process is not None
    until(lambda: committed_steps(flusher._run.checkpoints) == [4])
    until(lambda: flusher.fds() and not Path(f"/proc/{flusher.process.pid}/exe").exists())  # type: ignore[union-attr]
    assert _told(flusher._go_on({flusher.process.fd})) == [("checkpoint_committed", 4)]
    assert snapshots.pinned(flusher.segment) == [3]


def _ended(flusher: Flusher) -> set[int]:
    """The descriptor of the running flush, once that has ended."""
    process = flusher.process
    assert process is not None
    until(lambda: not Path(f"/proc/{process.pid}/exe").exists())
    return {process.fd}


def test_a_flush_that_dies_after_its_commit(flusher: Flusher) -> None:
    """It could not say so: the one that is made in its place finds the checkpoint, and that is told."""
    ends = list(flusher._start(Wanted(3, 10)))
    ended = _ended(flusher)
    flusher._stdout.close()
    flusher._stdout = Path(os.devnull).open("rb")  # noqa: SIM115
    ends += flusher._go_on(ended)
    ends += flusher._go_on(_ended(flusher))

    assert committed_steps(flusher._run.checkpoints) == [3]
    assert _told(ends) == [("checkpoint_failed", 3), ("checkpoint_committed", 3)]


def test_a_flush_that_is_forked_late(flusher: Flusher) -> None:
    """It makes the checkpoint after all, before the one that was started in its place: that is told, once. What it may
    leave, ended at its work, is swept away."""
    assert flush(flusher.segment, flusher._run.checkpoints, 3, 10, None)["step"] == 3
    flusher._want(3)
    ends = list(flusher._go_on(set()))
    ends += flusher._go_on(_ended(flusher))
    assert _told(ends) == [("checkpoint_committed", 3)]
    flusher._want(3)
    assert not list(flusher._go_on(set())) and flusher.process is None

    left = flusher._run.checkpoints / ".step-00000004.tmp-flush-1"
    left.mkdir()
    flusher.sweep()
    assert not left.exists()


def test_what_the_ranks_have_saved_is_not_flushed(flusher: Flusher) -> None:
    """Unless it is gone again, because it was damaged: then it is as good as never made."""
    write(flusher._run.checkpoints, 3)
    flusher.hear([(0, {"kind": "checkpoint_saved", "step": 3})])
    flusher._want(3)
    assert not list(flusher._go_on(set())) and flusher.process is None and snapshots.pinned(flusher.segment) == []

    shutil.rmtree(flusher._run.checkpoints / step_name(3))
    flusher._want(3)
    assert not list(flusher._go_on(set()))
    assert _told(flusher._go_on(_ended(flusher))) == [("checkpoint_committed", 3)]


def test_steps_that_are_not_all_told(tmp_path: Path) -> None:
    """A loop that tells of each eighth step: the first one told after each hundredth is on disk, after a restart too,
    and no other one."""
    for begin, end, there in ((1, 410, [105, 201, 305, 401]), (409, 610, [105, 201, 305, 401, 505, 601])):
        ckpt = Checkpointer(model=nn.Linear(2, 2), every=100, keep=100, directory=tmp_path)
        ckpt.restore()
        for step in range(begin, end, 8):
            ckpt.step(step)
        assert committed_steps(tmp_path) == there
        ckpt._stop.close()


def test_snapshots_of_steps_that_are_not_all_told(here: Here) -> None:
    """The same for snapshots by a number of steps."""
    ckpt = Checkpointer(model=nn.Linear(2, 2), every=None, snapshot_every=10)
    ckpt.restore()
    taken = []
    for step in range(1, 60, 4):
        ckpt.step(step)
        assert ckpt._tier is not None
        ckpt._tier._memory.wait()
        if ckpt._tier._memory.segment.has(step):
            taken.append(step)
    ckpt.close()

    assert taken == [13, 21, 33, 41, 53]


@pytest.mark.parametrize(("times", "left"), [(1, [3]), (2, [])])
def test_a_flush_that_is_stopped(flusher: Flusher, times: int, left: list[int]) -> None:
    """It is ended and made again, once; the second time the step is told to be lost, and nothing is kept for it."""
    # A flush syncs the metrics before it commits: here it waits there for somebody to write.
    metrics = flusher._run.metrics
    os.mkfifo(metrics)
    flusher.inherit(training=True)
    ends: list[Outcome | None] = []
    for _ in range(times):
        ends += flusher.tick(set(), True)
        process = flusher.process
        assert process is not None
        until(lambda: list(flusher._run.checkpoints.glob(".step-00000003.tmp-*/rank1.safetensors")))
        process.send(signal.SIGSTOP)

        def gone(process: Any = process) -> bool:
            assert not list(flusher.tick(set(), True))
            return not Path(f"/proc/{process.pid}/exe").exists()

        until(gone)
        metrics.unlink()
        if times == 2:
            os.mkfifo(metrics)
        ends += flusher.tick({process.fd}, True)
    if times == 1:
        assert flusher.process is not None
        until(lambda: committed_steps(flusher._run.checkpoints) == [3])
    assert _told(ends) == [("checkpoint_failed", 3)] * times
    assert committed_steps(flusher._run.checkpoints) == left
    assert times == 1 or snapshots.pinned(flusher.segment) == []
    flusher.abandon()
