"""Ranks killed from outside, and the steps after it: how long the next group takes, and by component.

A kill is SIGKILL of a random rank, at a random moment `gap` to `gap` + 1 seconds after every rank's first step. It is
recovered from when every rank of the next group has finished its first optimizer step. Both times are CLOCK_MONOTONIC:
the kill's is taken before the call, the step's in the rank, by the hook that is the same on every side.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from typing import Any

from common import foreign, say, show, summary, until
from sides import Plan, Side
from steps import Step

TIME_LIMIT = 60.0
"""Seconds after which a group that has not come back is counted as not coming back."""
COMPONENTS = ("detect", "stop", "launch", "restore", "first step")
_ENDS = (("detect", "verdict"), ("stop", "group_gone"), ("launch", "group_ready"), ("restore", "resumed"))
"""Each component but the last, with the event that ends it."""


def strike(pid: int) -> float:
    """The process is killed; returns when, in CLOCK_MONOTONIC seconds."""
    now = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    return now


def next_group(side: Side, old: set[int], nproc: int, since: float = 0.0) -> list[Step]:
    """The first step after `since` of each rank of the group after the processes `old`."""

    def found() -> list[Step] | None:
        side.check()
        return side.steps.first_after(old, nproc, since)

    return until(found, TIME_LIMIT, f"{side.plan.name}: a step of every rank")


def components(events: list[dict[str, Any]], struck: float, stepped: float) -> dict[str, float] | None:
    """The stretches between `struck` and `stepped`, which they add up to, from the run's events.

    An event that did not come (a script that does not say when it has resumed) gives its time to the next stretch.
    """
    within = [event for event in events if struck <= event["mono"] <= stepped + 1.0]
    if not within:
        return None
    mark, found = struck, {}
    for component, name in _ENDS:
        at = next((event["mono"] for event in within if event["msg"] == name), mark)
        # The supervisor may hear of a stretch's end only after the step that followed.
        found[component] = max(0.0, min(at, stepped) - mark)
        mark += found[component]
    found[COMPONENTS[-1]] = stepped - mark
    return found


def recoveries(
    plan: Plan, workload: Sequence[str], nproc: int, kills: int, gap: float, parked_within: float = 0.0
) -> list[dict[str, Any]]:
    """One record a kill. A side that does not come back (`seconds` is null then) is started anew. A kill waits for a
    standby for up to `parked_within` seconds."""
    found: list[dict[str, Any]] = []
    while len(found) < kills:
        with Side(plan, workload) as side:
            next_group(side, set(), nproc)
            old: set[int] = set()
            while len(found) < kills:
                time.sleep(gap + random.random())
                _wait_for_standby(side, parked_within)
                record = _recovery(side, old, nproc)
                found.append(record)
                how = "not back" if record["seconds"] is None else f"back in {record['seconds']:.2f} s"
                say(f"{plan.name}: kill {len(found)} of {kills}, {how}")
                if record["seconds"] is None:
                    break
    return found


def _wait_for_standby(side: Side, seconds: float) -> None:
    """The next group waits in restore(), or that long was not enough. (A first one may wait at the first line, until
    the fork server has the program's imports.)"""
    end = time.monotonic() + seconds
    while time.monotonic() < end and _standby(side).get("at") != "restore":
        side.check()
        time.sleep(0.1)


def _standby(side: Side) -> dict[str, Any]:
    """The event of the group that waits; empty if none does."""
    told = side.events("standby_ready", "standby_lost", "attempt_started")
    return told[-1] if told and told[-1]["msg"] == "standby_ready" else {}


def _recovery(side: Side, old: set[int], nproc: int) -> dict[str, Any]:
    """A kill and what came of it; `old` has the killed group's processes afterwards."""
    side.check()
    pids = side.steps.pids(nproc)
    assert pids is not None
    ready = bool(_standby(side))
    rank = random.randrange(nproc)
    old |= set(pids.values())
    struck = strike(pids[rank])
    record: dict[str, Any] = {"rank": rank, "seconds": None}
    try:
        first = next_group(side, old, nproc, struck)
    except TimeoutError:
        return record
    record["seconds"] = max(step.at for step in first) - struck
    record["seconds_first_rank"] = min(step.at for step in first) - struck
    record["died_after_step"] = max(step.done for step in side.steps.of(pids.values()))
    record["first_new_step"] = first[0].done
    if side.plan.supervised:
        time.sleep(0.3)  # for the event of the first step
        record["standby_was_ready"] = ready
        record["components"] = components(side.events(), struck, struck + record["seconds"])
    return record


FOREIGN = 0.1
"""The share of the cores that others may use between two runs. Else a round tells of them."""


def alternating(
    plans: list[Plan], workload: Sequence[str], nproc: int, rounds: int, kills: int, gap: float, most: int
) -> dict[str, Any]:
    """Rounds in which each side has a run of so many kills, until `rounds` of them were calm, or `most` were made.

    A round before, between or after which others used the machine is discarded, and counted. The sides begin in turn.
    """
    kept: list[dict[str, list[dict[str, Any]]]] = []
    discarded: list[dict[str, Any]] = []
    for number in range(most):
        if len(kept) >= rounds:
            break
        load, found = [foreign()], dict[str, list[dict[str, Any]]]()
        for plan in plans if number % 2 == 0 else plans[::-1]:
            found[plan.name] = recoveries(plan, workload, nproc, kills, gap)
            load.append(foreign())
        if max(load) > FOREIGN:
            say(f"round {number + 1} is discarded: others used {100 * max(load):.0f} % of the cores")
            discarded.append({"load": load, "samples": found})
        else:
            kept.append(found)
    samples = {plan.name: [record for found in kept for record in found[plan.name]] for plan in plans}
    seconds = {
        name: summary([r["seconds"] for r in records if r["seconds"] is not None]) for name, records in samples.items()
    }
    first = seconds[plans[0].name]["p50"]
    rows = [
        (name, s["n"], *(f"{s[key]:.3f}" for key in ("min", "p50", "p95", "max")), f"{first / s['p50']:.2f}")
        for name, s in seconds.items()
    ]
    show(
        f"SIGKILL of a rank to the first new step, seconds ({len(kept)} rounds, {len(discarded)} discarded)",
        ("", "kills", "min", "p50", "p95", "max", f"{plans[0].name}'s p50 over it"),
        rows,
    )
    parts = {name: _by_component(name, records) for name, records in samples.items() if _told(records)}
    return {"seconds": seconds, "components": parts, "samples": samples, "discarded": discarded}


def compare(plans: list[Plan], workload: Sequence[str], nproc: int, kills: int, gap: float) -> dict[str, Any]:
    """Each side in turn; the tables are printed, and what the JSON holds is returned."""
    sides: dict[str, list[dict[str, Any]]] = {}
    for plan in plans:
        sides[plan.name] = recoveries(plan, workload, nproc, kills, gap)
    back = {name: [r["seconds"] for r in records if r["seconds"] is not None] for name, records in sides.items()}
    seconds = {name: summary(times) for name, times in back.items()}
    reference = seconds["torchrun"]["p50"]
    rows = [
        (
            name,
            kills,
            kills - s["n"],
            *(f"{s[key]:.3f}" for key in ("min", "p50", "p95", "max")),
            f"{reference / s['p50']:.1f} ×",
        )
        for name, s in seconds.items()
    ]
    show(
        "SIGKILL of a rank to the first new optimizer step of every rank, seconds",
        ("", "kills", "not back", "min", "p50", "p95", "max", "torchrun's p50 over it"),
        rows,
    )
    body: dict[str, Any] = {"nproc": nproc, "workload": list(workload), "seconds": seconds}
    body["ratio_p50"] = {name: reference / s["p50"] for name, s in seconds.items()}
    body["components"] = {name: _by_component(name, records) for name, records in sides.items() if _told(records)}
    return {**body, "samples": sides}


def _told(records: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [record["components"] for record in records if record.get("components")]


def _by_component(name: str, records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    parts = {component: summary([told[component] for told in _told(records)]) for component in COMPONENTS}
    warm = sum(record.get("standby_was_ready", False) for record in records)
    show(
        f"{name} by component, milliseconds (a standby was ready at {warm} of {len(records)} kills)",
        ("", "min", "p50", "p95", "max"),
        [(c, *(f"{1000 * s[key]:.1f}" for key in ("min", "p50", "p95", "max"))) for c, s in parts.items()],
    )
    return parts
