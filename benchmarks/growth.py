"""Growth: SIGKILL of a rank to the first new step of every rank, against what a run can have more of.

    ranks       of a tiny model                       2 to 32
    state       megabytes that every snapshot holds   1 to 4,096, by one rank: two of 4 GB, their standbys and their
                                                      snapshots are more than 24 GB of memory (--state-ranks)
    processes   of others on this machine, asleep     100 to 5,000
    events      of the run before the kill            1,000 to 1,000,000

and, with --only supervisor, what the supervisor itself takes beside so many ranks that train: its memory, and its CPU
over a minute.

Each size is a run of its own under supervise, killed so many times. The slope is that of the medians in a log-log plot:
0 where the size costs nothing, 1 where twice the size takes twice as long. It is fitted over the upper half of the
sizes too, since a constant hides a line's beginning.

--svg draws it. With --json what the file has already stays, so that the parts can be measured one by one.

python benchmarks/growth.py [--only ranks,…] [--kills 5] [--ranks 2,4,8] … [--json FILE] [--svg docs/growth.svg]
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import kills
import plots
import psutil
import sides
from scale import long_run

STATEFUL = Path(__file__).resolve().parent / "scripts" / "stateful.py"
SUPERVISOR = "supervisor"
SIZES = {
    "ranks": "2,4,8,16,32",
    "state": "1,16,128,1024,4096",
    "processes": "100,500,2000,5000",
    "events": "1000,10000,100000,1000000",
}


_GAP = 2.0
"""Seconds from a first step to the next kill, at least."""
_PARKED = 120.0
"""Seconds that a kill waits until the next group is parked."""


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the logarithms of `points` with the least squares; nan of fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len(logs) < 2:
        return math.nan
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


@contextlib.contextmanager
def sleepers(count: int) -> Iterator[None]:
    """So many processes of others sleep here meanwhile."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(["sleep", "86400"], start_new_session=True))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _tiny(ranks: int) -> list[str]:
    """The small GPT, without an end. Each of more than 8 ranks has one sample of a batch."""
    return ["-m", "trainer", "--steps", "1000000", *common.SMALL, "--batch-size", str(max(8, ranks))]


def measured(what: str, size: int, count: int, ranks: int) -> list[dict[str, Any]]:
    """The kills of one run of this size, with so many ranks if the size is of something else."""
    plan, workload = sides.supervise(ranks, *sides.ENDLESS), _tiny(ranks)
    if what == "ranks":
        return kills.recoveries(sides.supervise(size, *sides.ENDLESS), _tiny(size), size, count, _GAP, _PARKED)
    if what == "state":
        return kills.recoveries(plan, [str(STATEFUL), str(size)], ranks, count, _GAP, _PARKED)
    if what == "processes":
        with sleepers(size):
            return kills.recoveries(plan, workload, 2, count, _GAP, _PARKED)
    with tempfile.TemporaryDirectory(prefix="bench-long-") as folder:
        path = Path(folder, "run")
        long_run(path, size)
        # The attempts before had come further, so none of these makes progress, and each would wait longer.
        longer = sides.supervise(2, *sides.ENDLESS, "--backoff", "1ms:1ms", "--run-dir", str(path))
        return kills.recoveries(longer, workload, 2, count, _GAP, _PARKED)


def supervisor(ranks: int, seconds: float) -> dict[str, Any]:
    """What it takes while so many ranks of a tiny model train, with a standby behind them."""
    plan, workload = sides.supervise(ranks, *sides.ENDLESS), _tiny(ranks)
    with sides.Side(plan, workload) as side:
        kills.next_group(side, set(), ranks)
        common.until(lambda: side.events("standby_ready") or None, 120.0, "a standby")
        before, begin = _used(side.process.pid), time.monotonic()
        time.sleep(seconds)
        share = (_used(side.process.pid) - before) / (time.monotonic() - begin)
        rss = psutil.Process(side.process.pid).memory_info().rss
        return {"ranks": ranks, "cpu_share": share, "rss_mb": rss / 1e6, "seconds": seconds}


def _used(pid: int) -> float:
    """CPU seconds of all threads of the process so far, to the microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def grown(what: str, sizes: Sequence[int], count: int, ranks: int) -> dict[str, Any]:
    """The kills at each size, and how their medians grow."""
    found: list[dict[str, Any]] = []
    for size in sizes:
        records = measured(what, size, count, ranks)
        seconds = common.summary([record["seconds"] for record in records if record["seconds"] is not None])
        found.append({"size": size, "seconds": seconds, "samples": records})
        common.say(f"{what} {size:,}: p50 {seconds['p50']:.3f} s")
    points = [(float(one["size"]), one["seconds"]["p50"]) for one in found if one["seconds"]["n"]]
    upper = points[len(points) // 2 - 1 :] if len(points) > 2 else points
    added = points[-1][1] - points[0][1] if points else math.nan
    slopes = {"slope": slope(points), "slope_of_the_upper_half": slope(upper), "added_s": added}
    return {"sizes": found, **slopes, "date": time.strftime("%Y-%m-%d")}


def main() -> None:
    here = common.machine()
    sizes: list[tuple[str, dict[str, Any]]] = [
        (f"--{what}", {"default": default, "metavar": "N,…"}) for what, default in SIZES.items()
    ]
    given = common.options(
        __doc__,
        ("--only", {"default": ",".join([*SIZES, SUPERVISOR]), "metavar": "WHAT,…"}),
        ("--seconds", {"type": float, "default": 60.0, "help": "over which the supervisor's CPU is taken"}),
        ("--kills", {"type": int, "default": 5, "help": "of each run"}),
        ("--state-ranks", {"type": int, "default": 1, "help": "of the runs with more state"}),
        ("--svg", {"type": Path, "metavar": "FILE", "help": "the plot"}),
        *sizes,
    )
    random.seed(given.seed)
    body = _before(given.json)
    for what in given.only.split(","):
        if what == SUPERVISOR:
            body[what] = [supervisor(int(size), given.seconds) for size in given.ranks.split(",")]
            cells = [(one["ranks"], f"{one['rss_mb']:.0f} MB", f"{100 * one['cpu_share']:.2f} %") for one in body[what]]
            common.show("The supervisor beside ranks that train", ("ranks", "memory", "of a core"), cells)
        else:
            ranks = given.state_ranks if what == "state" else 2
            body[what] = grown(what, [int(size) for size in getattr(given, what).split(",")], given.kills, ranks)
            _show(what, body[what])
        # After each part: what was measured is not lost with the rest.
        common.write(given.json, "growth", here, given, body)
        if given.svg:
            plots.growth({**common.head("growth", here, given), **body}, given.svg)


def _before(path: Path | None) -> dict[str, Any]:
    """The parts that are in the file already."""
    if path is None or not path.exists():
        return {}
    found = json.loads(path.read_bytes())
    return {what: found[what] for what in [*SIZES, SUPERVISOR] if what in found}


def _show(what: str, found: dict[str, Any]) -> None:
    head = (what, "kills", "min", "p50", "max")
    rows = [
        (f"{one['size']:,}", one["seconds"]["n"], *(f"{one['seconds'][k]:.3f}" for k in head[2:]))
        for one in found["sizes"]
    ]
    steep = f"slope {found['slope']:.2f}, of the upper half {found['slope_of_the_upper_half']:.2f}"
    added = f"the largest takes {1000 * found['added_s']:+.1f} ms more than the smallest"
    common.show(f"Kill to first step against {what}, seconds ({steep}; {added})", head, rows)


if __name__ == "__main__":
    main()
