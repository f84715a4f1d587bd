"""Goodput: a fixed number of steps while a random rank is killed every 10 and every 60 seconds, supervise and torchrun.

goodput = steps × median step time of plain torchrun without failures or saves, measured in the same run, before and after
          ÷ wall time from the first step to the last

Both train the built-in GPT. supervise runs with its defaults; torchrun saves every 20 steps, as the tutorial does (with our
checkpointer, which is quicker than the tutorial's torch.save). The instants of the kills are fixed, T, 2T, … after the first
step; where the group is not training at one, it is killed as soon as it does. The defaults take about 8 minutes.

python benchmarks/goodput.py [--plan 10:450,60:1450] [--model default|small] [--json FILE]
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import common
import sides
from kills import next_group, strike
from sides import Plan, Side
from steps import intervals

PATIENCE = 300.0
"""Seconds without a step after which a run is given up. torchrun waits 30 s for a survivor that does not go."""
WARM_UP = 20
"""Steps at the start of an undisturbed run that do not count."""


def undisturbed(nproc: int, steps: int, model: Sequence[str]) -> list[float]:
    """The step times of plain torchrun."""
    none = ["--checkpoint-every", "off", "--snapshot-every", "off"]
    workload = ["-m", "trainer", "--steps", str(steps + WARM_UP), "--log-every", "1000", *none, *model]
    with Side(sides.torchrun(nproc), workload) as side:
        side.process.wait(600)
        side.steps.read()
        return intervals(side.steps.steps)[WARM_UP - 1 :]


def run(plan: Plan, workload: Sequence[str], nproc: int, steps: int, every: float) -> dict[str, Any]:
    """The job, to its end."""
    with Side(plan, workload) as side:
        old: set[int] = set()
        begin = min(step.at for step in next_group(side, old, nproc))
        struck: list[float] = []
        while not done(side, nproc, steps):
            side.check()
            if time.monotonic() > side.steps.steps[-1].at + PATIENCE:
                raise TimeoutError(f"{plan.name} has not stepped for {PATIENCE:.0f} s")
            pids = side.steps.pids(nproc)
            assert pids is not None
            due = begin + every * (len(struck) + 1)
            if time.monotonic() < due or set(pids.values()) & old:
                time.sleep(0.02)
                continue
            old |= set(pids.values())
            struck.append(strike(random.choice(list(pids.values()))) - begin)
            common.say(f"{plan.name}, every {every:g} s: kill {len(struck)} at step {side.steps.newest[0].done}")
        side.process.wait(60)
        end = max(step.at for step in side.steps.steps if step.done == steps)
        trained = len(side.steps.of({step.pid for step in side.steps.steps if step.rank == 0}))
        return {
            "wall_s": end - begin,
            "kills": len(struck),
            "kill_times_s": struck,
            "exit_code": side.process.returncode,
            "steps_done_again": trained - steps,
            "ledger": ledger(side) if plan.supervised else None,
        }


def done(side: Side, nproc: int, steps: int) -> bool:
    side.steps.read()
    return len(side.steps.newest) == nproc and all(step.done >= steps for step in side.steps.newest.values())


def ledger(side: Side) -> dict[str, Any]:
    """What supervise itself says about it; its wall clock begins at the launch and ends with the last process."""
    said = subprocess.run([sides.SUPERVISE, "report", "--json", str(side.run)], capture_output=True, check=True)
    report = json.loads(said.stdout)
    return {"goodput": report["goodput"], "wall_s": report["wall_s"], "seconds": report["ledger"]}


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--plan", {"default": "10:450,60:1450", "metavar": "T:STEPS,…", "help": "seconds between kills : steps"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "default"}),
        ("--undisturbed", {"type": int, "default": 150, "help": "steps without failures, before and after"}),
    )
    random.seed(given.seed)
    model = common.MODELS[given.model]
    plans = {
        "supervise": (sides.supervise(given.nproc, *sides.ENDLESS), []),
        "torchrun": (sides.torchrun(given.nproc), ["--checkpoint-every", "20", "--snapshot-every", "off"]),
    }
    calm = undisturbed(given.nproc, given.undisturbed, model)
    common.say(f"undisturbed: {1000 * statistics.median(calm):.1f} ms a step")
    samples: list[dict[str, Any]] = []
    for part in given.plan.split(","):
        every, steps = float(part.split(":")[0]), int(part.split(":")[1])
        for name, (plan, flags) in plans.items():
            workload = ["-m", "trainer", "--steps", str(steps), "--log-every", "1000", *flags, *model]
            samples.append(
                {"side": name, "every_s": every, "steps": steps, **run(plan, workload, given.nproc, steps, every)}
            )
    calm += undisturbed(given.nproc, given.undisturbed, model)
    step = statistics.median(calm)
    for sample in samples:
        # From the first step's end to the last one's.
        sample["goodput"] = (sample["steps"] - 1) * step / sample["wall_s"]
    common.show(
        f"Goodput, {1000 * step:.1f} ms a step undisturbed (median of {len(calm)})",
        ("", "a kill every", "kills", "steps", "again", "wall", "goodput", "by the ledger"),
        [
            (
                s["side"],
                f"{s['every_s']:g} s",
                s["kills"],
                s["steps"],
                s["steps_done_again"],
                f"{s['wall_s']:.1f} s",
                f"{100 * s['goodput']:.1f} %",
                f"{100 * s['ledger']['goodput']:.1f} %" if s["ledger"] else "-",
            )
            for s in samples
        ],
    )
    print("The ledger's wall clock has the first launch in it, which is not in the other's.")
    body = {"step_s": step, "undisturbed": common.summary(calm), "undisturbed_s": calm, "samples": samples}
    common.write(given.json, "goodput", here, given, body)


if __name__ == "__main__":
    main()
