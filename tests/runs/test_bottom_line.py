"""What somebody sees who launches a run in a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from supervisor.reading.follow import LogRecord, RunFollower
from supervisor.run.runs import load
from supervisor.run.status import status
from tests.support.jobs import TINY
from tests.support.launched import environment
from tests.support.screen import Terminal
from tests.support.supervised import SUPERVISE, Run, start
from tests.support.waiting import until

_STEPS = 100_000
_BOTTOM = re.compile(rf"^running  (\d+)/{_STEPS} \d+ %  .*\d ms/step  .* left  loss [\d.]+  1 restart", re.M)


_RANKS = re.compile(r"^ +([01]) +(\d+) +[\d.]+ +[\d.]+ +\d+ s +train", re.M)


def rows(terminal: Terminal, attempt: int, low: int) -> list[int]:
    """The steps of both ranks on the full screen, once it shows that attempt, and none below `low`."""

    def trains(text: str) -> list[int]:
        steps = [int(step) for _, step in _RANKS.findall(text)]
        return steps if f"attempt {attempt} " in text and len(steps) == 2 and min(steps) >= low else []

    return terminal.until(trains)


def watch(run: Run) -> None:
    """The full screen is what the run's files say, over a restart. q leaves the run alone."""
    known = load(run.dir.path)
    assert known is not None
    terminal = Terminal(80, 24)
    tty, env = terminal.file, {**os.environ, "TERM": "xterm"}
    shown = subprocess.Popen([SUPERVISE, "watch", "run"], cwd=run.folder, env=env, stdin=tty, stdout=tty, stderr=tty)
    try:
        for attempt in (1, 2):
            rows(terminal, attempt, 0)
            low = min(worker["step"] for worker in status(known)["workers"])
            steps, now = rows(terminal, attempt, low), status(known)
            assert max(steps) <= now["step"] and now["attempt"] == attempt and terminal.screen.alternate
            # A picture may be half drawn over the one before.
            parts = ("loss ", "goodput ", "ledger ", "── events", "── log", "r0 │")
            terminal.until(lambda text: all(part in text for part in parts))  # noqa: B023
            if attempt == 1:
                os.kill(now["workers"][1]["pid"], signal.SIGKILL)
        terminal.type("q")
        assert shown.wait(30) == 0
        terminal.until(lambda text: "goes on" in text)
        assert not terminal.screen.broken and not terminal.screen.alternate
    finally:
        shown.kill()
        shown.wait()
        terminal.close()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal(80, 24)
    yield terminal
    terminal.close()


def test_the_line_at_the_bottom(run: Run, terminal: Terminal) -> None:
    """It is what the run's files say, over a restart, and is gone at the end. No line of ours is broken. Ctrl-C says
    what happens."""
    faults = ("--inject", "kill:rank=1@step=5", "--nproc", "2")
    command = [SUPERVISE, "launch", "--run-dir", "run", *faults, "--", *TINY, "--steps", str(_STEPS)]
    env = environment(**({"TERM": "xterm"} if os.environ.get("TERM") == "dumb" else {}))
    with open(os.ttyname(terminal.file.fileno()), "w") as tty:  # noqa: PTH123
        run.process = start(command, run.folder, env, tty, tty)
    before = until(lambda: run.dir.run_json.exists() and (known := load(run.dir.path)) is not None and known)
    terminal.until(lambda text: _BOTTOM.search(text))
    low = status(before)["step"]
    shown = terminal.until(lambda text: (found := _BOTTOM.search(text)) and int(found[1]) >= low and found)
    now = status(before)
    assert low <= int(shown[1]) <= now["step"] and now["total"] == _STEPS and now["restarts"] == 1
    # The line is of now; what has happened is printed at the next look.
    words = ("attempt 1 · restart after killed (rank 1, SIGKILL)", "first step done")
    terminal.until(lambda _: all(part in terminal.read() for part in words))
    # Lines of the training itself may be broken.
    assert not [text for text in terminal.screen.broken if text.startswith(("run", "  ", "●", "──"))]

    watch(run)

    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 103
    terminal.until(lambda text: text.rstrip().endswith("supervise resume run"))
    end = terminal.read()
    assert "saving a checkpoint after step" in end and "Ctrl-C again stops now" in end
    assert f"step {run.events('checkpoint_committed')[-1]['step']}" in end
    # The supervisor has noted when each line of the logs was written.
    logged = [record for record in RunFollower(run.dir, lambda: False).poll() if isinstance(record, LogRecord)]
    times = [(record.attempt, record.at) for record in logged if record.at is not None]
    assert len(times) == len(logged) > 2 and times == sorted(times)
    assert not _BOTTOM.search(terminal.screen.text())
