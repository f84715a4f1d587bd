"""A launch whose standard streams are closed, full or without a reader: the run is none the worse for it."""

from __future__ import annotations

import signal

from supervisor.run.folder.lock import is_held
from tests.support.shells import UNREAD
from tests.support.supervised import Run
from tests.support.waiting import until

WAITS = """
import os, sys, time
here = os.path.dirname(os.path.abspath(sys.argv[0]))
open(os.path.join(here, "up"), "w").close()
while not os.path.exists(os.path.join(here, "go")):
    time.sleep(0.02)
"""
SHELL = ["bash", "-c", f'{UNREAD}; exec "$@"', "bash"]


def test_a_launch_with_closed_streams(run: Run) -> None:
    """No file of the run has the number of one of them."""
    run.start("--no-standby", run.script("print(1)"), through=["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash"])

    assert run.wait() == 0

    assert [event["state"] for event in run.events("run_ended")] == ["finished"]
    # Each line of the file is an event: nothing else was written into it.
    assert len(run.events()) == len(run.dir.events.read_bytes().splitlines())


def test_a_launch_that_nobody_reads(run: Run) -> None:
    """Neither the note about an option that means nothing here nor the first words are a reason to start nothing."""
    run.start(
        "--no-standby",
        "--rdzv-backend",
        "c10d",
        run.script("print(1)"),
        through=SHELL,
    )

    assert run.wait() == 0

    assert [event["state"] for event in run.events("run_ended")] == ["finished"]


def test_a_detached_launch_that_nobody_reads(run: Run) -> None:
    """It has started, and that is what its exit code says."""
    launch = run.start("-d", "--no-standby", run.script("print(1)"), through=SHELL)

    assert launch.wait(60) == 0

    run.until_event("run_ended")
    until(lambda: not is_held(run.dir))
    run.assert_nothing_left()


def test_an_end_that_cannot_be_said(run: Run) -> None:
    """Its exit code is that of the run: neither the folder that it was launched in, which is gone, nor a full stdout
    changes it."""
    away = run.folder / "away"
    away.mkdir()
    script, go = run.script(WAITS), run.folder / "go"
    full = ["bash", "-c", 'exec "$@" >/dev/full', "bash"]
    run.start("--no-standby", "--json", f"../{script}", cwd=away, through=full)
    until((run.folder / "up").exists)
    away.rmdir()
    go.touch()

    assert run.wait() == 0

    said = (run.folder / "stderr").read_text()
    assert f"supervise report {run.dir.path}" in said and "its status cannot be printed" in said
    assert "Traceback" not in said and "Exception" not in said


def test_a_run_is_left_to_the_background_from_a_folder_that_is_gone(run: Run) -> None:
    """Its ranks go on, and the words name it by its whole path."""
    away = run.folder / "away"
    away.mkdir()
    script, go = run.script(WAITS), run.folder / "go"
    launch = run.start("--no-standby", f"../{script}", cwd=away)
    until((run.folder / "up").exists)
    away.rmdir()
    for text in ("not paused", f"supervise attach {run.dir.path}"):
        launch.send_signal(signal.SIGTSTP)
        until(lambda: text in (run.folder / "stderr").read_text())  # noqa: B023
    assert launch.wait(60) == 0
    run.until_event("adopted")
    go.touch()
    run.until_event("run_ended")
    until(lambda: not is_held(run.dir))
    assert [event["state"] for event in run.events("run_ended")] == ["finished"]
    run.assert_nothing_left()
