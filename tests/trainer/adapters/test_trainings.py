"""Which checkpoint each training of a program gets, of those that its trainings have saved in an earlier attempt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.adapters.handed.huggingface import HUGGING_FACE
from trainer.adapters.handed.lightning import LIGHTNING
from trainer.adapters.handed.trainings import TRIAL, Earlier, Trainings, fact, of
from trainer.adapters.protocol import Orders

A, B = "/out/a", "/out/b"
A1, A2, B1 = f"{A}/10.ckpt", f"{A}/20.ckpt", f"{B}/10.ckpt"
APART = Earlier((B1, A2, A1), {A1: 1, A2: 1, B1: 2}, {1: A, 2: B})
"""Each training has a folder of its own."""
ONE = Earlier((A2, A1), {A1: 1, A2: 2}, {1: A, 2: A})
"""They have one for all."""
UNSAVED = Earlier((A2, A1), {A1: 1, A2: 1}, {1: A, 2: B})
"""The second one had saved nothing."""


def got(earlier: Earlier, *trainings: Sequence[str]) -> list[tuple[int, str | None]]:
    process = Trainings()
    begun = [process.begin(folders, earlier) for folders in trainings]
    assert not any(each.doubtful for each in begun)
    return [(each.number, each.checkpoint) for each in begun]


@pytest.mark.parametrize(
    "earlier", [APART, Earlier(APART.offers, APART.calls), Earlier(APART.offers, APART.calls, {1: A})]
)
def test_each_has_a_folder(earlier: Earlier) -> None:
    """Each gets its own newest, also if the program leaves out what is done, and whatever facts were kept."""
    assert got(earlier, [A], [B], ["/out/c"]) == [(1, A2), (2, B1), (3, None)]
    assert got(earlier, [B], ["/out/c"]) == [(2, B1), (3, None)]


def test_one_folder_for_all() -> None:
    assert got(ONE, [A], [A], [A]) == [(1, A1), (2, A2), (3, None)]
    unsaved = Earlier(UNSAVED.offers, UNSAVED.calls, {1: A, 2: A})
    assert got(unsaved, [A], [A]) == [(1, A2), (2, None)]


def test_one_that_had_saved_nothing() -> None:
    """It begins anew, also if the one before it is left out."""
    assert got(UNSAVED, [A], [B]) == [(1, A2), (2, None)]
    assert got(UNSAVED, [B]) == [(2, None)]


def test_folders_that_are_not_known() -> None:
    """A logger chooses them. The number tells; a checkpoint without one is of the first training."""
    assert got(ONE, [], [], []) == [(1, A1), (2, A2), (3, None)]
    assert got(Earlier((A2, A1)), [], []) == [(1, A2), (2, None)]


def test_the_same_trainer_trains_again() -> None:
    """By then its folder is known, and is that of the first training, too."""
    process = Trainings()
    earlier = Earlier((A2, A1), {A1: 1, A2: 1}, {1: "", 2: A})
    assert process.begin([], earlier).checkpoint == A2
    process.ended([A])
    again = process.begin([A], earlier)
    assert (again.checkpoint, again.doubtful) == (None, "")


@pytest.mark.parametrize(
    ("earlier", "folders"),
    [
        (Earlier((A2, A1), {A1: 1, A2: 2}), [[B], [B], [A]]),  # one folder of two trainings, and neither is this one
        (Earlier((B1, A1), {A1: 1, B1: 2}), [["/out/new"]]),  # a new folder: by its number it would be the first one
    ],
)
def test_nobody_can_tell(earlier: Earlier, folders: list[list[str]]) -> None:
    process = Trainings()
    begun = [process.begin(each, earlier) for each in folders][-1]
    assert begun.checkpoint is None and begun.doubtful in earlier.offers


def test_a_folder_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    offer = str(tmp_path / "link/10.ckpt")
    assert got(Earlier((offer,), {offer: 1}), [str(tmp_path / "real")]) == [(1, offer)]


def test_facts() -> None:
    facts = {fact("lightning", 1): A, fact("lightning", 12): "", "lightning.x": "1", "huggingface.1": B}
    assert of(facts, "lightning") == {1: A, 12: ""}


class Trainer:
    """As Lightning's."""

    def __init__(self, folder: str) -> None:
        self.callbacks: list[object] = []
        self.checkpoint_callbacks = [SimpleNamespace(dirpath=folder), SimpleNamespace()]

    def fit(self, model: Any, train: Any = None, val: Any = None, data: Any = None, ckpt_path: Any = None) -> Any:
        return ckpt_path


