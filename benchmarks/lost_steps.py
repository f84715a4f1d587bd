"""Lost steps: SIGKILL of a rank, of all ranks or of the launcher at random instants, and the step that was gone on
from.

With `--snapshot-every 1`. A step is done when every rank has finished it; lost are the done steps that the next attempt
does again. A step is safe once its snapshot is committed, which happens during the next step: the one whose copy is
under way may be lost, and no other. Which steps were done and which step came first afterwards is taken from the ranks'
optimizers by the hook, not from what the supervisor says; its own account is in the JSON beside it. 100 kills take
about 4 minutes, 300 (`--kills 300`) 12: then the interval is narrow enough for an aim of 90 %.

python benchmarks/lost_steps.py [--kills 100] [--model small|default] [--json FILE]
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from typing import Any

import common
import sides
from kills import next_group, strike
from sides import Side

KINDS = ("rank", "all", "launcher")


AIM = 0.9
"""The share of kills that lose nothing: its lower end is to be above this, and no kill may lose more than one step."""


def victims(side: Side, kind: str, pids: dict[int, int]) -> list[int]:
    if kind == "rank":
        return [random.choice(list(pids.values()))]
    if kind == "all":
        return random.sample(list(pids.values()), len(pids))
    return [side.events("attempt_started")[-1]["launcher_pid"]]


def one(side: Side, kind: str, old: set[int], nproc: int) -> dict[str, Any]:
    """A kill, and what it cost; `old` has the killed group's processes afterwards."""
    pids = side.steps.pids(nproc)
    assert pids is not None
    targets = victims(side, kind, pids)
    old |= set(pids.values())
    struck = strike(targets[0])
    for pid in targets[1:]:
        os.kill(pid, signal.SIGKILL)
    first = next_group(side, old, nproc, struck)
    # Read now that the group is gone: what it did after the blow counts as done, too.
    done = [max(step.done for step in side.steps.of([pid])) for pid in pids.values()]
    start = first[0].done - 1
    assert all(step.done - 1 == start for step in first), "the ranks went on from different steps"
    time.sleep(0.2)  # for the events of the first step
    told = [event for event in side.events("resumed", "first_step") if event["mono"] > struck]
    return {
        "kind": kind,
        "done": min(done),
        "done_by_any_rank": max(done),
        "went_on_from": start,
        "lost": min(done) - start,
        "lost_by_any_rank": max(done) - start,
        "seconds": max(step.at for step in first) - struck,
        "source": next((event.get("source") for event in told if event["msg"] == "resumed"), None),
        "told_from": next((event["from_step"] for event in told if event["msg"] == "first_step"), None),
        "told_lost": next((event.get("lost_steps") for event in told if event["msg"] == "first_step"), None),
    }


def measure(nproc: int, kills: int, pause: tuple[float, float], workload: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    # The budget and the waits between restarts are not what is measured.
    plan = sides.supervise(nproc, *sides.ENDLESS, "--backoff", "10ms:10ms")
    with Side(plan, workload) as side:
        old: set[int] = set()
        next_group(side, old, nproc)
        while len(found) < kills:
            time.sleep(random.uniform(*pause))
            side.check()
            found.append(one(side, random.choice(KINDS), old, nproc))
            if len(found) % 10 == 0:
                lost = Counter(record["lost"] for record in found)
                common.say(f"{len(found)} kills; steps lost: {dict(sorted(lost.items()))}")
    return found


def main() -> None:
    here = common.machine()
    given = common.options(
        __doc__,
        ("--kills", {"type": int, "default": 100}),
        ("--nproc", {"type": int, "default": 2}),
        ("--model", {"choices": list(common.MODELS), "default": "small"}),
        ("--checkpoint-every", {"type": int, "default": 200, "help": "steps; what is left without snapshots"}),
        ("--pause", {"type": float, "nargs": 2, "default": (0.3, 2.0), "metavar": ("MIN", "MAX"), "help": "seconds"}),
    )
    random.seed(given.seed)
    every = ["--snapshot-every", "1", "--checkpoint-every", str(given.checkpoint_every)]
    workload = ["-m", "trainer", "--steps", "100000000", "--log-every", "1000", *every, *common.MODELS[given.model]]
    found = measure(given.nproc, given.kills, tuple(given.pause), workload)

    def row(name: str, records: list[dict[str, Any]], key: str = "lost") -> tuple[object, ...]:
        lost = [record[key] for record in records]
        # Below 0: a rank had copied a step that another was killed in.
        none, one_step = sum(n <= 0 for n in lost), sum(n == 1 for n in lost)
        return (name, len(lost), none, one_step, len(lost) - none - one_step, max(lost, default="-"))

    rows = [row(f"kill of {kind}", [r for r in found if r["kind"] == kind]) for kind in KINDS]
    rows.append(row("all kills", found))
    rows.append(row("counting a step that any rank had finished", found, "lost_by_any_rank"))
    common.show("Steps lost", ("", "kills", "none", "one", "more", "most"), rows)
    none, most = sum(r["lost"] <= 0 for r in found), max(r["lost"] for r in found)
    sure = common.at_least(none, len(found))
    reached = "reached" if sure >= AIM and most <= 1 else "not reached"
    print(f"nothing lost: {100 * none / len(found):.1f} %, surely {100 * sure:.1f} % (95 % interval); aim: {reached}")
    print(f"resumed from: {dict(Counter(str(record['source']) for record in found))}")
    seconds = common.summary([record["seconds"] for record in found])
    body = {"none": none, "none_surely": sure, "most": most, "seconds": seconds, "samples": found}
    common.write(given.json, "lost_steps", here, given, body)


if __name__ == "__main__":
    main()
