"""accelerate without an option to resume: nothing can be done from outside, and the plan says so.

If a loop counts its own steps, `Accelerator.load_state` behind its back would give it the state of one step and the
data of another. generic.py serves a program that has an option, with the folder that `save_state` made.
"""

from __future__ import annotations

from .program import Program
from .protocol import Case, Plan, refusal


class Accelerate:
    name = "accelerate"

    def knows(self, program: Program) -> bool:
        return "accelerate" in program.imports

    def plan(self, case: Case) -> Plan | None:
        if not any(each.kind == self.name for each in case.checkpoints):
            return None
        return refusal("it saves by Accelerator.save_state, and has no option to go on from that: it begins anew")
