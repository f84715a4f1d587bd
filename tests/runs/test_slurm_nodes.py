"""A real Slurm of two nodes: a job loses one and trains on, is queued again, and goes on with the same run."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.reading.events_file import read_events
from tests.support import step_notes
from tests.support.cluster import SCRIPT
from tests.support.machines import Machine, missing, network
from tests.support.slurm import MISSING, slurm_over
from tests.support.supervised import SUPERVISE
from tests.support.waiting import until
from trainer.rundir.layout import RunDir

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(MISSING, reason="slurm-wlm is not installed here, or this is not root: no Slurm to ask"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


class Cluster:
    """Two nodes, and a machine on which the controller is and commands are given."""

    def __init__(self, folder: Path, machines: list[Machine], env: dict[str, str]) -> None:
        self.folder, self.machines, self.env = folder, machines, env
        self.run, self.notes = RunDir(folder / "run"), folder / "notes"

    def asked(self, *command: str) -> str:
        whole = [*self.machines[2].inside, *command]
        done = subprocess.run(whole, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submitted(self, *launch: str) -> str:
        """The number of the job."""
        self.notes.mkdir()
        options = ["--nodes=2", "--time=30", f"--chdir={self.folder}", f"--output={self.folder}/job.out"]
        words = [*launch, "--run-dir", str(self.run.path), SCRIPT, str(self.notes), "100000"]
        return self.asked(SUPERVISE, "submit", "--slurm", *options, "--", *words)

    def state(self, job: str) -> str:
        return self.asked("squeue", "--noheader", "--format=%T", "--job", job)

    def stepping(self, world: int, after: int = -1) -> bool:
        """Whether `world` ranks of an attempt later than `after` have done ten steps."""
        ranks = [noted for noted in step_notes.read(self.notes) if noted.attempt > after]
        newest = [noted for noted in ranks if noted.attempt == ranks[-1].attempt and len(noted.steps) > 10]
        return len(newest) == world == newest[0].world if newest else False

    def repair(self, node: int) -> None:
        """That machine has power again, and Slurm's daemon."""
        machine = self.machines[node]
        machine.boot()
        slurmd = [*machine.inside, "slurmd", "-N", machine.name]
        subprocess.run(slurmd, env=self.env, check=True, stdin=subprocess.DEVNULL)

    def attempts(self) -> int:
        return max(noted.attempt for noted in step_notes.read(self.notes))

    def assert_no_overlap(self) -> None:
        for change in step_notes.changes(step_notes.read(self.notes)):
            # The step with the last save is kept, and its rank ends before it has noted it.
            assert change.still > 0 and change.lost <= 1 and change.skipped <= 1, change

    def assert_nothing_left(self) -> None:
        """On the nodes there is Slurm, and nothing else."""

        def left() -> list[str]:
            found = [line for node in self.machines[:2] for line in node.commands().values() if "slurm" not in line]
            return found + [name for node in self.machines[:2] for name in node.shared_memory()]

        until(lambda: not left())

    def ends(self) -> list[int]:
        events = read_events(self.run.events)[0] if self.run.events.exists() else ()
        return [event["exit_code"] for event in events if event["msg"] == "run_ended"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="sl-") as name,
        network(3) as machines,
        slurm_over(Path(name), machines[2], machines[:2]) as env,
    ):
        yield Cluster(Path(name), machines, env)


def test_a_node_is_lost_and_the_job_is_queued_again(cluster: Cluster) -> None:
    """It trains on with the other node, and when it is started again, with both, from where it was."""
    job = cluster.submitted("--nnodes", "1:2", "--lease", "1s")
    until(lambda: cluster.stepping(2), 120)
    cluster.machines[1].power_off()
    until(lambda: cluster.stepping(1, after=0), 60)
    until(lambda: "down" in cluster.asked("sinfo", "--noheader", "--Node", "--format=%T"), 60)
    assert cluster.state(job) == "RUNNING"

    cluster.repair(1)
    before = cluster.attempts()
    cluster.asked("scontrol", "requeue", job)
    until(lambda: cluster.ends() == [75] and cluster.state(job) == "PENDING", 60)
    cluster.asked("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: cluster.stepping(2, after=before), 120)
    cluster.asked("scancel", job)
    until(lambda: cluster.ends() == [75, 75] and "CANCELLED" in cluster.asked("scontrol", "show", "job", job), 60)
    cluster.assert_no_overlap()
    cluster.assert_nothing_left()


def test_the_first_node_is_lost(cluster: Cluster) -> None:
    """The batch script and the leader are lost with it. The other node ends its ranks, saves what it has, and queues
    the job again, which goes on from there."""
    job = cluster.submitted("--lease", "1s", "--node-wait", "5s")
    until(lambda: cluster.stepping(2), 120)
    cluster.machines[0].power_off()
    until(lambda: not [line for line in cluster.machines[1].commands().values() if "supervise" in line], 60)
    until(lambda: cluster.state(job) == "PENDING", 60)
    cluster.repair(0)
    cluster.asked("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: cluster.stepping(2, after=0), 120)
    cluster.asked("scancel", job)
    until(lambda: cluster.ends() == [75] and "CANCELLED" in cluster.asked("scontrol", "show", "job", job), 60)
    cluster.assert_no_overlap()
    cluster.assert_nothing_left()
