"""hydra: a relaunch writes into the folder of the first launch, not into one with a new date. So a program that looks
for its own checkpoint there finds it. This holds from the first relaunch on, even before anything was saved. Otherwise
its keys are options like any others (generic.py)."""

from __future__ import annotations

from . import line
from .program import Option, Parser
from .protocol import Case

_KEY = "hydra.run.dir"


def pinned(case: Case) -> tuple[str, ...]:
    """The words that keep the folder of a hydra app. None for another program, or if the user has chosen a folder."""
    folder = case.program.facts.get(_KEY)
    multirun = any(argument in ("-m", "--multirun") for argument in case.arguments)
    chosen = any(argument.lstrip("+").startswith(f"{_KEY}=") for argument in case.arguments)
    if not folder or multirun or chosen:
        return ()
    return line.spelled(Parser("hydra"), Option((_KEY,)), folder)
