"""The memory tier: a snapshot is the state of its step to the bit, whatever training does meanwhile."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.jobs import on_ranks, same
from tests.test_checkpointer import Notes
from trainer import progress
from trainer.checkpoint import Checkpointer, NoUsableCheckpoint, copier, memory, snapshots, tier
from trainer.checkpoint.flush import flush
from trainer.checkpoint.interval import Pace
from trainer.checkpoint.restore import load
from trainer.checkpoint.tier import Wish
from trainer.rundir import shm
from trainer.rundir.layout import committed_steps, step_name

STEPS = 30
TAKE = Wish(snapshot=True)
SAVE = Wish(save=True)


class Here:
    """A run under a supervisor that does nothing, its shared memory in a folder of the test's own."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.run = place / "run"
        self.checkpoints = self.run / "checkpoints"
        self.attempt(0, place / "shm")

    def attempt(self, number: int, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self._patch.setattr(shm, "ROOT", root)
        self.segment = root / "supervise-m"
        for name, value in (("MARK", f"m.{number}"), ("RUN_DIR", str(self.run)), ("ATTEMPT", str(number))):
            self._patch.setenv(f"SUPERVISE_{name}", value)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr(progress, "_current", notes)
    return notes


@pytest.fixture(params=[True, False], ids=["overlapped", "blocking"])
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notes: Notes, request: pytest.FixtureRequest
) -> Iterator[Here]:
    """With a core to spare for copying, and without one."""
    monkeypatch.setattr(memory, "spare_cores", lambda world_size: request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if request.param else 2)
    yield Here(tmp_path, monkeypatch)
    torch.set_num_threads(threads)


class Training:
    """Everything that changes at another time than the optimizer's step: BatchNorm's statistics, dropout, three generators,
    a scaler that grows and skips, a scheduler, a list in `extra`, a tensor there too."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        self.model = nn.Sequential(
            nn.Linear(4, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 250), nn.Linear(250, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
        self.seen: list[float] = []
        self.mean = torch.zeros(3)
        self.ckpt = Checkpointer(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            extra=lambda: {"seen": self.seen, "mean": self.mean},
            **{"every": None, "snapshot_every": 1, **options},
        )
        self.start = self.ckpt.restore()
        self.seen = list(self.ckpt.extra.get("seen", []))
        self.mean = self.ckpt.extra.get("mean", self.mean)

    def backward(self) -> None:
        x = torch.randn(6, 4) * random.random() + np.random.rand()
        with torch.autocast("cpu", torch.float16):
            loss = self.model(x).float().square().mean()
        self.scaler.scale(loss).backward()
        self.seen.append(loss.item())
        self.mean += 1

    def update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def run(self, until: int, agreed: Wish = TAKE) -> None:
        for step in range(self.start, until):
            self.backward()
            self.update()
            self.ckpt.step(step + 1, agreed)
        self.start = until

    def state(self) -> dict[str, Any]:
        generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        parts = (self.model, self.optimizer, self.scheduler, self.scaler)
        return {"parts": [p.state_dict() for p in parts], "extra": (self.seen, self.mean), "rng": generators}

    def copied(self) -> None:
        memory = self.memory()
        memory.wait()
        assert memory.problem is None

    def memory(self) -> Any:
        assert self.ckpt._tier is not None
        return self.ckpt._tier._memory

    def end(self) -> None:
        self.ckpt._stop.close()
        if self.ckpt._tier:
            self.ckpt._tier.close()


@contextlib.contextmanager
def training(**options: Any) -> Iterator[Training]:
    made = Training(**options)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No copy that overlaps begins before this is set: it is always still to be made while the next step computes."""
    event, copy = threading.Event(), copier.Copier.copy

    def wait_and_copy(*given: Any) -> None:
        event.wait(20)
        event.clear()
        copy(*given)

    monkeypatch.setattr(copier.Copier, "copy", wait_and_copy)
    return event


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_every_step_resumes_to_the_same_bits(here: Here, tmp_path: Path, late: threading.Event) -> None:
    """Each step's snapshot, copied as late as it can be, goes on to the same end as the run that was not interrupted."""
    with training() as whole:
        for step in range(STEPS):
            whole.backward()
            if step:
                late.set()
                whole.copied()
                shutil.copytree(here.segment, tmp_path / f"at-{step}" / here.segment.name)
            whole.update()
            whole.ckpt.step(step + 1, TAKE)
        late.set()
        end = whole.state()
    for step in range(1, STEPS):
        here.attempt(step, tmp_path / f"at-{step}")
        with training(snapshot_every=100) as resumed:
            assert resumed.start == step
            resumed.run(STEPS, Wish())
            assert same(resumed.state(), end), f"resumed at step {step}"


