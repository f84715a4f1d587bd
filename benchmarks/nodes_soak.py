"""Minutes of random faults on a training over three nodes, judged by what its ranks have noted.

    python benchmarks/nodes_soak.py [--minutes 15] [--seed 7] [--json FILE]

The nodes are namespaces of this machine's kernel (tests/support/machines.py; as root), one rank each, `--nnodes 1:3`,
with a lease of 1 s. One fault at a time: the next one comes when the run steps again, on all nodes that are there, and
has kept its state on two of them. What has ended is started again at once, as an engine does it.

It ends with 1 if two attempts were at work at once, if a step that all ranks had done was lost, or if the run stood
still for longer than --still.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, machine, options, write

sys.path.append(str(ROOT))

from tests.support.cluster import Cluster, NodesRun, cluster
from tests.support.machines import missing

NODES, LEASE_S = 3, 1.0
ENDLESS = ("--max-restarts", "1000000", "--no-progress-limit", "1000000", "--node-wait", "4s", "--quiet")


class Soak:
    """The run, and what can befall it. Each fault returns how to undo it, if it does not end by itself."""

    def __init__(self, nodes: Cluster, folder: Path, seed: int) -> None:
        self.nodes, self.random = nodes, random.Random(seed)
        self.run = NodesRun(nodes, folder, f"1:{NODES}", steps=10**9, lease=LEASE_S)
        self.faults: dict[str, Callable[[int], Callable[[], None] | None]] = {
            "rank killed": self._rank,
            "supervisor killed": lambda node: self._supervisor(node, signal.SIGKILL),
            "supervisor stopped": self._stopped,
            "cable out": self._cable,
            "sent is lost": lambda node: self._dropped(node, "sent"),
            "received is lost": lambda node: self._dropped(node, "received"),
            "all processes killed": self._all,
            "power off": self._power,
        }

    def _rank(self, node: int) -> None:
        ranks = [each for each in self.run.now() if each.host == self.nodes.machines[node].name]
        if ranks:
            self.nodes.machines[node].send(ranks[-1].pid, signal.SIGKILL)

    def _supervisor(self, node: int, number: int) -> None:
        self.nodes.machines[node].send(self.run.launches[node].pid, number)

    def _stopped(self, node: int) -> Callable[[], None]:
        self._supervisor(node, signal.SIGSTOP)
        return lambda: self._supervisor(node, signal.SIGCONT)

    def _cable(self, node: int) -> Callable[[], None]:
        self.nodes.machines[node].unplug()
        return self.nodes.machines[node].plug

    def _dropped(self, node: int, what: Any) -> Callable[[], None]:
        self.nodes.machines[node].drop(what)
        return self.nodes.machines[node].heal

    def _all(self, node: int) -> None:
        self.nodes.kill_all(node)
        del self.run.launches[node]

    def _power(self, node: int) -> Callable[[], None]:
        self.nodes.power_off(node)
        del self.run.launches[node]
        return self.nodes.machines[node].boot

    def keep(self) -> None:
        """What an engine does: a launch that has ended on a machine that is up is started again."""
        for node, there in enumerate(self.nodes.machines):
            started = self.run.launches.get(node)
            if there.up and (started is None or started.poll() is not None):
                self.run.start(node, more=ENDLESS)

    def takes_part(self, node: int) -> bool:
        """Whether a rank of the newest attempt is there. The leader's fault is one for all."""
        return node == 0 or any(each.host == self.nodes.machines[node].name for each in self.run.now())

    def whole(self, after: int) -> bool:
        """Whether all nodes step together, in an attempt later than `after`, for long enough to be safe again."""
        ranks = self.run.now()
        return bool(ranks) and ranks[0].attempt > after and min(len(each.steps) for each in ranks) > 15

    def until(self, what: Callable[[], bool], seconds: float) -> float | None:
        """How long it took; None if it did not come true."""
        began = time.monotonic()
        while (took := time.monotonic() - began) < seconds:
            if what():
                return took
            self.keep()
            time.sleep(0.1)
        return None


def soaked(soak: Soak, minutes: float, longest: float) -> list[dict[str, Any]]:
    """The faults, and what came of each."""
    rows: list[dict[str, Any]] = []
    soak.keep()
    assert soak.until(lambda: soak.whole(-1) and soak.run.now()[0].world == NODES, 120) is not None, "it never trained"
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        name, node = soak.random.choice(list(soak.faults)), soak.random.randrange(NODES)
        lasts, before = soak.random.choice((0.3, 0.6, 0.9, 1.2, 2.0, 4.0)), soak.run.now()[0].attempt
        if soak.run.now()[0].world < NODES:
            # A node that has come back takes part from the next restart on.
            name, node = "rank killed", 0
        takes_part = soak.takes_part(node)
        undo = soak.faults[name](node)
        if undo is not None:
            soak.until(lambda: False, lasts)
            undo()
        # What is over before the lease is, is no fault, nor is what befalls a spare.
        harmless = not takes_part or (undo is not None and lasts < 1.5 * LEASE_S and name != "power off")
        if harmless:
            soak.until(lambda: False, 2.0)
        took = soak.until(lambda: soak.whole(-1 if harmless else before), longest)  # noqa: B023
        rows.append(
            {
                "fault": name,
                "node": node,
                "spare": not takes_part,
                "lasts_s": lasts if undo else None,
                "stepping_s": took,
            }
        )
        again = "never" if took is None else f"{took:.1f} s"
        print(f"{name:22} node {node}  {f'{lasts} s' if undo else '':6}  stepping again: {again}", flush=True)
        if took is None:
            break
        soak.until(lambda: False, soak.random.uniform(0.5, 2.0))
    return rows


def main() -> None:
    given = options(
        __doc__,
        ("--minutes", {"type": float, "default": 15.0}),
        ("--still", {"type": float, "default": 45.0, "help": "the longest that it may stand still, in seconds"}),
    )
    if why := missing():
        sys.exit(f"no nodes to be had here: {why}")
    seed, here = given.seed if given.seed is not None else random.randrange(10**6), machine()
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, cluster(NODES) as nodes:
        soak = Soak(nodes, Path(folder), seed)
        rows = soaked(soak, given.minutes, given.still)
        changes = soak.run.changes()
        stood = max((change.still for change in changes), default=0.0)
        overlaps = [change for change in changes if change.still < 0]
        lost = [change for change in changes if change.lost > 1]
        worlds = sorted({noted.world for noted in soak.run.noted()})
    print(f"{len(rows)} faults, {len(changes)} changes of attempt, worlds {worlds}; longest standstill {stood:.1f} s")
    print(f"{len(overlaps)} overlaps {overlaps}; {len(lost)} changes that lost completed steps {lost}")
    body = {"seed": seed, "faults": rows, "changes": len(changes), "overlaps": len(overlaps), "lost": len(lost)}
    write(given.json, "nodes_soak", here, given, {**body, "standstill_s": stood})
    sys.exit(bool(overlaps or lost or any(row["stepping_s"] is None for row in rows)))


if __name__ == "__main__":
    main()
