"""The trainer, with a signal to itself after a step: DYING="KILL 7 1" is SIGKILL on rank 1 once 7 steps are done."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from trainer.__main__ import main
from trainer.rank import progress


class Dying(progress.Progress):
    def step(self, done: int, optimizer: Any = None) -> None:
        name, step, rank = os.environ["DYING"].split()
        if done == int(step) and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


if __name__ == "__main__":
    progress.install(Dying())
    sys.exit(main())
