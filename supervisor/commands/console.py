"""The output of a foreground launch on stderr: the first words, events and rank 0's log as they come, and the summary
at the end.

It follows the run's files in its own thread. So a paused terminal does not pause supervision.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType

from supervisor.commands.attempt_words import attempt_lines
from supervisor.core.actions import End
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState
from supervisor.reading.choice import Choice
from supervisor.reading.follow import Record, RunFollower, pump
from supervisor.reading.plain import plain, plain_lines
from supervisor.reading.render import TextRenderer
from supervisor.run.runs import RUNS
from supervisor.run.spec import Spec, shown
from supervisor.run.status import story_of
from trainer.rundir.files.codec import read
from trainer.rundir.files.json_lines import Follower
from trainer.rundir.layout import RunDir
from trainer.rundir.records.errors import ErrorRecord

_TRACEBACK = 20
"""Lines of a traceback to show at the end."""
_DRAIN = 2.0
"""Seconds for the last lines to reach a slow terminal."""


class Console:
    """Prints while the block runs. If the terminal is gone (ssh lost), it just becomes silent."""

    def __init__(self, run: RunDir, quiet: bool) -> None:
        self._quiet = quiet
        self._closing = False
        choice = Choice(rank=0, every_event=True, since=time.time() - 0.5)
        self._follower = RunFollower(run, lambda: True, choice, back=None)
        colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._renderer = TextRenderer(self._follower.restarts, colour)
        self._thread = threading.Thread(target=self._pump, name="console", daemon=True)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._write(plain_lines(text).encode("utf-8", "backslashreplace") + b"\n")

    def __enter__(self) -> Console:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing = True
        if self._thread.is_alive():
            self._thread.join(_DRAIN)

    def _pump(self) -> None:
        pump(self._follower, self._print, self._wait)

    def _wait(self, seconds: float) -> None:
        if self._closing and not self._follower.behind:
            self._follower.over = True
        time.sleep(seconds)

    def _print(self, record: Record) -> None:
        self._write(self._renderer(record))

    def _write(self, data: bytes) -> None:
        try:
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
        except (OSError, ValueError):
            self._quiet = True


BUILT_IN = {"_supervise": "trainer"}
"""The private name of the built-in trainer's package, and the name that people know."""


def name_of(run: RunDir, spec: Spec) -> str:
    """The name of the run for a command line typed here."""
    here = (RUNS.resolve() / spec.run) == run.path
    return spec.run if here else os.path.relpath(run.path)


def opening_words(run: RunDir, spec: Spec) -> str:
    """The run's name and the next commands."""
    name = name_of(run, spec)
    target, *arguments = shown(spec).command
    what = " ".join([*(["-m"] if spec.module else []), BUILT_IN.get(target, target), *arguments])
    return (
        f"run {spec.run}: {spec.nproc} x {what}\n"
        f"  folder   {os.path.relpath(run.path)}\n"
        f"  follow   supervise tail {name}\n"
        f"  look     supervise status {name}\n"
        f"  stop     supervise stop {name}      (Ctrl-C here: checkpoint, then stop; twice: now)"
    )


def closing_words(run: RunDir, end: End) -> str:
    """The summary: one line for each attempt, the end, and the places to look next."""
    story = story_of(run)
    sign = "✔" if end.exit_code == 0 else "✘"
    wall = _seconds((story.ended or story.last) - (story.started or story.last))
    lines = [f"{sign} {end.state}: {end.reason}"]
    count = len(story.attempts)
    lines.append(f"  {count} attempt{'' if count == 1 else 's'} in {wall}, exit code {end.exit_code}")
    lines += [f"  {line}" for line in attempt_lines(story)]
    lines += [f"  {line}" for line in loss_lines(run, story)]
    if end.state is RunState.FAILED:
        lines += [f"  {line}" for line in traceback_lines(run, story)]
    name = name_of(run, _spec_of(run))
    lines.append(f"  next     supervise report {name} · supervise tail --no-follow -n 50 {name}")
    if end.exit_code not in (0, 2):
        lines.append(f"  go on    supervise resume {name}")
    return "\n".join(lines)


def loss_lines(run: RunDir, story: Story) -> list[str]:
    """The loss at each failure and at the end, if the script writes a metrics.jsonl like the built-in trainer's."""
    losses = {line.get("step"): line.get("loss") for _, line in Follower(run.metrics).objects()}
    numbers = {step: loss for step, loss in losses.items() if isinstance(step, int) and isinstance(loss, int | float)}
    if not numbers or not story.failures():
        return []
    steps = [attempt.to_step for attempt in story.failures() if attempt.to_step in numbers]
    told = [f"{numbers[step]:.4f} at step {step}, where it died" for step in dict.fromkeys(steps)]
    last = max(numbers)
    return [f"loss     {'; '.join([*told, f'{numbers[last]:.4f} at step {last}, the last'])}"]


def traceback_lines(run: RunDir, story: Story) -> list[str]:
    """The last traceback lines of the rank that failed first in the last attempt, if it left a traceback."""
    last = story.attempt
    if last is None or last.rank is None:
        return []
    try:
        text = read(run.attempt(last.number).error(last.rank), ErrorRecord).traceback
    except (OSError, ValueError):
        return []
    lines = [plain(line) for line in text.rstrip().splitlines()]
    return [f"rank {last.rank}:", *lines[-_TRACEBACK:]]


def _spec_of(run: RunDir) -> Spec:
    from supervisor.run.runs import load
    from supervisor.run.spec import restore

    known = load(run.path)
    assert known is not None
    return restore(known.spec)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m{rest:02d}s" if hours else f"{minutes}m{rest:02d}s"
