"""A launch whose standard streams are closed, full or without a reader: the run is none the worse for it."""

from __future__ import annotations

from supervisor.run.folder.lock import is_held
from tests.support.supervised import Run
from tests.support.waiting import until

UNREAD = ["bash", "-c", 'exec 2> >(exec true); wait $!; exec "$@"', "bash"]
"""Nobody reads what the command says on stderr."""


def test_a_launch_with_closed_streams(run: Run) -> None:
    """No file of the run has the number of one of them."""
    run.start("--no-standby", run.script("print(1)"), through=["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash"])

    assert run.wait() == 0

    assert [event["state"] for event in run.events("run_ended")] == ["finished"]
    # Each line of the file is an event: nothing else was written into it.
    assert len(run.events()) == len(run.dir.events.read_bytes().splitlines())


def test_a_launch_that_nobody_reads(run: Run) -> None:
    """Neither the note about an option that means nothing here nor the first words are a reason to start nothing."""
    run.start("--no-standby", "--rdzv-backend", "c10d", run.script("print(1)"), through=UNREAD)

    assert run.wait() == 0

    assert [event["state"] for event in run.events("run_ended")] == ["finished"]


def test_a_detached_launch_that_nobody_reads(run: Run) -> None:
    """It has started, and that is what its exit code says."""
    launch = run.start("-d", "--no-standby", run.script("print(1)"), through=UNREAD)

    assert launch.wait(60) == 0

    run.until_event("run_ended")
    until(lambda: not is_held(run.dir))
    run.assert_nothing_left()