def _assert_current(made: Training, here: Here, step: int) -> None:
    """The newest snapshot is the state as it is now."""
    made.copied()
    assert snapshots.newest_snapshot(here.segment) == step
    now = made.state()
    with training() as other:
        # What a checkpoint holds of the lists and tensors in extra was there when it was taken.
        assert same(other.state(), now)


@pytest.mark.parametrize("change", ["nothing", "storage", "load", "group", "buffer", "grow"])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_what_moves_is_noticed(here: Here, change: str) -> None:
    """A parameter's storage is replaced, state is loaded, a group's number, a buffer, the extra's size changed between two
    snapshots: the second one has it."""
    with training() as made:
        made.run(25)
        match change:
            case "storage":
                made.model[0].weight.data = made.model[0].weight.data.clone() + 1
            case "load":
                state = made.optimizer.state_dict()
                state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"] + 1
                made.optimizer.load_state_dict(state)
            case "group":
                made.optimizer.param_groups[0]["weight_decay"] = 0.5
            case "buffer":
                made.model[1].running_mean = torch.ones(40)
            case "grow":
                made.mean = torch.ones(5)
        made.ckpt.step(26, TAKE)
        _assert_current(made, here, 26)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_plan_is_kept_while_nothing_moves(here: Here) -> None:
    """After the first steps no plan is made anew, though extra has other tensors and numbers each time."""
    with training() as made:
        made.run(25)
        image = made.memory()._image
        made.mean = made.mean.clone()
        made.run(30)
        assert made.memory()._image is image


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_odd_tensors(here: Here) -> None:
    """Channels last, shared, empty and scalar tensors, cut over two ranks, come back as they were."""
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    shared = torch.arange(5.0)
    extra = {
        "a": shared,
        "b": shared,
        "none": torch.zeros(0, 2),
        "one": torch.tensor(2.0).bfloat16(),
        "t": torch.ones(3, 2).t(),
    }

    def make(ranks: Any) -> Checkpointer:
        ckpt = Checkpointer(model=model, optimizer=optimizer, extra=extra, every=None, snapshot_every=1)
        ckpt._ranks = ranks
        return ckpt

    def body(ranks: Any) -> Any:
        ckpt = make(ranks)
        ckpt.restore()
        ckpt.step(1, TAKE)
        assert ckpt._tier is not None
        ckpt._tier.close()
        return ckpt._tier._memory.problem

    model(torch.randn(1, 3, 5, 5).to(memory_format=torch.channels_last)).sum().backward()
    optimizer.step()
    wanted = {k: v.clone() for k, v in model.state_dict().items()}
    momentum = [v["momentum_buffer"].clone() for v in optimizer.state.values()]
    assert on_ranks(2, body) == [None, None]
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    ckpt = make(on_ranks(1, lambda ranks: ranks)[0])
    assert ckpt.restore() == 1
    assert same(dict(model.state_dict()), wanted)
    assert same([v["momentum_buffer"] for v in optimizer.state.values()], momentum)
    assert same(ckpt.extra, extra)
    ckpt._tier.close()  # type: ignore[union-attr]


def _rank(ranks: Any, steps: range, agreed: Callable[[int], Wish] = lambda step: TAKE, **options: Any) -> Any:
    """A rank that trains those steps on its own copy of the same model; its last weights and where it began."""
    torch.manual_seed(3)
    model = nn.Linear(30, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, **{"every": None, "snapshot_every": 1, **options})
    ckpt._ranks = ranks
    start = ckpt.restore()
    for step in range(max(start, steps.start), steps.stop):
        for p in model.parameters():
            p.grad = torch.full_like(p, step + 1.0)
        optimizer.step()
        ranks.exchange(None)
        ckpt.step(step + 1, agreed(step + 1))
    if ckpt._tier:
        ckpt._tier.close()
        assert ckpt._tier._memory.problem is None
    return start, model.weight.detach().clone()


def test_other_world_sizes(here: Here, tmp_path: Path) -> None:
    """Two ranks, then one, then three, from memory: the state goes on, and what the larger world left is removed."""
    whole = on_ranks(1, lambda ranks: _rank(ranks, range(9), snapshot_every=None, directory=tmp_path / "other"))[0][1]
    for attempt, (world, begin, end) in enumerate(((2, 0, 3), (1, 3, 6), (3, 6, 9))):
        here.attempt(attempt, tmp_path / "shm")
        results = on_ranks(world, lambda ranks, b=begin, e=end: _rank(ranks, range(b, e)))  # type: ignore[misc]
        assert [start for start, _ in results] == [begin] * world
        assert shm.ranks_in(here.segment) == list(range(world))

    assert all(same(weight, whole) for _, weight in results)


