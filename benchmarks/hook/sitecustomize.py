"""Says when a process's first optimizer steps, from outside: for programs that know nothing of it, on every side alike.

On the PYTHONPATH of what is measured. Each step appends one record (`RECORD`: CLOCK_MONOTONIC seconds, rank, pid, steps
done as the optimizer's own state counts them) to the file that BENCH_STEPS names: one write() of about 2 µs. torch is
not imported for its sake, and a process that was forked after the import writes under its own pid.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
import time

TYPE_CHECKING = False  # as in typing, which is not imported in every process for it
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

RECORD = struct.Struct("<dqqq")
_MODULE = "torch.optim.optimizer"


class _Steps:
    """The count of one process; in a fork it begins anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = -1

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        now = time.monotonic()
        if self.pid != os.getpid():
            self.pid = os.getpid()
            self.rank = int(os.environ.get("RANK", "0"))
            self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self.optimizer = optimizer
            self.done = 0
        if optimizer is self.optimizer:
            # A restore may come after the first step, which then was one to warm up.
            told = _steps_of(optimizer)
            self.done = self.done + 1 if told is None else told
            os.write(self.fd, RECORD.pack(now, self.rank, self.pid, self.done))


def _steps_of(optimizer: Any) -> int | None:
    """The steps that the optimizer's own state counts. None if it does not count, or on a device: to look would wait
    for it."""
    for state in optimizer.state.values():
        if "step" in state:
            step = state["step"]
            return None if getattr(step, "is_cuda", False) else int(step)
    return None


class _AfterImport:
    """A finder that finds nothing; it registers the hook once the module that has it was executed by its own loader."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                module.register_optimizer_step_post_hook(_Steps(os.environ["BENCH_STEPS"]))

            loader.exec_module = exec_module
        return spec


if "BENCH_STEPS" in os.environ:
    sys.meta_path.insert(0, _AfterImport())
