"""hydra: a relaunch writes into the folder of the first launch, not into one of a new date, so that a program which
looks for its own checkpoint there finds it: from the first relaunch on, also before anything was saved. Beside this,
its keys are options as any other's (generic.py)."""

from __future__ import annotations

from . import line
from .program import Option, Parser
from .protocol import Case

_KEY = "hydra.run.dir"


def pinned(case: Case) -> tuple[str, ...]:
    """The words that keep the folder of a hydra app; none for any other program, or where the user has chosen one."""
    folder = case.program.facts.get(_KEY)
    multirun = any(argument in ("-m", "--multirun") for argument in case.arguments)
    chosen = any(argument.lstrip("+").startswith(f"{_KEY}=") for argument in case.arguments)
    if not folder or multirun or chosen:
        return ()
    return line.spelled(Parser("hydra"), Option((_KEY,)), folder)
