"""torchtune's recipes (0.6): keys of their configuration say to resume, and from which files of the output folder."""

from __future__ import annotations

import posixpath
import re

from .program import Program
from .protocol import Case, Plan, refusal

_RESUME, _FILES = "resume_from_checkpoint", "checkpointer.checkpoint_files"
_EPOCH = re.compile(r"epoch_\d+")


class Torchtune:
    name = "torchtune"

    def knows(self, program: Program) -> bool:
        return self.name in program.imports

    def plan(self, case: Case) -> Plan | None:
        if any(argument.startswith(f"{_RESUME}=") for argument in case.arguments):
            return refusal(f"{_RESUME} was given: it stays as it is")
        # It is written last, over the one of the epoch before. So the model's files must be of its step.
        state = next((each for each in case.checkpoints if posixpath.basename(each.path) == "recipe_state.pt"), None)
        if state is None:
            return None
        out = posixpath.dirname(posixpath.dirname(state.path))
        parts = [(*posixpath.split(each.path), each.step) for each in case.checkpoints]
        files = [
            f"{posixpath.basename(folder)}/{name}"
            for folder, name, step in parts
            if step == state.step and posixpath.dirname(folder) == out and _EPOCH.fullmatch(posixpath.basename(folder))
        ]
        if not files:
            return refusal("the weights of its newest recipe_state.pt are not there")
        words = [f"{_RESUME}=True"]
        if not any("adapter_model" in each for each in files):
            # With LoRA it finds the adapter itself, and the weights are those that it began with.
            words.append(f"{_FILES}=[{','.join(sorted(files))}]")
        return Plan(" ".join(words), tuple(words), last=True, checkpoint=state)
