"""`supervise launch` on machines of their own: one run over several nodes, for tests that break it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from supervisor.reading.events_file import read_events
from tests.support import step_notes
from tests.support.launched import Launched, Warm, environment, started
from tests.support.machines import Machine, network
from tests.support.supervised import ROOT, SUPERVISE
from tests.support.waiting import until
from trainer.rundir.layout import RunDir

SCRIPT = str(ROOT / "tests" / "support" / "machine_trainer.py")
PORT = 29400
LEASE_S = 5.0
"""Long enough for a machine on which a process gets no CPU for some seconds. Ranks of a node that is lost end after
it."""


class Cluster:
    """Machines that are up, each with a process of which its launches are forks. It outlives a test."""

    def __init__(self, machines: list[Machine]) -> None:
        self.machines = machines
        self._warm: dict[int, Warm] = {}
        self._own: dict[int, int] = {}
        """Its pid on its machine."""

    def warm(self, node: int) -> Warm:
        """That of a machine that is up and runs nothing."""
        if node not in self._warm:
            machine = self.machines[node]
            self._warm[node] = started(_environment()).on(machine.pid)
            self._own[node] = until(lambda: [pid for pid, line in machine.commands().items() if "warm.py" in line])[0]
        return self._warm[node]

    def warm_up(self) -> None:
        """All have one, which has done its imports: their launches begin at once."""
        for node in range(len(self.machines)):
            self.warm(node)
        for node in range(len(self.machines)):
            with Path(os.devnull).open("w") as out:
                self.warm(node).start(["-c", "pass"], Path("/"), _environment(), out, out).wait(60)

    def power_off(self, node: int) -> None:
        self.machines[node].power_off()
        self._forget(node)

    def kill_all(self, node: int) -> None:
        """All processes of a machine are dead; the machine is up."""
        self.machines[node].kill_all()
        self._forget(node)

    def _forget(self, node: int) -> None:
        if node in self._warm:
            self._warm.pop(node).end()
            self._own.pop(node)

    def mend(self) -> None:
        """All machines are up, reach each other, and run nothing."""
        for node, machine in enumerate(self.machines):
            machine.heal()
            machine.thaw()
            if machine.up:
                machine.plug()
                if self.left_on(node):
                    self.power_off(node)
            if not machine.up:
                machine.boot()

    def left_on(self, node: int) -> list[str]:
        """What is there that was not before any run: processes, by their command, and shared memory."""
        machine = self.machines[node]
        commands = [line for pid, line in machine.commands().items() if pid != self._own.get(node)]
        return commands + machine.shared_memory()


@contextlib.contextmanager
def cluster(count: int, alias: str = "") -> Iterator[Cluster]:
    with network(count, alias) as machines:
        made = Cluster(machines)
        try:
            made.warm_up()
            yield made
        finally:
            for node in range(count):
                made.power_off(node)


class NodesRun:
    """One run over the nodes of a cluster. All see its folder."""

    def __init__(
        self,
        nodes: Cluster,
        folder: Path,
        nnodes: str = "2",
        steps: int = 100_000,
        pause: float = 0.03,
        sharded: bool = False,
        at: Path | None = None,
        held: bool = False,
        lease: float = LEASE_S,
    ) -> None:
        """The run's folder is `at`, or in `folder`. `held`: it is not over before let_end(), however long that takes.
        `lease` in seconds."""
        self.nodes, self.folder, self.sharded, self.held, self.lease = nodes, folder, sharded, held, lease
        self.nnodes, self.steps, self.pause = nnodes, steps, pause
        self.dir = RunDir(at or folder / "run")
        self.leads = 0
        """The machine of node 0. The later ones are the nodes after it."""
        self.launches: dict[int, Launched] = {}
        self._notes = folder / "notes"
        self._notes.mkdir(parents=True, exist_ok=True)

    def start(self, *numbers: int, more: tuple[str, ...] = (), **env: str) -> None:
        """`supervise launch` on those nodes."""
        for node in numbers:
            endpoint = f"{self.nodes.machines[self.leads].name}:{PORT}"
            where = ["--node-rank", str(node - self.leads), "--rdzv-endpoint", endpoint]
            ours = ["--nnodes", self.nnodes, *where, "--lease", f"{self.lease:.0f}s", "--run-dir", str(self.dir.path)]
            ours += ["--backoff", "10ms:50ms", *(["--hang-timeout", "off"] if self.held else []), *more]
            self.start_as(node, [SUPERVISE, "launch", *ours, *self.script], **env)

    @property
    def script(self) -> list[str]:
        kinds = [*(["sharded"] if self.sharded else []), *(["held"] if self.held else [])]
        return [SCRIPT, str(self._notes), str(self.steps), str(self.pause), "-", *kinds]

    def let_end(self) -> None:
        """If it was held, it comes to its end."""
        (self.folder / "end").touch()

    def start_as(self, node: int, command: list[str], **env: str) -> None:
        """That command, with these variables more."""
        with (self.folder / f"node{node}.out").open("a") as out:
            self.launches[node] = self.nodes.warm(node).start(command, self.folder, _environment(**env), out, out)

    def said(self, node: int) -> str:
        return (self.folder / f"node{node}.out").read_text()

    def wait(self, node: int, seconds: float = 120.0) -> int:
        return self.launches[node].wait(seconds)

    def signal(self, node: int, number: int) -> None:
        """To the supervisor of that node."""
        assert self.nodes.machines[node].send(self.launches[node].pid, number)

    def events(self, *names: str) -> list[dict[str, Any]]:
        events = read_events(self.dir.events)[0] if self.dir.events.exists() else ()
        return [event for event in events if not names or event["msg"] in names]

    def noted(self) -> list[step_notes.Noted]:
        return step_notes.read(self._notes)

    def now(self) -> list[step_notes.Noted]:
        """The ranks of the newest attempt; none before the first."""
        return step_notes.read(self._notes, newest=True)

    def until_step(self, more: int = 10, world: int = 2, after: int = -1) -> list[step_notes.Noted]:
        """The ranks of the newest attempt, later than `after`, once each of its `world` has done `more` steps."""

        def stepped() -> list[step_notes.Noted]:
            ranks = [each for each in self.now() if each.attempt > after and each.world == world]
            return ranks if len(ranks) == world and all(len(each.steps) >= more for each in ranks) else []

        return until(stepped)

    def until_parked(self, count: int = 1) -> None:
        """So many groups have been parked over the nodes."""
        until(lambda: len(self.events("standby_ready")) >= count)

    def changes(self) -> list[step_notes.Change]:
        return step_notes.changes(self.noted())

    def bits(self) -> set[str]:
        """What the ranks that came to the end have come to."""
        return {each.bits for each in self.noted() if each.bits is not None}

    def assert_nothing_left(self, *nodes: int) -> None:
        """Nothing of the run is left on those nodes; what ends by itself has a moment for it."""
        until(lambda: not [left for node in nodes for left in self.nodes.left_on(node)])


def _environment(**more: str) -> dict[str, str]:
    return environment(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), **more)


STEPS = 120
"""Of a run that comes to its end: enough for a fault on the way."""


def undisturbed_bits(cluster: Cluster, factory: pytest.TempPathFactory) -> set[str]:
    """The bits of a run of two nodes and STEPS steps that nothing happens to, made once for all processes of a test
    session."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed-nodes"
    with FileLock(f"{folder}.lock"):
        run = NodesRun(cluster, folder, steps=STEPS, pause=0.0, lease=60.0)
        if not run.noted():
            run.start(0, 1)
            assert [run.wait(node) for node in (0, 1)] == [0, 0], run.said(0)
            run.assert_nothing_left(0, 1)
    assert len(run.bits()) == 1 and len({noted.host for noted in run.noted()}) == 2
    return run.bits()
