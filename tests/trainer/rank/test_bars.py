"""How many steps a program will do, told by its tqdm bar."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.frameworks import needs
from tests.support.supervised import Run
from trainer.rank.hooks.bars import Bars, loss_in

SCRIPT = """
import sys, torch
from tqdm import tqdm
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
def step():
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(80, 4)), batch_size=2)
if sys.argv[1] == "range":
    for n in (bar := tqdm(range(120), mininterval=0)):
        step()
        bar.set_postfix(lr=0.1, loss=f"{n / 100:.2f}")
elif sys.argv[1] == "own":
    bar = tqdm(total=120, mininterval=0)
    for _ in range(120):
        step()
        bar.update()
else:
    for _ in tqdm(range(3), mininterval=0) if sys.argv[1] == "passes" else range(3):
        for _ in tqdm(loader, mininterval=0, leave=False):
            step()
"""


@pytest.mark.parametrize(("how", "total"), [("range", 120), ("own", 120), ("passes", 120), ("unknown", None)])
def test_a_program_with_a_bar(run: Run, how: str, total: int | None) -> None:
    """A bar over a range, one that the program moves, one in another. One pass of nobody knows how many tells
    nothing."""
    needs("tqdm")
    assert run.launch(run.script(SCRIPT), how) == 0, run.warnings()
    told = json.loads(run.cli("status", "run", "--json").stdout)
    assert (told["total"], told["loss"]) == (total, 1.19 if how == "range" else None)


class Bar:
    """What is read of a tqdm."""

    disable = False

    def __init__(self, iterable: object, total: int | None) -> None:
        self.iterable, self.total, self.n = iterable, total, 0


def test_the_loss_behind_a_bar() -> None:
    """That of the training, as a number or as text. A tensor is not asked: it may be on a GPU."""
    assert loss_in({"lr": 1.0, "loss": 0.25}) == loss_in({"train/loss": "0.25"}) == 0.25
    assert loss_in({"val_loss": 0.5, "loss": torch.ones(1)}) is None


def test_only_a_bar_that_counts_the_steps_is_believed() -> None:
    """Not one of files, or of micro-batches, nor one that does not know its end; a run that goes on counts from where
    it is."""
    for each, stride, told in ((range(90), 1, 1090), (range(400), 4, None), (None, 1, 1090), ([0] * 90, 1, None)):
        bars, bar = Bars(), Bar(each, 90 if each is None else len(each))
        bars.made(bar)
        found = set()
        for n in range(40):
            bar.n = n * stride
            found.add(bars.total(1000 + n + 1))
        assert found - {None} == ({told} if told else set())
    bars, bar = Bars(), Bar(range(10), None)
    bars.made(bar)
    assert {bars.total(n) for n in range(40)} == {None}
    assert Bars().total(1) is None
