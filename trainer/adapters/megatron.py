"""Megatron-LM and programs built on it: `--load` gets the folder that the program saves to, unless the user said what
to load."""

from __future__ import annotations

import re

from . import line
from .program import Program
from .protocol import Case, Plan, refusal

_ITERATION = re.compile(r"(.*)/iter_\d{7}(/.*)?")


class Megatron:
    name = "megatron"

    def knows(self, program: Program) -> bool:
        return all(program.option(name) for name in ("save", "load", "no_load_optim", "finetune"))

    def plan(self, case: Case) -> Plan | None:
        for name in ("load", "finetune", "no_load_optim", "no_load_rng"):
            known = case.program.option(name)
            if known is not None and line.given(case.program, *known, case.arguments):
                return refusal(f"{known[1].names[-1]} was given: it stays as it is")
        found = ((each, _ITERATION.fullmatch(each.path)) for each in case.checkpoints)
        newest = next(((each, match[1]) for each, match in found if match), None)
        load = case.program.option("load")
        if newest is None or load is None:
            return None
        words = line.spelled(*load, newest[1])
        return Plan(words[0], words, load[0].after, checkpoint=newest[0])