def test_shared_memory_too_small(
    here: Here, notes: Notes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One rank of two has no room: one warning that says what to do, then checkpoints on disk by both, and nothing is
    left in shared memory."""
    real = os.posix_fallocate

    def allocate(fd: int, offset: int, size: int) -> None:
        if size > 4096 and "rank1" in Path(f"/proc/self/fd/{fd}").readlink().name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)

    def body(ranks: Any) -> Any:
        model = nn.Linear(3, 3)
        ckpt = Checkpointer(model=model, every=4, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 9):
            if ckpt._tier:
                ckpt._tier._memory.wait()
            ckpt.step(step, Wish(*ranks.any(*ckpt.wish())))
        return ckpt._tier

    assert on_ranks(2, body) == [None, None]
    assert committed_steps(here.checkpoints) == [4, 8]
    warnings = [fields["text"] for kind, fields in notes.kept if kind == "warning"]
    assert len(warnings) == 1
    assert "too small" in warnings[0]
    assert "--shm-size=" in warnings[0]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not here.segment.exists()


def _flushed(here: Here, notes: Notes) -> dict[str, Any]:
    kind, fields = notes.kept[-1]
    assert kind == "flush_due"
    return flush(here.segment, here.checkpoints, fields["step"], fields["keep"], None)


def test_a_due_save_is_a_flush(here: Here, notes: Notes) -> None:
    """At a due step all ranks pin their snapshot; the step after, rank 0 says so; none is due until the pins are gone;
    then the next one is. The ranks write nothing to disk themselves."""

    def body(ranks: Any) -> Any:
        flushed = []

        def agreed(step: int) -> Wish:
            if ranks.rank == 0 and step in (5, 9):
                flushed.append(_flushed(here, notes)["step"])
            return Wish(*ranks.any(*Wish(snapshot=True)))

        _rank(ranks, range(10), agreed, every=2)
        return flushed

    assert on_ranks(2, body) == [[2, 6], []]
    assert [f["step"] for kind, f in notes.kept if kind == "flush_due"] == [2, 6]
    assert committed_steps(here.checkpoints) == [2, 6]


def test_a_save_that_had_to_wait_is_made_up_for(here: Here, notes: Notes) -> None:
    """Due while a flush was under way: rank 0 wishes it again, and has it once the pins are gone."""

    def body(ranks: Any) -> None:
        model = nn.Linear(2, 2)
        ckpt = Checkpointer(model=model, every=2, snapshot_every=1)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(1, 6):
            ckpt.step(step)
        snapshots.clear_pins(here.segment)
        for step in range(6, 8):
            ckpt.step(step)
            ckpt._tier._memory.wait()  # type: ignore[union-attr]
        ckpt._tier.close()  # type: ignore[union-attr]

    on_ranks(1, body)
    assert [f["step"] for kind, f in notes.kept if kind == "flush_due"] == [2, 6]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_a_flush_is_the_save(here: Here, tmp_path: Path) -> None:
    """A flushed snapshot and a direct save of the same step: the same state, and the rank's file byte for byte."""
    with training() as made:
        made.run(24)
        made.run(25, SAVE)
        made.copied()
        outcome = flush(here.segment, here.checkpoints, 25, 3, None)
        made.ckpt.directory = tmp_path / "direct"
        assert made.ckpt.save()

    name = step_name(25)
    assert outcome["step"] == 25
    assert outcome["bytes"] == (here.checkpoints / name / "rank0.safetensors").stat().st_size
    files = [(place / name / "rank0.safetensors").read_bytes() for place in (here.checkpoints, tmp_path / "direct")]
    assert files[0] == files[1]
    flushed, direct = (load(place / name, 0) for place in (here.checkpoints, tmp_path / "direct"))
    assert same((flushed.shared, flushed.own), (direct.shared, direct.own))
    assert (flushed.manifest.tensors, flushed.manifest.files) == (direct.manifest.tensors, direct.manifest.files)
    assert (flushed.manifest.run, flushed.manifest.attempt) == ("run", 0)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_a_flush_counts_for_as_long_as_it_took(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for as long as nobody asked whether it is over: the interval of the rule "auto" is made of it."""
    now = 0.0
    monkeypatch.setattr(tier, "time", SimpleNamespace(monotonic=lambda: now))
    with training() as made:
        made.run(1, SAVE)
        now = 1.0
        made.run(2)
        snapshots.clear_pins(here.segment)
        now = 3.0
        made.run(3)
        now = 1000.0
        made.run(4)
        share = 0.1 if made.memory().spare else 1.0
        assert 3 * share <= made.ckpt._interval.cost_s < 3 * share + 0.1


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_which_tier_is_used(here: Here, notes: Notes, tmp_path: Path) -> None:
    """Memory if it is newer than any checkpoint; else the disk, and then the snapshots are gone; `never` uses neither;
    `must` is content with a snapshot; what cannot be read is said, and the older state taken."""

    def resumed(**options: Any) -> tuple[int, str]:
        notes.kept.clear()
        with training(**options) as made:
            fields = next(f for kind, f in notes.kept if kind == "resumed")
            assert fields["step"] == made.start
            return made.start, fields["source"]

    with training() as made:
        made.run(3)
        made.ckpt.close()
        made.ckpt._saved = -1
    assert resumed() == (3, "disk")
    assert snapshots.newest_snapshot(here.segment) is None

    with training() as made:
        made.run(5)
    assert resumed(resume="must") == (5, "memory")
    record = snapshots.find(here.segment)
    assert record is not None
    with record.path(0).open("r+b") as file:
        file.write(b"\xff" * 8)
    assert resumed() == (3, "disk")
    warnings = [f["text"] for kind, f in notes.kept if kind == "warning"]
    assert len(warnings) == 1
    assert "snapshot of step 5" in warnings[0]

    with training() as made:
        made.run(6)
    assert resumed(resume="never") == (0, "start")
    assert snapshots.newest_snapshot(here.segment) is None
    with pytest.raises(NoUsableCheckpoint):
        resumed(resume="must")


def test_a_snapshot_of_another_run_is_ignored(here: Here, notes: Notes) -> None:
    """Its sidecar names a run that is not this one: said, and passed over."""
    on_ranks(1, lambda ranks: _rank(ranks, range(2)))
    found = snapshots.find(here.segment)
    assert found is not None
    data = found.path(0).read_bytes()
    found.path(0).write_bytes(data.replace(b'"run":"run"', b'"run":"now"'))

    assert on_ranks(1, lambda ranks: _rank(ranks, range(2)))[0][0] == 0
    assert any("another run" in f.get("text", "") for _, f in notes.kept)


def test_without_a_supervisor_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves go to disk, as ever, and shared memory is not touched."""
    monkeypatch.setattr(shm, "ROOT", tmp_path / "shm")
    ckpt = Checkpointer(model=nn.Linear(2, 2), directory=tmp_path / "c", every=1, snapshot_every=1)
    ckpt.restore()
    ckpt.step(1)
    ckpt.close()

    assert committed_steps(tmp_path / "c") == [1]
    assert not (tmp_path / "shm").exists()


def test_pace() -> None:
    """Every step at first; then so that the median cost is at most 1 % of the time."""
    pace = Pace()
    for step in range(9):
        pace.stepped(step * 0.1)
        pace.spent(0.0005)
    assert pace.every == 1
    for _ in range(9):
        pace.spent(0.0025)
    assert pace.every == 3
    pace.spent(100.0)
    assert pace.every == 3


def test_the_sidecar_is_plain_json(here: Here) -> None:
    """What is not finite is encoded as in the manifest, so any JSON reader takes it."""
    on_ranks(1, lambda ranks: _rank(ranks, range(1), extra={"worst": float("inf")}))
    found = snapshots.find(here.segment)
    assert found is not None
    record = found.record(0)
    text = found.path(0).read_bytes()[record.payload : record.payload + record.sidecar]
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["state"]["extra"] == {
        "worst": {"$float": "inf"}
    }


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_a_snapshot_gone_without_is_known_to_the_others(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that had no buffer says so on its board, or the others would keep theirs for it for ever."""
    with training() as made:
        made.run(2)
        made.copied()
        monkeypatch.setattr(made.memory().segment, "begin", lambda size, pin: None)
        made.run(3)
        made.copied()
        assert snapshots.boards(here.segment)[0].passed(0) == 3
        assert snapshots.newest_snapshot(here.segment) == 2


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_third_buffer_is_given_back(here: Here) -> None:
    """Once nothing is pinned any more its file is gone, and no mapping keeps its memory."""

    def mapped() -> int:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return len({line.split()[5] for line in lines if f"{here.segment}/rank0." in line})

    with training() as made:
        made.run(2)
        made.run(3, SAVE)
        made.run(6)
        made.copied()
        assert mapped() == 3
        snapshots.clear_pins(here.segment)
        made.run(9)
        made.copied()
        assert mapped() == 2