def test_a_doubt_is_told() -> None:
    """The program is handed nothing, and people are told once; what it asks for itself it gets."""
    warned: list[str] = []
    began: list[int] = []
    orders = Orders((B1, A1), trainings={A1: 1, B1: 2}, warn=warned.append, begins=began.append)
    module: Any = SimpleNamespace(Trainer=type("Hooked", (Trainer,), {"fit": Trainer.fit}))
    LIGHTNING.hooks["lightning.pytorch.trainer.trainer"](module, orders)
    assert module.Trainer("/out/new").fit("model") is None
    assert len(warned) == 1 and A1 in warned[0]
    assert module.Trainer(B).fit("model") == B1
    assert module.Trainer("/out/other").fit("model", ckpt_path="its own") == "its own"
    assert began == [1, 2, 3] and len(warned) == 1


class LearningRateFinder:
    """As Lightning's, by the names that are looked at."""

    def on_fit_start(self) -> None: ...


class BatchSizeFinder(LearningRateFinder):
    def on_fit_start(self) -> None: ...


class Milestones(LearningRateFinder):
    """Of a program: it searches later."""

    def on_fit_start(self) -> None: ...


@pytest.mark.parametrize(
    ("finder", "left", "handed"),
    [(LearningRateFinder(), 0, A1), (BatchSizeFinder(), 1, None), (Milestones(), 1, A1), (SimpleNamespace(), 1, A1)],
)
def test_a_search_as_the_training_begins(finder: object, left: int, handed: str | None) -> None:
    """Lightning forgets the checkpoint after it. That for a rate is left out; with that for a size nothing is handed
    over, and people are told."""
    warned: list[str] = []
    seen: list[int] = []

    class Hooked(Trainer):
        def fit(self, model: Any, train: Any = None, val: Any = None, data: Any = None, ckpt_path: Any = None) -> Any:
            seen.append(len(self.callbacks))
            return ckpt_path

    LIGHTNING.hooks["lightning.pytorch.trainer.trainer"](
        SimpleNamespace(Trainer=Hooked),  # type: ignore[arg-type]
        Orders((A1,), trainings={A1: 1}, warn=warned.append),
    )
    trainer = Hooked(A)
    trainer.callbacks = [finder]
    assert trainer.fit("model") == handed and seen == [left] and trainer.callbacks == [finder]
    assert [A1 in each for each in warned] == [True] * (handed is None)
    trainer.fit("model")
    assert seen == [left, 1]


def test_what_the_run_has_saved_is_read_whatever_it_holds(tmp_path: Path) -> None:
    """Lightning 2.6 refuses a file with an object among its hyperparameters, unless it is told to trust it."""
    (offer := tmp_path / "10.ckpt").touch()

    class Newer(Trainer):
        def fit(
            self,
            model: Any,
            train: Any = None,
            val: Any = None,
            data: Any = None,
            ckpt_path: Any = None,
            weights_only: Any = None,
        ) -> Any:
            return ckpt_path, weights_only

    orders = Orders((str(offer),), trainings={str(offer): 1})
    module: Any = SimpleNamespace(Trainer=Newer)
    LIGHTNING.hooks["lightning.pytorch.trainer.trainer"](module, orders)
    assert Newer(str(tmp_path)).fit("model") == (str(offer), False)
    assert Newer(str(tmp_path)).fit("model") == (None, None)
    assert Newer(A).fit("model", ckpt_path="its own") == ("its own", None)


def test_a_trial_of_a_search() -> None:
    """It is none of the program's trainings, and is handed nothing: another attempt draws other hyperparameters. People
    are told once that the search begins anew."""

    class Searching:
        args = SimpleNamespace(output_dir=A)

        def train(self, resume_from_checkpoint: Any = None, trial: Any = None) -> Any:
            return resume_from_checkpoint

    warned: list[str] = []
    began: list[int] = []
    facts: dict[str, str] = {}
    for kept in ({}, facts):
        orders = Orders((A1,), kept, {A1: 1}, fact=facts.__setitem__, begins=began.append, warn=warned.append)
        module: Any = SimpleNamespace(Trainer=type("Hooked", (Searching,), {"train": Searching.train}))
        HUGGING_FACE.hooks["transformers.trainer"](module, orders)
        trainer = module.Trainer()
        assert [trainer.train(trial={"lr": 1}), trainer.train(None, {"lr": 2}), trainer.train()] == [None, None, A1]
        assert began == [TRIAL, 0, TRIAL, 0, 1] and len(warned) == (kept is facts)
        began.clear()
