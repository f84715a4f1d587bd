"""Goodput: a fixed number of steps while a random rank is killed every 10 and every 60 seconds, supervise and torchrun.

goodput = steps × median step time of plain torchrun without failures or saves, measured in the same round, before and
after
          ÷ wall time from the first step to the last

and the same with the mean step in place of the median: a few steps of an undisturbed run are long, too, so that by the
median even such a run falls short of 100 %. "By its own" takes the median step of the very run, its first ten after
each start left out: what failures cost, without what being supervised adds to a step and without the machine's moods
between the runs.

What a kill costs is the time from it to the next one, less the usual time of as many steps as were new in it: the mean
of the steps from five seconds after the kill on, so that a machine whose speed changes by the minute matters less. Its
median over the time between two kills is what failures take of the goodput.

supervise runs the built-in GPT with its defaults; torchrun runs the same GPT with the saving of PyTorch's DDP tutorial,
every 20 steps (scripts/tutorial_gpt.py). The instants of the kills are fixed, T, 2T, … after the first step; where the
group is not training at one, it is killed as soon as it does. Where six kills in a row find no step that was not done
before, as under torchrun when a restart and 20 steps take longer than the time between kills, the job would never end:
it is given up, and counted are the steps it reached, which is more than it would have in the end; so is one that has
stood still for five minutes. Medians over rounds; 5 rounds take about 22 minutes.

python benchmarks/goodput.py [--rounds 5] [--plan 10:450,60:760] [--model default|small] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import sides
from kills import next_group, strike
from sides import Plan, Side
from steps import Step, intervals, trained

TIME_LIMIT = 300.0
"""Seconds without a step after which a run is given up. torchrun waits 30 s for a survivor that does not go."""
SETTLING = 10
"""Steps after a start during which other things than training go on."""
NO_PROGRESS = 6
"""Kills without a new step after which a run is given up."""
TUTORIAL = Path(__file__).resolve().parent / "scripts" / "tutorial_gpt.py"
SETTLED_S = 5.0
"""Seconds after a kill during which other things than training go on."""
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
        reached: list[int] = []
        while not done(side, nproc, steps):
            if len(reached) > NO_PROGRESS and reached[-1] == reached[-NO_PROGRESS - 1]:
                common.say(f"{plan.name}, every {every:g} s: given up, it would never end")
                break
            side.check()
            if time.monotonic() > side.steps.steps[-1].at + TIME_LIMIT:
                common.say(f"{plan.name}, every {every:g} s: given up, it has not stepped for {TIME_LIMIT:.0f} s")
                break
            pids = side.steps.pids(nproc)
            assert pids is not None
            due = begin + every * (len(struck) + 1)
            if time.monotonic() < due or set(pids.values()) & old:
                time.sleep(0.02)
                continue
            old |= set(pids.values())
            struck.append(strike(random.choice(list(pids.values()))) - begin)
            reached.append(max(step.done for step in side.steps.steps))
            common.say(f"{plan.name}, every {every:g} s: kill {len(struck)} at step {side.steps.newest[0].done}")
        reached.append(max(step.done for step in side.steps.steps))
        ended = reached[-1] >= steps
        if ended:
            side.process.wait(60)
        end = max(step.at for step in side.steps.steps if step.done == steps) if ended else side.steps.steps[-1].at
        again = len(trained(side.steps.steps)) - reached[-1]
        own = own_steps(side)
        return {
            "wall_s": end - begin,
            "kills": len(struck),
            "kill_times_s": struck,
            "exit_code": side.process.returncode if ended else None,
            "ended": ended,
            "steps_reached": reached[-1],
            "steps_done_again": again,
            "own_step_s": statistics.median(own) if own else None,
            "kill_costs_s": kill_costs(trained(side.steps.steps), [begin + at for at in struck], end),
            "ledger": ledger(side) if plan.supervised else None,
        }


def own_steps(side: Side) -> list[float]:
    """The step times of rank 0 in this run, from the eleventh of each of its processes on."""
    pids = dict.fromkeys(step.pid for step in side.steps.steps if step.rank == 0)
    return [time for pid in pids for time in intervals(side.steps.of({pid}))[SETTLING:]]


def kill_costs(steps: Sequence[Step], struck: Sequence[float], end: float) -> list[float]:
    """Seconds that each kill has cost, by the `steps` of one rank. A kill after which no steps settled is left out: the
    next one, or the end, came too soon."""

    def reached(at: float) -> int:
        return max(step.done for step in steps if step.at <= at)

    found = []
    for kill, until in zip(struck, [*struck[1:], end], strict=False):
        usual = [
            later.at - step.at
            for step, later in itertools.pairwise(steps)
            if kill + SETTLED_S < step.at and later.at < until
        ]
        if usual:
            found.append(until - kill - statistics.fmean(usual) * (reached(until) - reached(kill)))
    return found


def done(side: Side, nproc: int, steps: int) -> bool:
    side.steps.read()
    return len(side.steps.newest) == nproc and all(step.done >= steps for step in side.steps.newest.values())


def ledger(side: Side) -> dict[str, Any]:
    """What supervise itself says about it; its wall clock begins at the launch and ends with the last process."""
    said = subprocess.run([sides.SUPERVISE, "report", "--json", str(side.run)], capture_output=True, check=True)
    report = json.loads(said.stdout)
    return {"goodput": report["goodput"], "wall_s": report["wall_s"], "seconds": report["ledger"]}


def one_round(plans: dict[str, tuple[Plan, list[str]]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every plan under every rate of failures, between two undisturbed runs."""
    model = common.MODELS[given.model]
    calm = undisturbed(given.nproc, given.undisturbed, model)
    common.say(f"undisturbed: {1000 * statistics.median(calm):.1f} ms a step")
    samples: list[dict[str, Any]] = []
    for part in given.plan.split(","):
        every, steps = float(part.split(":")[0]), int(part.split(":")[1])
        for name, (plan, program) in plans.items():
            workload = [*program, "--steps", str(steps), "--log-every", "1000", *model]
            found = run(plan, workload, given.nproc, steps, every)
            samples.append({"side": name, "every_s": every, "steps": steps, **found})
    calm += undisturbed(given.nproc, given.undisturbed, model)
    for sample in samples:
        sample |= {"step_s": statistics.median(calm), "mean_step_s": statistics.fmean(calm)}
        # From the first step's end to the last one's.
        sample["goodput"] = (sample["steps_reached"] - 1) * sample["step_s"] / sample["wall_s"]
        sample["goodput_by_mean"] = (sample["steps_reached"] - 1) * sample["mean_step_s"] / sample["wall_s"]
        if (own := sample["own_step_s"]) is not None:
            sample["goodput_by_own"] = (sample["steps_reached"] - 1) * own / sample["wall_s"]
    return samples


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--rounds", {"type": int, "default": 5}),
        ("--plan", {"default": "10:450,60:760", "metavar": "T:STEPS,…", "help": "seconds between kills : steps"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "default"}),
        ("--undisturbed", {"type": int, "default": 100, "help": "steps without failures, before and after"}),
    )
    random.seed(given.seed)
    plans = {
        "supervise": (sides.supervise(given.nproc, *sides.ENDLESS), ["-m", "trainer"]),
        "torchrun": (sides.torchrun(given.nproc), [str(TUTORIAL)]),
    }
    rounds = [one_round(plans, given) for _ in range(given.rounds)]
    grouped: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for sample in itertools.chain.from_iterable(rounds):
        grouped.setdefault((sample["side"], sample["every_s"]), []).append(sample)
    summary = [
        {
            "side": side,
            "every_s": every,
            "goodput": common.summary([s["goodput"] for s in samples]),
            "goodput_by_mean": common.summary([s["goodput_by_mean"] for s in samples]),
            "goodput_by_own": common.summary([s["goodput_by_own"] for s in samples if "goodput_by_own" in s]),
            "kill_cost": common.summary([cost for s in samples for cost in s["kill_costs_s"]]),
            "given_up": sum(not s["ended"] for s in samples),
        }
        for (side, every), samples in grouped.items()
    ]
    common.show(
        f"Goodput, medians of {given.rounds} rounds",
        (
            "",
            "a kill every",
            "kills",
            "steps",
            "again",
            "wall",
            "given up",
            "goodput",
            "least, most",
            "by the mean step",
            "by its own",
            "a kill costs",
            "by the ledger",
        ),
        [row(side, every, samples) for (side, every), samples in grouped.items()],
    )
    print("The ledger's wall clock has the first launch in it, which is not in the other's.")
    common.write(given.json, "goodput", here, given, {"summary": summary, "rounds": rounds})


def row(side: str, every: float, samples: list[dict[str, Any]]) -> tuple[object, ...]:
    def middle(values: Sequence[float]) -> str:
        return f"{100 * statistics.median(values):.1f} %" if values else "-"

    by_median, costs = [s["goodput"] for s in samples], [cost for s in samples for cost in s["kill_costs_s"]]
    return (
        side,
        f"{every:g} s",
        sum(s["kills"] for s in samples),
        samples[0]["steps"],
        sum(s["steps_done_again"] for s in samples),
        f"{statistics.median([s['wall_s'] for s in samples]):.1f} s",
        f"{sum(not s['ended'] for s in samples)} of {len(samples)}",
        middle(by_median),
        f"{100 * min(by_median):.1f}, {100 * max(by_median):.1f}",
        middle([s["goodput_by_mean"] for s in samples]),
        middle([s["goodput_by_own"] for s in samples if "goodput_by_own" in s]),
        f"{statistics.median(costs):.2f} s" if costs else "-",
        middle([s["ledger"]["goodput"] for s in samples]) if samples[0]["ledger"] else "-",
    )


if __name__ == "__main__":
    main()
