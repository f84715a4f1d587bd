"""The Checkpointer in somebody's own loop."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.disks import Cut, FullDisk
from tests.support.jobs import ROOT, environment, on_ranks, same
from tests.support.training import Notes
from trainer.checkpoint import Checkpointer, CheckpointError, NoUsableCheckpoint, StateError
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.interval import Interval
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import committed_steps


def _loop(folder: Path, steps: int, die_at: int = -1) -> dict[str, Any]:
    """Five lines of adoption; draws from every generator; everything that it ends with."""
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
    seen: list[float] = []
    ckpt = Checkpointer(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        extra=lambda: {"seen": seen},
        directory=folder,
        every=3,
    )
    start = ckpt.restore()
    seen = list(ckpt.extra.get("seen", []))
    for step in range(start, steps):
        x = torch.randn(3, 4) * random.random() + np.random.rand()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scheduler.step()
        seen.append(loss.item())
        if step + 1 == die_at:
            raise Cut
        ckpt.step(step + 1, loss=loss)
    ckpt.close()
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "rate": scheduler.get_last_lr(),
        "seen": seen,
        "next": (torch.rand(3), random.random(), float(np.random.rand())),
    }


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning")
@pytest.mark.parametrize("die_at", range(1, 12))
def test_resume_is_exact(tmp_path: Path, die_at: int) -> None:
    """Weights, optimizer, scheduler, a GradScaler that skips, every generator: as if nothing had happened."""
    whole = _loop(tmp_path / "whole", 11)
    with pytest.raises(Cut):
        _loop(tmp_path / "cut", 11, die_at)

    assert same(_loop(tmp_path / "cut", 11), whole)


def _checkpointer(folder: Path, **options: Any) -> Checkpointer:
    return Checkpointer(model=nn.Linear(2, 2), directory=folder, **options)


def test_a_failed_save_does_not_stop_training(tmp_path: Path, notes: Notes, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk is full: a note and a line, older checkpoints stay, and the next save works."""
    ckpt = _checkpointer(tmp_path, every=1)
    ckpt.restore()
    ckpt.step(1)
    notes.disk = FullDisk(0)
    ckpt.step(2)
    notes.disk = DISK
    ckpt.step(3)

    assert committed_steps(tmp_path) == [1, 3]
    # On a slow disk a warning says what saves at every step cost.
    kinds = [kind for kind in notes.kinds() if kind != "warning"]
    assert kinds == ["resumed", "checkpoint_saved", "checkpoint_failed", "checkpoint_saved"]
    assert capsys.readouterr().err.splitlines()[0] == (
        "checkpoint 2 failed, training goes on: [Errno 28] No space left on device"
    )
    ckpt.close()


def test_a_failed_final_save_is_an_error(tmp_path: Path, notes: Notes) -> None:
    """A run does not end as if its last state were safe, and it is said what there is."""
    ckpt = _checkpointer(tmp_path, every=None)
    ckpt.restore()
    for step, there in ((1, "no checkpoint at all"), (3, "that of step 2")):
        ckpt.step(step)
        notes.disk = FullDisk(0)
        with pytest.raises(CheckpointError, match=f"step {step} could not be saved at the end.*{there}"):
            ckpt.close()
        notes.disk = DISK
        ckpt.step(step + 1)
        assert ckpt.save()


def test_sigterm_saves_and_ends_with_75(tmp_path: Path) -> None:
    """The signal only sets a flag; the next step() saves and raises SystemExit(75); close() gives the signal back."""
    before = signal.getsignal(signal.SIGTERM)
    ckpt = _checkpointer(tmp_path, every=None)
    ckpt.restore()
    ckpt.step(1)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        ckpt.step(2)
    ckpt.close()

    assert end.value.code == 75
    assert committed_steps(tmp_path) == [2]
    assert signal.getsignal(signal.SIGTERM) == before


def _wait_for_ever(pipe: Any) -> None:
    pipe.send("ready")
    signal.pause()


def test_forked_children_die_of_sigterm(tmp_path: Path) -> None:
    """A child forked from the loop, as DataLoader forks its workers, does not take the signal for the loop's."""
    ckpt = _checkpointer(tmp_path)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_wait_for_ever, args=(theirs,), daemon=True)
    child.start()
    assert ours.poll(60)
    child.terminate()
    child.join(60)
    code = child.exitcode
    child.kill()

    assert code == -signal.SIGTERM
    assert ckpt.wish()[0] is False
    ckpt.close()


def test_outside_the_main_thread(tmp_path: Path) -> None:
    """It works there; signals are left as they are."""
    before = signal.getsignal(signal.SIGTERM)
    done: list[int] = []

    def body() -> None:
        ckpt = _checkpointer(tmp_path)
        done.append(ckpt.restore())
        ckpt.step(1)
        ckpt.close()

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()

    assert done == [0]
    assert committed_steps(tmp_path) == [1]
    assert signal.getsignal(signal.SIGTERM) == before


