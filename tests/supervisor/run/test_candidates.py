"""The saves that a program is told to go on from, and that SUPERVISE_RESUME_FROM names: by journals and real files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from supervisor.run.candidates import candidates
from supervisor.run.own_saves import Journals, newest_whole
from trainer.adapters.choice import choose
from trainer.adapters.handed.trainings import TRIAL
from trainer.adapters.program import Program
from trainer.adapters.protocol import Case
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import identity_of


class Saver:
    """Writes files as a rank's saves would, and its journal. Each save is later than those before."""

    def __init__(self, folder: Path) -> None:
        self.out, self.run = folder / "out", RunDir(folder / "run")
        self.journals = Journals(self.run)
        self._number = 0

    def save(
        self,
        name: str,
        step: int,
        holds: Iterable[str] = (),
        *,
        rank: int = 0,
        attempt: int = 0,
        how: str = "",
        training: int = 0,
    ) -> Path:
        """`name` is saved at `step`, beside its place and renamed. `holds`: its top keys. None if it is no dict."""
        path, self._number = self.out / name, self._number + 1
        path.parent.mkdir(parents=True, exist_ok=True)
        (new := path.with_name("new")).write_bytes(os.urandom(100))
        new.rename(path)
        known = identity_of(str(path))
        assert known is not None
        about = {"n": self._number, "path": str(path), "step": step, "here": step, "how": how or "torch.save"}
        about |= {"mono": float(self._number)} | ({"holds": [*holds]} if holds else {})
        about |= {"training": training} if training else {}
        done = {key: getattr(known, key) for key in ("size", "content", "inode", "mtime_ns")}
        journal = self.run.attempt(attempt).saves(rank)
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a") as file:
            for line in ({"kind": "save_begun", **about}, {"kind": "save_done", **about, **done}):
                file.write(json.dumps(line) + "\n")
        return path

    def found(self) -> list[str]:
        """The names of the checkpoints that the program may be told of, the best first."""
        return [os.path.relpath(each.path, self.out) for each in candidates(self.journals, 1)]

    def offered(self) -> str | None:
        """The name of the file in SUPERVISE_RESUME_FROM."""
        whole = newest_whole(self.journals)
        return os.path.relpath(whole.path, self.out) if whole is not None else None


def test_all_ranks_save_to_one_path(tmp_path: Path) -> None:
    """The file is that of the rank that came last, whichever that was."""
    for last in (0, 1):
        made = Saver(tmp_path / str(last))
        for step in (10, 20):
            for rank in (1 - last, last):
                made.save("ckpt.pt", step, ("model", "optimizer"), rank=rank)
        assert [(each.path, each.step) for each in candidates(made.journals, 2)] == [(str(made.out / "ckpt.pt"), 20)]
        assert made.offered() == "ckpt.pt"


FULL = ("epoch", "model", "optimizer")
WEIGHTS = ("bias", "weight")
STATE = ("param_groups", "state")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    """A list, a tensor, a model, weights: whatever is saved later, also in a later attempt, the checkpoint goes first,
    and the others are known to be of no use."""
    for name, holds in (("losses.pt", ()), ("model.safetensors", ()), ("weights.pt", WEIGHTS), ("samples_25.pt", ())):
        for attempt in (0, 1):
            made = Saver(tmp_path / f"{name}{attempt}")
            made.save("ckpt.pt", 20, FULL)
            made.save(name, 25, holds, attempt=attempt)
            found = candidates(made.journals, 1)
            assert [(each.path, each.resumable) for each in found] == [
                (str(made.out / "ckpt.pt"), True),
                (str(made.out / name), False),
            ]
            assert made.offered() == "ckpt.pt"


def test_a_checkpoint_that_is_gone(tmp_path: Path) -> None:
    """What lies beside it is no better for that."""
    made = Saver(tmp_path)
    made.save("ckpt.pt", 20, FULL).unlink()
    made.save("losses.pt", 25)
    assert [(each.path, each.resumable) for each in candidates(made.journals, 1)] == [
        (str(made.out / "losses.pt"), False)
    ]
    assert made.offered() == "losses.pt"


def test_saves_of_unknown_kind(tmp_path: Path) -> None:
    """Where nothing better is known, the newest is the one: of whole objects, of safetensors, beside an optimizer's
    file, and with a counter before plain weights."""
    made = Saver(tmp_path / "objects")
    for step in (10, 20):
        made.save(f"trainer_{step}.pt", step)
        made.save(f"optim_{step}.pt", step, ("optimizer", "step"))
    assert made.found()[0] == "trainer_20.pt" and candidates(made.journals, 1)[0].resumable is None

    made = Saver(tmp_path / "counted")
    made.save("ckpt.pt", 10, ("model", "step"))
    made.save("weights.pt", 20, WEIGHTS)
    assert [each.resumable for each in candidates(made.journals, 1)] == [True, False] and made.found()[0] == "ckpt.pt"


def test_lightning_without_an_optimizer(tmp_path: Path) -> None:
    """Its counters do not make a file of weights one to resume from."""
    made, weights = Saver(tmp_path), ("epoch", "global_step", "pytorch-lightning_version", "state_dict")
    made.save("weights.ckpt", 10, weights, how="lightning")
    assert [each.resumable for each in candidates(made.journals, 1)] == [False]
    made.save("full.ckpt", 20, ("optimizer_states", *weights), how="lightning")
    made.save("weights.ckpt", 30, weights, how="lightning")
    assert [each.resumable for each in candidates(made.journals, 1)] == [True, False]
    assert made.found()[0] == "full.ckpt" == made.offered()


