"""The memory tier: a snapshot is the state of its step to the bit, whatever training does meanwhile."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.jobs import on_ranks, same
from tests.support.training import SAVE, TAKE, Here, Training, train, training
from trainer.checkpoint import Checkpointer
from trainer.checkpoint.memory import copier, image, memory, segment, snapshots
from trainer.checkpoint.memory.board import Board
from trainer.checkpoint.memory.tier import Wish
from trainer.rundir.machine.shm import board_path

STEPS = 30


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No copy that overlaps begins before this is set: it is always still to be made while the next step computes."""
    event, copy = threading.Event(), copier.Copier.copy

    def wait_and_copy(*given: Any) -> None:
        event.wait(60)
        event.clear()
        copy(*given)

    monkeypatch.setattr(copier.Copier, "copy", wait_and_copy)
    return event


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_every_step_resumes_to_the_same_bits(here: Here, tmp_path: Path, late: threading.Event) -> None:
    """Each step's snapshot, copied as late as it can be, goes on to the same end as the run that was not
    interrupted."""
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
    """A parameter's storage is replaced, state is loaded, a group's number, a buffer, the extra's size changed between
    two snapshots: the second one has it."""
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
def test_weights_that_change_before_they_are_copied(here: Here, late: threading.Event) -> None:
    """Between a step and the next one of the optimizer (an average, clamping): that snapshot is not kept. From the next
    on, such weights are copied before training goes on, so they are those of the step."""
    with training() as made:
        weight, taken = made.model[0].weight.detach(), {}
        for step in range(1, 5):
            made.backward()
            made.update()
            made.ckpt.step(step, TAKE)
            taken[step] = weight.clone()
            if step > 1:
                weight.mul_(0.5)
            late.set()
            made.copied()
            torn = step == 2 and made.memory().spare
            assert snapshots.newest_snapshot(here.segment) == (1 if torn else step)
        with training() as other:
            assert other.start == 4
            assert same(other.model[0].weight.detach(), taken[4]) and not same(taken[4], weight)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_the_plan_is_kept_while_nothing_moves(here: Here) -> None:
    """After the first steps no plan is made anew, though extra has other tensors and numbers each time."""
    with training() as made:
        made.run(25)
        image = made.memory()._planner.image
        made.mean = made.mean.clone()
        made.run(30)
        assert made.memory()._planner.image is image


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


def test_the_sidecar_is_plain_json(here: Here) -> None:
    """What is not finite is encoded as in the manifest, so any JSON reader takes it."""
    on_ranks(1, lambda ranks: train(ranks, range(1), extra={"worst": float("inf")}))
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
    monkeypatch.setattr(memory, "_LATE_S", 0.0)
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


@pytest.mark.parametrize("here", [False], ids=["blocking"], indirect=True)  # else it waits for the copy
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
def test_another_optimizer_steps_while_a_snapshot_is_taken(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, as a learner of its own may: the buffer that is being filled is not taken for a free one, and
    each snapshot is whole. What goes wrong in getting a buffer ready does not reach whoever steps."""
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    fill = image.Image.fill

    def beside(self: image.Image, *given: Any) -> None:
        assert given[0].slot not in Board(board_path(here.segment, 0)).records(), "a snapshot is written over"
        stepping = threading.Thread(target=other.step)
        stepping.start()
        stepping.join()
        fill(self, *given)

    with training() as made:
        made.run(3)
        monkeypatch.setattr(image.Image, "fill", beside)
        for step in range(3, 7):
            made.run(step + 1)
            made.copied()
            assert snapshots.newest_snapshot(here.segment) == step + 1
            _assert_current(made, here, step + 1)
        monkeypatch.setattr(segment.Segment, "prepare", lambda self: 1 / 0)
        made.run(8)
        _assert_current(made, here, 8)
