"""One run of the job. It is started as a person would start it, watched from outside, and resumed when its supervisor
is killed.

When the run says that an attempt is gone, the runner checks by itself that no process of it is alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.process.kill import kill_child
from supervisor.reading.events_file import Event, EventReader
from supervisor.run.folder.lock import claimed
from supervisor.run.leftovers import clear, mark_of, marks
from supervisor.run.runs import load
from supervisor.run.status import story_of
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.proc import is_running

_LOOK = 0.05
_ROOT = Path(__file__).resolve().parents[2]
# By path, like all our programs. The user may have a `supervisor` in the current folder.
_PROGRAM = f"import sys; sys.path[0] = {str(_ROOT)!r}; from supervisor.__main__ import main; main()"
_STOPPING = 90.0
"""Seconds that a run may take to stop on request."""


@dataclass(slots=True)
class Outcome:
    """The end of a run. `exit_code` is that of its last launch, or minus the signal that killed it."""

    exit_code: int = 0
    survivors: dict[int, int] = field(default_factory=dict)
    """For each attempt: the number of processes that were alive after the run said that it was gone."""
    leftovers: tuple[str, ...] = ()
    problem: str = ""


@contextlib.contextmanager
def later(*numbers: signal.Signals) -> Iterator[None]:
    """These signals of this process, if they come inside, are handled at the end of the block. Call it in the main
    thread."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda each, _: came.append(each)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in dict.fromkeys(came):
            signal.raise_signal(each)


class Runner:
    """Runs the job in `run`. After the `with` block nothing of the run is alive, even if an exception ended the
    block."""

    def __init__(self, run: RunDir, launch: Sequence[str], deadline: float) -> None:
        self._run = run
        self._launch = list(launch)
        self._until = time.monotonic() + deadline
        self._deadline = deadline
        self._reader = EventReader(run.events)
        self._pids: dict[int, set[int]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self.outcome = Outcome()

    def run(self, lives: int) -> Outcome:
        """Runs the job to its end. A killed supervisor is started again, up to `lives` times."""
        try:
            self._start(["launch", "--quiet", "--run-dir", str(self._run.path), *self._launch])
            while self._wait() == -signal.SIGKILL and lives > 0 and not story_of(self._run).over:
                lives -= 1
                self._start(["resume", "--quiet", str(self._run.path)])
        finally:
            self._stop()
            self._look()
            self.outcome.leftovers = self._leftovers()
        return self.outcome

    def _start(self, arguments: list[str]) -> None:
        env = {k: v for k, v in os.environ.items() if k not in ("SUPERVISE_INJECT", "SUPERVISE_RUN_DIR")}
        # Until it is known nobody could stop it.
        with self._log().open("ab") as log, later(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C goes to this process only, which then stops the run.
                start_new_session=True,
            )

    def _log(self) -> Path:
        return self._run.path.with_name(f"{self._run.path.name}.log")

    def _wait(self) -> int:
        """The exit code of the supervisor. It has ended by itself, or it was told to stop because its time was over."""
        assert self._process is not None
        while True:
            self._look()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.outcome.exit_code = self._process.wait(_LOOK)
                return self.outcome.exit_code
            if time.monotonic() > self._until:
                self.outcome.problem = f"the run did not end within {self._deadline:.0f} s"
                self._stop()

    def _look(self) -> None:
        for event in self._reader.read():
            self._note(event)

    def _note(self, event: Event) -> None:
        pids = self._pids.setdefault(event.attempt, set())
        match event.name:
            case "attempt_started":
                pids |= {event.fields["launcher_pid"]}
            case "group_ready":
                pids |= set(event.fields["pids"])
            case "group_gone":
                self.outcome.survivors[event.attempt] = sum(map(is_running, pids))
            case _:
                pass

    def _stop(self) -> None:
        """The supervisor and all processes of the run are gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            replace_file(self._run.stop, b"now")
        try:
            process.wait(_STOPPING)
        except subprocess.TimeoutExpired:
            kill_child(process.pid)
            process.wait()
        self.outcome.exit_code = process.returncode

    def _leftovers(self) -> tuple[str, ...]:
        """The names of the run's leftovers. All of them are removed."""
        known = load(self._run.path)
        if known is None:
            return ()
        with claimed(self._run) as ours:
            if not ours:
                return ("its lock is held",)
            found = [fate.leftover for fate in clear(known, marks().get(mark_of(known), []))]
            return tuple(f"{leftover.kind.value} {leftover.place}" for leftover in found)