@pytest.mark.parametrize("state", [("optimizer.pt", STATE), ("optim_{}.pt", ()), ("rest.pt", ("optimizer", "step"))])
def test_a_folder_with_the_optimizer_beside_the_model(tmp_path: Path, state: tuple[str, tuple[str, ...]]) -> None:
    """The folder is the checkpoint, also where it was renamed, once its last file is there; and it is not when one of
    them was written over."""
    made, (name, holds) = Saver(tmp_path), state
    for step in (10, 20):
        made.save(f"tmp_step_{step}/model.safetensors", step)
        made.save(f"tmp_step_{step}/{name.format(step)}", step, holds)
        made.save(f"tmp_step_{step}/sched.pt", step, ("last_epoch",))
        (made.out / f"tmp_step_{step}").rename(made.out / f"step_{step}")
    made.save("step_30/model.safetensors", 30)
    found = candidates(made.journals, 1)
    assert [os.path.relpath(each.path, made.out) for each in found] == [
        "step_20",
        "step_10",
        "step_30/model.safetensors",
    ]
    assert [(each.kind, each.number, each.resumable) for each in found[:2]] == [
        ("folder", 20, True),
        ("folder", 10, True),
    ]
    made.save(f"step_30/{name.format(30)}", 30, holds)
    assert made.found() == ["step_20", "step_10"]
    made.save("step_30/sched.pt", 30, ("last_epoch",))
    assert made.found() == ["step_30", "step_20", "step_10"]
    made.save("step_30/model.safetensors", 30, attempt=1)
    assert made.found() == ["step_20", "step_10", "step_30/model.safetensors"]


def test_a_numbered_folder_with_whole_checkpoints(tmp_path: Path) -> None:
    """A file that has all is the one, whatever lies beside it; and so are files of several steps."""
    made = Saver(tmp_path / "whole")
    made.save("epoch_1/ckpt.pt", 10, FULL)
    made.save("epoch_1/optimizer.pt", 10, STATE)
    assert made.found()[0] == "epoch_1/ckpt.pt"

    made = Saver(tmp_path / "several")
    for step in (10, 20):
        made.save(f"checkpoint_2/model_{step}.pt", step, WEIGHTS)
        made.save(f"checkpoint_2/optim_{step}.pt", step, STATE)
    parts = [f"checkpoint_2/{part}_{step}.pt" for part in ("model", "optim") for step in (10, 20)]
    assert sorted(made.found()) == parts


@pytest.mark.parametrize(
    ("beside", "whole"),
    [
        ("scheduler.pt", False),
        ("optimizer.pt", True),
        ("optimizer.bin", True),
        ("optimizer_0", True),
        ("global_step10", True),
    ],
)
def test_a_trainers_folder_without_an_optimizer(tmp_path: Path, beside: str, whole: bool) -> None:
    """save_only_model: the Trainer would go on with a new optimizer, and say nothing."""
    made = Saver(tmp_path)
    made.save("checkpoint-10/model.safetensors", 10, how="transformers.Trainer")
    made.save("checkpoint-10/trainer_state.json", 10, how="transformers.Trainer").write_text('{"global_step": 10}')
    made.save(f"checkpoint-10/{beside}", 10, STATE)
    found = candidates(made.journals, 1)
    assert [(each.kind, each.resumable) for each in found] == [("huggingface", whole)]
    choice = choose(Case(Program(uses=frozenset({"huggingface"})), ("train.py",), found))
    assert choice is not None and choice.plan.refused is not whole
    assert whole or "none of its checkpoints has the state of an optimizer" in choice.plan.say


def test_attempts_without_a_save(tmp_path: Path) -> None:
    """They hide nothing, however many; and what the newest attempt saves is seen, though it had not saved before."""
    made = Saver(tmp_path)
    made.save("10.ckpt", 10, FULL, attempt=2)
    for attempt in range(100):
        made.run.attempt(attempt).path.mkdir(parents=True, exist_ok=True)
    assert [*made.journals.newest_first()] == [2] and made.found() == ["10.ckpt"]
    made.save("20.ckpt", 20, FULL, attempt=99)
    assert [*made.journals.newest_first()] == [99, 2] and made.found() == ["20.ckpt", "10.ckpt"]
    assert made.offered() == "20.ckpt"


def test_a_training_that_ended_long_ago(tmp_path: Path) -> None:
    """However much a later one has saved and rotated since, also in later attempts, its newest one is found."""
    made = Saver(tmp_path)

    def rotated(training: int, attempt: int, saves: int) -> None:
        for step in range(1, saves + 1):
            newest = made.save(f"{training}/{attempt}-{step}.ckpt", step, FULL, attempt=attempt, training=training)
            if step < saves:
                newest.unlink()

    rotated(1, 0, 60)
    rotated(2, 0, 1000)
    rotated(2, 1, 60)
    assert made.found() == ["2/1-60.ckpt", "2/0-1000.ckpt", "1/0-60.ckpt"]
    for step in range(1, 20):
        made.save(f"3/{step}.ckpt", step, FULL, attempt=2, training=3)
    assert made.found()[:5] == [*(f"3/{step}.ckpt" for step in range(19, 14, -1))]
    assert made.found()[5:] == ["2/1-60.ckpt", "2/0-1000.ckpt", "1/0-60.ckpt"]


def test_what_was_rotated_away_hides_nothing(tmp_path: Path) -> None:
    made = Saver(tmp_path)
    kept = made.save("10.ckpt", 10, FULL)
    for step in range(11, 100):
        made.save(f"{step}.ckpt", step, FULL).unlink()
    assert made.found() == [kept.name]


def test_what_a_trial_of_a_search_has_saved(tmp_path: Path) -> None:
    """It is for no other attempt, and hides nothing."""
    made = Saver(tmp_path)
    made.save("10.ckpt", 10, FULL, training=1)
    made.save("20.ckpt", 20, FULL, training=TRIAL)
    assert made.found() == ["10.ckpt"]
