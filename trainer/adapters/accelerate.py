"""accelerate without an option for it: nothing can be done from outside, and that is said.

`Accelerator.load_state` behind the back of a loop that counts its own steps would give it the state of one step and the
data of another. A program that has an option is served by generic.py, with the folder that `save_state` has made.
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
