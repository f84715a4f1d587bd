"""Overhead of being supervised when nothing fails, on a machine whose speed changes by the minute.

Both sides of overhead.py, torchrun that saves nothing and supervise with its defaults, run at once, but one at a time:
in turn, in random order, each has its processes continued for some steps while the other's are stopped. A slice is
compared with its neighbour of the other side, seconds away. The first step of a slice, which was begun in the last one,
and the next are left out. What goes by the clock goes on while a side is stopped, so checkpoints come twice as often to
a step.

Told are the step, the CPU time of the ranks and their page faults, each by step; of the ratios the median, the mean and
the mean's standard error. 110 slices a side take about 4 minutes.

python benchmarks/slices.py [--slices 110] [--steps 4] [--model default|small] [--json FILE]
"""

from __future__ import annotations

import contextlib
import random
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import common
import psutil
import sides
from kills import TIME_LIMIT, next_group
from overhead import NOTHING
from sides import Side

WARM_UP = 60
"""Steps of each side before the first slice; the first standby is made in them."""
LEFT_OUT = 2


def signalled(side: Side, number: signal.Signals) -> None:
    for process in side.processes():
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def used(side: Side, nproc: int) -> tuple[float, int]:
    """(CPU seconds, page faults without reading) of the ranks so far."""
    seconds, faults = 0.0, 0
    for pid in (side.steps.pids(nproc) or {}).values():
        times = psutil.Process(pid).cpu_times()
        seconds += times.user + times.system
        faults += int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
    return seconds, faults


def reach(side: Side, done: int) -> None:
    """Rank 0 has finished `done` steps."""

    def there() -> bool:
        side.check()
        side.steps.read()
        return side.steps.newest[0].done >= done

    common.until(there, TIME_LIMIT, f"{side.plan.name}: step {done}", every=0.005)


def slice_of(side: Side, nproc: int, steps: int) -> dict[str, float]:
    """`steps` steps of this side alone."""
    began = time.monotonic()
    signalled(side, signal.SIGCONT)
    first = side.steps.newest[0].done + LEFT_OUT
    reach(side, first)
    before = used(side, nproc)
    reach(side, first + steps)
    after = used(side, nproc)
    signalled(side, signal.SIGSTOP)
    at = [step.at for step in side.steps.steps if step.rank == 0 and step.at >= began][LEFT_OUT - 1 :][: steps + 1]
    return {
        "step_s": (at[-1] - at[0]) / (len(at) - 1),
        "cpu_s": (after[0] - before[0]) / steps,
        "faults": (after[1] - before[1]) / steps,
    }


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--slices", {"type": int, "default": 110, "help": "of each side"}),
        ("--steps", {"type": int, "default": 4, "help": "in each slice"}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "default"}),
    )
    plans = [(sides.torchrun(given.nproc), NOTHING), (sides.supervise(given.nproc), [])]
    samples: dict[str, list[dict[str, float]]] = {plan.name: [] for plan, _ in plans}
    with contextlib.ExitStack() as stack:
        running = []
        for plan, flags in plans:
            workload = ["-m", "trainer", "--steps", "1000000", "--log-every", "100000", *flags]
            side = stack.enter_context(Side(plan, [*workload, *common.MODELS[given.model]]))
            # Stopped processes cannot end as they should.
            stack.callback(signalled, side, signal.SIGCONT)
            next_group(side, set(), given.nproc)
            reach(side, WARM_UP)
            signalled(side, signal.SIGSTOP)
            common.say(f"{plan.name} is warm")
            running.append(side)
        for _ in range(given.slices):
            for side in random.sample(running, len(running)):
                samples[side.plan.name].append(slice_of(side, given.nproc, given.steps))

    reference = samples[plans[0][0].name]
    summaries: dict[str, Any] = {}
    rows = []
    for name, found in samples.items():
        s = summaries[name] = {key: statistics.median(sample[key] for sample in found) for key in reference[0]}
        cells = [f"{1000 * s['step_s']:.1f} ms", f"{1000 * s['cpu_s']:.1f} ms", f"{s['faults']:.0f}"]
        for key in ("step_s", "cpu_s"):
            ratios = [100 * (one[key] / other[key] - 1) for one, other in zip(found, reference, strict=True)]
            error = statistics.stdev(ratios) / len(ratios) ** 0.5
            s[f"{key}_percent"] = [statistics.median(ratios), statistics.fmean(ratios), error]
            cells.append(f"{statistics.median(ratios):+.1f} %, {statistics.fmean(ratios):+.1f} ± {error:.1f} %")
        rows.append((name, *cells))
    common.show(
        f"No failure: {given.slices} slices of {given.steps} steps a side; against torchrun: median, mean ± its error",
        ("", "step", "CPU, all ranks", "faults", "step against", "CPU against"),
        rows,
    )
    common.write(given.json, "slices", here, given, {"medians": summaries, "samples": samples})


if __name__ == "__main__":
    main()
