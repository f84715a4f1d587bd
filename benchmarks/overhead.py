"""Overhead of being supervised when nothing fails, against plain torchrun that saves nothing.

    A  torchrun, no checkpoints                                             the reference
    B  supervise with its defaults: standby, snapshots, checkpoints
    C  supervise --no-standby, no snapshots, no checkpoints                 the supervision alone

In rounds, A B C A B C …, each a whole run of the built-in GPT. Step times are those of rank 0 after the warm-up; per
round their median, and their mean too, because what happens once in a hundred steps is not in a median. The
supervisor's memory and CPU time are sampled over the same stretch. 5 rounds take about 6 minutes.

python benchmarks/overhead.py [--rounds 5] [--steps 150] [--model default|small] [--json FILE]
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import common
import psutil
import sides
from kills import next_group
from sides import Plan, Side
from steps import intervals

NOTHING = ["--checkpoint-every", "off", "--snapshot-every", "off"]


def run(plan: Plan, flags: Sequence[str], nproc: int, steps: int, warm_up: int) -> dict[str, Any]:
    """One whole run."""
    workload = ["-m", "trainer", "--steps", str(warm_up + steps), "--log-every", "1000", *flags]
    with Side(plan, workload) as side:
        first = next_group(side, set(), nproc)
        watched = psutil.Process(side.process.pid) if plan.supervised else None
        samples: list[tuple[float, float, int]] = []
        while side.steps.newest[0].done < warm_up + steps:
            side.check()
            if watched and side.steps.newest[0].done >= warm_up:
                used = watched.cpu_times()
                samples.append((time.monotonic(), used.user + used.system, watched.memory_info().rss))
            time.sleep(0.25)
            side.steps.read()
        side.process.wait(120)
        side.steps.read()
        times = intervals(side.steps.steps)[warm_up - 1 :]
        found: dict[str, Any] = {
            "side": plan.name,
            "exit_code": side.process.returncode,
            "launch_to_first_step_s": max(step.at for step in first) - side.started,
            "step_median_s": statistics.median(times),
            "step_mean_s": statistics.fmean(times),
            "steps_s": times,
        }
        if len(samples) > 1:
            (begin, before, _), (end, after, _) = samples[0], samples[-1]
            found["supervisor_rss_mb"] = max(rss for _, _, rss in samples) / 1e6
            found["supervisor_cpu_share"] = (after - before) / (end - begin)
        return found


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--rounds", {"type": int, "default": 5}),
        ("--steps", {"type": int, "default": 150, "help": "that count, in each run"}),
        ("--warm-up", {"type": int, "default": 40, "help": "steps before them; the first standby is made then"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "default"}),
    )
    model = common.MODELS[given.model]
    plans = [
        (sides.torchrun(given.nproc), [*NOTHING, *model]),
        (sides.supervise(given.nproc), model),
        (sides.supervise(given.nproc, "--no-standby", name="supervise, nothing but supervision"), [*NOTHING, *model]),
    ]
    runs: list[dict[str, Any]] = []
    for number in range(1, given.rounds + 1):
        for plan, flags in plans:
            runs.append({"round": number, **run(plan, flags, given.nproc, given.steps, given.warm_up)})
            step, first = runs[-1]["step_median_s"], runs[-1]["launch_to_first_step_s"]
            common.say(f"round {number}, {plan.name}: {1000 * step:.2f} ms a step, first step after {first:.2f} s")

    def median(name: str, key: str) -> float:
        """Over the rounds; nan where it was not measured."""
        values = [record[key] for record in runs if record["side"] == name and key in record]
        return statistics.median(values) if values else math.nan

    summaries = {}
    rows = []
    keys = ("step_median_s", "step_mean_s", "launch_to_first_step_s", "supervisor_rss_mb", "supervisor_cpu_share")
    for plan, _ in plans:
        s = summaries[plan.name] = {key: median(plan.name, key) for key in keys}
        r = summaries[plans[0][0].name]
        cells = [f"{1000 * s[key]:.2f} ms ({100 * (s[key] / r[key] - 1):+.1f} %)" for key in keys[:2]]
        cells.append(f"{s[keys[2]]:.2f} s ({s[keys[2]] / r[keys[2]]:.2f} ×)")
        has = not math.isnan(s["supervisor_rss_mb"])
        cells += [f"{s['supervisor_rss_mb']:.0f} MB", f"{100 * s['supervisor_cpu_share']:.2f} %"] if has else ["-", "-"]
        rows.append((plan.name, *cells))
    common.show(
        f"No failure: medians of {given.rounds} rounds of {given.steps} steps (and against torchrun)",
        ("", "step, median", "step, mean", "launch to first step", "supervisor's RSS", "of a core"),
        rows,
    )
    common.write(given.json, "overhead", here, given, {"medians": summaries, "samples": runs})


if __name__ == "__main__":
    main()