def test_ranks_of_a_plain_loop_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three ranks was asked to stop: all raise at the same step, which is saved."""

    def body(ranks: Any) -> object:
        monkeypatch.setattr("trainer.checkpoint.checkpointer.this_group", Ranks)
        ckpt = _checkpointer(tmp_path, every=None)
        ckpt._ranks = ranks
        ckpt.restore()
        for step in range(9):
            if (ranks.rank, step) == (2, 4):
                ckpt._stop.is_set = True
            try:
                ckpt.step(step + 1)
            except SystemExit as end:
                return step + 1, end.code
        return None

    assert on_ranks(3, body) == [(5, 75)] * 3
    assert committed_steps(tmp_path) == [5]


def test_new_ranks_are_seeded_afresh_and_old_ones_go_on(tmp_path: Path, notes: Notes) -> None:
    """Saved by one rank, restored by another: its generators depend on the seed, its rank and the step, and it says
    so."""
    ckpt = _checkpointer(tmp_path)
    ckpt.restore()
    ckpt.step(3)
    ckpt.close()
    drawn = []
    for rank, seed in ((0, 1), (0, 2), (1, 1), (1, 1), (1, 2)):
        other = _checkpointer(tmp_path, seed=seed)
        other._ranks.rank = rank
        other._ranks.lead = lambda action: action()  # type: ignore[method-assign]
        assert other.restore() == 3
        drawn.append((torch.rand(1).item(), random.random(), float(np.random.rand())))
        other._stop.close()

    assert drawn[0] == drawn[1]
    assert drawn[2] == drawn[3]
    assert len({drawn[0], drawn[2], drawn[4]}) == 3
    assert any("freshly seeded" in fields.get("text", "") for _, fields in notes.kept)


def test_beats_and_notes(tmp_path: Path, notes: Notes) -> None:
    """Each step beats; a commit is noted with its step, size and time; so is where a run went on from."""
    for stop in (2, 4):
        ckpt = _checkpointer(tmp_path, every=2)
        for step in range(ckpt.restore(), stop):
            ckpt.step(step + 1, loss=torch.tensor(0.5 + step))
        ckpt.tell(total=stop)
        ckpt.close()

    assert notes.steps == [1, 2, 3, 4]
    losses = [(None, 0.5, 1), (None, 1.5, 2), (2, None, None), (None, 2.5, 3), (None, 3.5, 4), (4, None, None)]
    assert notes.numbers == losses
    assert notes.kinds() == ["resumed", "checkpoint_saved", "resumed", "checkpoint_saved"]
    assert [fields["step"] for _, fields in notes.kept] == [0, 2, 2, 4]
    assert [fields.get("source") for _, fields in notes.kept] == ["start", None, "disk", None]


def test_bad_checkpoints_are_noted(tmp_path: Path, notes: Notes, capsys: pytest.CaptureFixture[str]) -> None:
    """What was passed over is noted with its path, the reason and where it is now, and said in one line."""
    ckpt = _checkpointer(tmp_path, every=1)
    ckpt.restore()
    ckpt.step(1)
    ckpt.step(2)
    ckpt.close()
    bad = tmp_path / "step-00000002"
    (bad / "manifest.json").write_bytes(b"")
    notes.kept.clear()

    assert _checkpointer(tmp_path).restore() == 1
    kind, fields = notes.kept[0]
    assert kind == "checkpoint_bad"
    assert fields["path"] == str(bad)
    assert fields["moved_to"] == str(tmp_path / "quarantine" / "step-00000002-1")
    assert "manifest.json" in fields["reason"]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_cannot_be_saved_is_known_at_once(tmp_path: Path) -> None:
    """Extra that a checkpoint cannot hold fails in restore(), not at the first save hours later."""
    with pytest.raises(StateError, match="extra/when"):
        _checkpointer(tmp_path, extra={"when": object()}).restore()


def test_must_and_bad_options(tmp_path: Path) -> None:
    """resume=must without a checkpoint, and options that make no sense, are errors that say what is accepted."""
    with pytest.raises(NoUsableCheckpoint):
        _checkpointer(tmp_path, resume="must").restore()
    for options in ({"every": 0}, {"keep": 1}, {"resume": "maybe"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            _checkpointer(tmp_path, **options)


def test_steps_counted_by_others(tmp_path: Path) -> None:
    """The integers of numpy and torch are steps as any other; a fraction is refused at once."""
    ckpt = _checkpointer(tmp_path, every=1)
    ckpt.restore()
    for step in (np.int64(1), torch.tensor(2)):
        ckpt.step(step)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        ckpt.step(3.0)  # type: ignore[arg-type]
    ckpt.close()

    assert committed_steps(tmp_path) == [1, 2]
    assert _checkpointer(tmp_path).restore() == 2


def test_several_ranks_need_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made too early under torchrun, every rank would take itself for rank 0: an error says what to call first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CheckpointError, match="init_process_group"):
        _checkpointer(tmp_path)


def test_interval_follows_the_cost() -> None:
    """Soon at first, then by Young and Daly, and never more than 2 % of the time."""
    interval = Interval(since=100.0)
    assert (interval.due(105.9), interval.due(106.1)) == (False, True)
    interval.saved(200.0, 0.5)
    assert (interval.due(259.9), interval.due(260.1)) == (False, True)
    interval.saved(0.0, 100.0)
    assert (interval.due(4999.0), interval.due(5001.0)) == (False, True)


def test_the_package_loads_no_torch() -> None:
    """The supervisor reads, verifies and prunes checkpoints in an interpreter that may not import torch."""
    code = (
        "import sys; sys.modules['torch'] = None; import trainer.checkpoint, trainer.checkpoint.disk.store, "
        "trainer.checkpoint.disk.retention, trainer.checkpoint.format.manifest, trainer.checkpoint.format.plan, "
        "trainer.checkpoint.state.tree, trainer.checkpoint.format.shard, trainer.checkpoint.interval"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
