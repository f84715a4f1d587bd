"""A shell that ends in `exec supervise …`: what it had in the background is not the run's."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import psutil
import pytest

from supervisor.process.proctree import is_alive
from tests.support.scripts import FOREVER, STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until

SHELL = """
exec > >(exec tee -a log) 2>&1
echo begun
sleep 1000 &
exec "$@"
"""


class Shell:
    """The run is launched by a shell, whose jobs end with the test."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.jobs: list[psutil.Process] = []
        (run.folder / "shell.sh").write_text(SHELL)

    def start(self, *arguments: str) -> list[psutil.Process]:
        """The jobs of the shell, which has become the launch."""
        process = self.run.start(*arguments, through=["bash", "shell.sh"])
        shell = psutil.Process(process.pid)

        def jobs() -> list[psutil.Process]:
            found = [each for each in shell.children() if each.name() in ("tee", "sleep")]
            return found if len(found) == 2 else []

        found = until(jobs)
        self.jobs += found
        return found

    def log(self) -> str:
        return (self.run.folder / "log").read_text()

    def close(self) -> None:
        for job in self.jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.send_signal(signal.SIGKILL)
        until(lambda: not any(map(is_alive, self.jobs)))


@pytest.fixture
def shell(run: Run) -> Iterator[Shell]:
    made = Shell(run)
    yield made
    run.kill()
    made.close()


def test_the_jobs_of_the_shell_outlive_the_run(run: Run, shell: Shell) -> None:
    """After a rank is killed, and after the end. The log has the last words."""
    script = run.script(STEPPING)
    jobs = shell.start("--nproc", "2", "--inject", "kill:rank=1@step=5", script, "40", "0.01")
    run.until_event("attempt_started", 2)
    assert all(map(is_alive, jobs))

    assert run.wait() == 0

    assert all(map(is_alive, jobs))
    assert [cause for cause, _ in run.verdicts()] == ["killed", "finished"]
    until(lambda: "finished" in shell.log() and "supervise report" in shell.log().splitlines()[-1])
    assert shell.log().startswith("begun\n")


def test_the_jobs_of_the_shell_outlive_a_takeover(run: Run, shell: Shell) -> None:
    """The next launch ends what the dead supervisor has left, and neither its jobs nor its own. To stop the run ends
    no more."""
    script = run.script(FOREVER)
    first = shell.start("--nproc", "2", script)
    run.until_event("attempt_started")
    until(lambda: (run.folder / "up").exists() and len((run.folder / "up").read_text()) == 2)
    run.kill_supervisor()
    jobs = shell.start("--nproc", "2", "--resume", "never", script)
    until(lambda: len((run.folder / "up").read_text()) == 4)
    assert run.events("adopted") == []
    assert all(map(is_alive, [*first, *jobs]))

    run.cli("stop", "--now", str(run.dir.path))

    run.wait()
    assert all(map(is_alive, [*first, *jobs]))
