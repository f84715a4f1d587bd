"""nanoGPT and its forks: the script's globals are its options (configurator.py), and `init_from` sets the start."""

from __future__ import annotations

import posixpath

from . import line
from .program import Program
from .protocol import Case, Plan, refusal

_KEY, _RESUME = "init_from", "resume"


class NanoGPT:
    name = "nanogpt"

    def knows(self, program: Program) -> bool:
        known = program.option(_KEY)
        return known is not None and known[0].kind == "configurator" and _RESUME in program.words.get(_KEY, ())

    def plan(self, case: Case) -> Plan | None:
        if (known := case.program.option(_KEY)) is None:
            return None
        if line.given(case.program, *known, case.arguments):
            return refusal(f"--{_KEY} was given: it stays as it is")
        # It reads only the file name that it writes. A file of another name is of no use to it.
        newest = next((each for each in case.checkpoints if posixpath.basename(each.path) == "ckpt.pt"), None)
        if newest is None:
            return None
        words = line.spelled(*known, _RESUME)
        # Placed behind a file of settings, which may also set the start.
        return Plan(words[0], words, last=True, checkpoint=newest)
