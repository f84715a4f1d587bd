"""`watch` leaves the terminal as it was, however it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from supervisor.run import spec as specs
from supervisor.run.spec import Spec
from tests.support.runs_on_disk import Writer
from tests.support.screen import Terminal
from tests.support.supervised import SUPERVISE
from trainer.rundir.machine.proc import content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_screen(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-Z does not pause it: a shell would show its lines on our screen."""
    w = Writer(tmp_path / "run")
    specs.save(w.run, Spec("gpt-7f3a", "f" * 16, ("train.py",), False, 1, str(tmp_path)))
    w.event("run_started", attempt=-1)
    terminal = Terminal(80, 24)
    tty, env = terminal.file, {**os.environ, "TERM": "xterm"}
    before = termios.tcgetattr(tty)
    shown = subprocess.Popen([SUPERVISE, "watch", "run"], cwd=tmp_path, env=env, stdin=tty, stdout=tty, stderr=tty)
    try:
        terminal.until(lambda text: "gpt-7f3a" in text)
        assert terminal.screen.alternate and termios.tcgetattr(tty) != before
        ignored = int(content(f"/proc/{shown.pid}/status").partition(b"SigIgn:")[2].split()[0], 16)
        assert ignored >> (signal.SIGTSTP - 1) & 1
        shown.send_signal(number)
        assert shown.wait(60) == 0
        terminal.until(lambda text: "gpt-7f3a" not in text)
        assert not terminal.screen.alternate and termios.tcgetattr(tty) == before
    finally:
        shown.kill()
        shown.wait()
        terminal.close()
