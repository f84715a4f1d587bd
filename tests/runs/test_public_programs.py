"""The best-known public programs, in small: killed once, with nothing typed, they go on from their newest save."""

from __future__ import annotations

import shlex

import pytest
import torch

from tests.support.frameworks import needs
from tests.support.public_programs import FILES, PROGRAMS, TOY
from tests.support.supervised import Run

ALWAYS = {"nanochat"}
NAMES = [pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.long]) for name in PROGRAMS]


@pytest.mark.parametrize("name", NAMES)
def test_goes_on(run: Run, name: str) -> None:
    """Killed at 34 and gone on from 30: what it saved there was loaded, and it ends with the bits of an undisturbed
    run, where its data are the same again."""
    program = PROGRAMS[name]
    needs(*program.needs)
    for file, text in FILES.items():
        (run.folder / file).parent.mkdir(parents=True, exist_ok=True)
        run.script(text, file)
    arguments = shlex.split(program.arguments)
    asked = "--nproc", "1", "--inject", "kill:rank=0@step=34", run.script(program.script, "train.py"), *arguments
    assert run.launch(*asked) == 0, run.warnings()
    assert [event["from_step"] for event in run.events("first_step")] == [0, 30], run.warnings()
    assert not run.events("started_over")
    if "toy." in program.script:
        toy: dict[str, object] = {}
        exec(TOY.replace("end.pt", str(run.folder / "whole.pt")), toy)
        toy["epochs"](0, lambda epoch: None)  # type: ignore[operator]
        whole, end = torch.load(run.folder / "whole.pt"), torch.load(run.folder / "end.pt")
        assert all(torch.equal(tensor, end[key]) for key, tensor in whole.items())
