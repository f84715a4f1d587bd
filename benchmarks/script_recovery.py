"""Recovery of a script that nobody changed: SIGKILL of a rank to the first new optimizer step, supervise and torchrun.

The script is scripts/own_resume.py: DDP, its own torch.save every 10 steps, its own torch.load. With 10 kills a side it takes
about 3 minutes.

python benchmarks/script_recovery.py [--kills 10] [--gap 4] [--script FILE] [--peer …] [--json FILE]
"""

from __future__ import annotations

import random
from pathlib import Path

import common
import sides
from kills import compare

SCRIPT = Path(__file__).resolve().parent / "scripts" / "own_resume.py"


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--kills", {"type": int, "default": 10, "help": "on each side"}),
        ("--gap", {"type": float, "default": 4.0, "help": "least seconds between a first step and the next kill"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--script", {"type": Path, "default": SCRIPT, "help": "one that takes --steps"}),
        ("--peer", {"choices": sides.PEERS, "action": "append", "default": [], "help": "one more side"}),
    )
    random.seed(given.seed)
    plans = [
        sides.supervise(given.nproc, *sides.ENDLESS),
        sides.supervise(given.nproc, *sides.ENDLESS, "--no-standby", name="supervise --no-standby"),
        sides.torchrun(given.nproc),
        *sides.extra(given.peer, given.nproc),
    ]
    workload = [str(given.script.resolve()), "--steps", "100000000"]
    common.write(
        given.json, "script_recovery", here, given, compare(plans, workload, given.nproc, given.kills, given.gap)
    )


if __name__ == "__main__":
    main()
