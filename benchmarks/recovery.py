"""Recovery: SIGKILL of a rank to the first new optimizer step, the built-in GPT under supervise and under torchrun.

The same module with the same flags on every side; it resumes from its own checkpoints on every side. With 10 kills a side it
takes about 3 minutes.

python benchmarks/recovery.py [--kills 10] [--gap 4] [--model small|default] [--peer nvrx|torchrun-shared-store] [--json FILE]
"""

from __future__ import annotations

import random

import common
import sides
from kills import compare


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--kills", {"type": int, "default": 10, "help": "on each side"}),
        ("--gap", {"type": float, "default": 4.0, "help": "least seconds between a first step and the next kill"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "small"}),
        ("--checkpoint-every", {"type": int, "default": 50, "help": "steps, on every side"}),
        ("--peer", {"choices": sides.PEERS, "action": "append", "default": [], "help": "one more side"}),
    )
    random.seed(given.seed)
    plans = [
        sides.supervise(given.nproc, *sides.ENDLESS),
        sides.supervise(given.nproc, *sides.ENDLESS, "--no-standby", name="supervise --no-standby"),
        sides.torchrun(given.nproc),
        *sides.extra(given.peer, given.nproc),
    ]
    every = ["--checkpoint-every", str(given.checkpoint_every)]
    workload = ["-m", "trainer", "--steps", "100000000", "--log-every", "1000", *every, *common.MODELS[given.model]]
    common.write(given.json, "recovery", here, given, compare(plans, workload, given.nproc, given.kills, given.gap))


if __name__ == "__main__":
    main()
