"""Recovery: SIGKILL of a rank to the first new optimizer step, under supervise and under torchrun, the same on every
side.

The built-in GPT, which resumes from its own checkpoints on every side; with --script, a script that nobody changed,
such as scripts/own_resume.py: DDP, its own torch.save every 10 steps, its own torch.load. Ten kills a side take 3
minutes.

With --against COMMIT the other side is that commit of this project, and the sides take turns: rounds of a run each,
with so many kills. A round in which others used the machine is discarded and counted.

python benchmarks/recovery.py [--script FILE] [--kills 10] [--gap 4] [--model small|default] [--peer nvrx|…] [--json
FILE] [--against COMMIT] [--rounds 10]
"""

from __future__ import annotations

import random
from pathlib import Path

import common
import sides
from commits import installed
from kills import alternating, compare


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--kills", {"type": int, "default": 10, "help": "on each side"}),
        ("--gap", {"type": float, "default": 4.0, "help": "least seconds between a first step and the next kill"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "small"}),
        ("--checkpoint-every", {"type": int, "default": 50, "help": "steps, on every side"}),
        ("--script", {"type": Path, "help": "in place of the built-in GPT, one that takes --steps"}),
        ("--against", {"metavar": "COMMIT", "help": "the other side: an earlier commit of this project"}),
        ("--rounds", {"type": int, "default": 10, "help": "with --against: runs a side, of so many kills each"}),
        ("--peer", {"choices": sides.PEERS, "action": "append", "default": [], "help": "one more side"}),
    )
    random.seed(given.seed)
    every = ["--checkpoint-every", str(given.checkpoint_every)]
    built_in = ["-m", "trainer", "--log-every", "1000", *every, *common.MODELS[given.model]]
    workload = [*([str(given.script.resolve())] if given.script else built_in), "--steps", "100000000"]
    if given.against:
        with installed(given.against) as program:
            plans = [
                sides.supervise(given.nproc, *sides.ENDLESS, name="this"),
                sides.earlier(program, given.nproc, *sides.ENDLESS, name=given.against),
            ]
            rounds, most = given.rounds, 3 * given.rounds
            body = alternating(plans, workload, given.nproc, rounds, given.kills, given.gap, most)
        common.write(given.json, "recovery", here, given, body)
        return
    plans = [
        sides.supervise(given.nproc, *sides.ENDLESS),
        sides.supervise(given.nproc, *sides.ENDLESS, "--no-standby", name="supervise --no-standby"),
        sides.torchrun(given.nproc),
        *sides.extra(given.peer, given.nproc),
    ]
    common.write(given.json, "recovery", here, given, compare(plans, workload, given.nproc, given.kills, given.gap))


if __name__ == "__main__":
    main()
