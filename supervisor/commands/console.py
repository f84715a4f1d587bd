"""The output of a foreground launch on stderr: the first words, events and rank 0's log as they come, and the summary
at the end.

It follows the run's files in its own thread. So a paused terminal does not pause supervision.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from supervisor.commands.attempt_words import attempt_lines
from supervisor.core.actions import End
from supervisor.core.model import StopKind
from supervisor.core.size import human_seconds
from supervisor.core.telling import advice
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState
from supervisor.live.line import line
from supervisor.live.terminal import Bottom, Lines, columns, fold
from supervisor.live.view import Saved, View
from supervisor.reading.choice import Choice
from supervisor.reading.follow import Record, RunFollower, pump
from supervisor.reading.local_time import local_epoch
from supervisor.reading.plain import plain, plain_lines
from supervisor.reading.render import Renderer, TextRenderer
from supervisor.run.runs import label, name_here
from supervisor.run.spec import Spec, typed
from supervisor.run.status import newest_saved, now_of, story_of
from trainer.rundir.files.codec import read
from trainer.rundir.files.json_lines import Follower
from trainer.rundir.layout import RunDir
from trainer.rundir.records import faults
from trainer.rundir.records.errors import ErrorRecord

_TRACEBACK = 20
"""Lines of a traceback to show at the end."""
_INDENT = 11
"""Columns of the names of lines, in the first and the last words."""
_DRAIN, _PART = 2.0, 0.05
"""Seconds for the last lines to reach a slow terminal, and of each of the waits that they consist of."""


_FIRST, _SLOWER, _SELDOM = 60.0, 10.0, 900.0
"""Off a terminal, the first line about the progress comes after so many seconds. The next one comes when a tenth of the
run so far has passed, between a minute and a quarter of an hour."""


class Console:
    """Prints while the block runs. If the terminal is gone (ssh lost), it just becomes silent."""

    def __init__(self, run: RunDir, quiet: bool, grace: float) -> None:
        self._quiet, self._grace = quiet, grace
        self._closing = False
        # A signal handler may speak while the thread writes, or while the main thread does.
        self._writing = threading.RLock()
        self._late = deque[bytes]()
        self._began = time.monotonic()
        self._due = self._began + _FIRST
        choice = Choice(rank=0, every_event=True, since=time.time() - 0.5)
        self._follower = RunFollower(run, lambda: True, choice, back=None)
        self._view = View(run, lambda: True, lambda: saved(run), now_of)
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        colour = terminal and not os.environ.get("NO_COLOR")
        self._bottom = Bottom(colour) if terminal else None
        restarts = self._follower.restarts
        self._renderer: Renderer = (
            Lines(restarts, colour, self._width, self._asked) if terminal else TextRenderer(restarts, colour)
        )
        self._thread = threading.Thread(target=self._pump, name="console", daemon=True)

    def say(self, text: str) -> None:
        if not self._quiet:
            lines = plain_lines(text).split("\n")
            if self._bottom is not None:
                lines = [fold(each, self._width(), _INDENT) for each in lines]
            self._print_data("\n".join([*lines, ""]).encode("utf-8", "backslashreplace"))

    def __enter__(self) -> Console:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing = True
        for _ in range(round(_DRAIN / _PART)):
            # In parts: while this process gets no CPU the thread has written nothing, and only one part is over.
            if self._thread.is_alive():
                self._thread.join(_PART)
        if not self._quiet:
            self._print_data(b"")

    def _pump(self) -> None:
        pump(self._follower, self._print, self._wait)

    def _wait(self, seconds: float) -> None:
        if self._closing and not self._follower.behind:
            self._follower.over = True
        elif not self._closing:
            self._look()
        time.sleep(seconds)

    def _look(self) -> None:
        """The line about the progress is true: at the bottom of a terminal, else from time to time."""
        if self._bottom is not None:
            text = line(self._view.look(), self._width())
            with self._writing:
                self._write(self._bottom.show(text))
        elif (now := time.monotonic()) >= self._due:
            self._due = now + min(max(_FIRST, (now - self._began) / _SLOWER), _SELDOM)
            told = f"{local_epoch(time.time())} {line(self._view.look())}\n"
            self._write(plain_lines(told).encode("utf-8", "backslashreplace"))

    def _asked(self, fields: Mapping[str, Any]) -> str:
        """What a request to stop does now, and what another one would do."""
        if fields.get("now"):
            return "stopping now"
        story = self._view.look().story
        again = "; Ctrl-C again stops now" if fields.get("by") == StopKind.USER else ""
        if story.attempt is None or story.attempt.first_step is None:
            return f"stopping; there is no new step to save{again}"
        if not story.keeps:
            return f"asking the script to stop, {human_seconds(self._grace)} for a last save{again}"
        step = fields.get("step")
        after = f" after step {step}" if isinstance(step, int) and step >= 0 else ""
        return f"saving a checkpoint{after}, then stopping{again}"

    @staticmethod
    def _width() -> int:
        return columns(sys.stderr.fileno())

    def _print(self, record: Record) -> None:
        self._print_data(self._renderer(record))

    def _print_data(self, data: bytes) -> None:
        """Writes `data` in place of the line at the bottom."""
        with self._writing:
            self._write(data if self._bottom is None else self._bottom.under(data))

    def _write(self, data: bytes) -> None:
        if not data:
            return
        try:
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
        except RuntimeError:
            # The handler of a signal speaks in the middle of a write: a terminal takes its time. It speaks after it.
            self._late.append(data)
            return
        except (OSError, ValueError):
            self._quiet = True
        if self._late:
            self._write(self._late.popleft())


def saved(run: RunDir) -> Saved | None:
    """The newest state that a restart could go on from."""
    found = newest_saved(run)
    return Saved(found["step"], time.time() - found["age_s"]) if found else None


def opening_words(run: RunDir, spec: Spec, detached: bool = False) -> str:
    """The run's name and the next commands."""
    stops = "the terminal may close: it runs in the background" if detached else "or Ctrl-C here: save, then stop"
    name = name_here(run)
    what = shlex.join([*(["-m"] if spec.module else []), *typed(spec)])
    ranks = f"{spec.nnodes} nodes x {spec.nproc}" if spec.several else str(spec.nproc)
    leave = (
        ""
        if detached or spec.several
        else "\n  leave    Ctrl-Z twice, or begin with -d; closing this terminal stops the run"
    )
    return (
        f"run {label(run, spec.run)}: {ranks} x {what}\n"
        f"  folder   {os.path.relpath(run.path)}\n"
        f"  follow   supervise tail {name}\n"
        f"  look     supervise status {name}\n"
        f"  stop     supervise stop {name}      ({stops}){leave}"
    )


