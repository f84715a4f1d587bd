"""rsl_rl, as in Isaac Lab. A resumed program makes all of its iterations again, so it gets the number of those left. It
also gets the run to load, since each launch has a folder of its own."""

from __future__ import annotations

import posixpath

from . import line
from .program import Option, Parser, Program
from .protocol import Case, Plan, refusal

_NAMES = ("resume", "load_run", "checkpoint", "max_iterations")


class RslRl:
    name = "rsl_rl"

    def knows(self, program: Program) -> bool:
        return all(program.option(name) for name in _NAMES)

    def plan(self, case: Case) -> Plan | None:
        options = [known for name in _NAMES if (known := case.program.option(name)) is not None]
        resume, run, file, iterations = options
        for known in (resume, run, file):
            if line.given(case.program, *known, case.arguments):
                return refusal(f"{known[1].names[-1]} was given: it stays as it is")
        newest = next((each for each in case.checkpoints if each.number >= 0), None)
        if newest is None:
            return None
        wanted = line.value(*iterations, case.arguments)
        if wanted is None or not wanted.isdecimal():
            return refusal("how many iterations it makes in all is not known: give it --max_iterations")
        left = int(wanted) - newest.number
        if left <= 0:
            return refusal(f"all of its {wanted} iterations are done")
        folder, name = posixpath.split(newest.path)
        words = (*_flag(*resume), *line.spelled(*run, posixpath.basename(folder)), *line.spelled(*file, name))
        # Placed behind the user's value, which it replaces.
        words = (*words, *line.spelled(*iterations, str(left)))
        return Plan(" ".join(words) + ", approximately: it counts anew", words, last=True, checkpoint=newest, warn=True)


def _flag(parser: Parser, option: Option) -> tuple[str, ...]:
    return line.spelled(parser, option, None if option.is_flag else "True")