def name_anywhere(run: RunDir) -> str:
    """The run as a command typed here names it; its whole path if the folder that it was launched in is gone."""
    try:
        return name_here(run)
    except OSError:
        return shlex.quote(str(run.path))


def closing_words(run: RunDir, end: End, several: bool) -> str:
    """The summary: one line for each attempt, the end, and the places to look next. `several`: nodes."""
    story = story_of(run)
    sign = "✔" if end.exit_code == 0 else "✘"
    wall = _seconds((story.ended or story.last) - (story.started or story.last))
    lines = [f"{sign} {end.state}: {end.reason}"]
    count = len(story.attempts)
    lines.append(f"  {count} attempt{'' if count == 1 else 's'} in {wall}, exit code {end.exit_code}")
    lines += [f"  {line}" for line in attempt_lines(story)]
    lines += [f"  {line}" for line in loss_lines(run, story)]
    if end.state is RunState.FINISHED:
        lines += [f"  unused   --inject {text}: it never came to it" for text in unused_faults(run)]
    if end.state is RunState.FAILED:
        lines += [f"  {line}" for line in traceback_lines(run, story)]
    name = name_anywhere(run)
    lines.append(f"  next     supervise report {name} · supervise tail --no-follow -n 50 {name}")
    if end.exit_code not in (0, 2):
        lines.append(f"  go on    {advice.go_on(name, several)}")
    return "\n".join(lines)


def unused_faults(run: RunDir) -> list[str]:
    """The faults that were asked for and have not struck: a rank or a step that there was not."""
    struck = {str(each["spec"]) for each in faults.fired(run.faults).values()}
    return [fault.text for fault in faults.armed(run.faults) if fault.text not in struck]


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
