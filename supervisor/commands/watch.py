"""`supervise watch`: a run on the full screen, live."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator

import click

from supervisor.commands.console import saved
from supervisor.commands.flags import run_argument
from supervisor.commands.meant import to_read
from supervisor.commands.signals import Left, handled, leave
from supervisor.commands.status import command_of
from supervisor.core.telling.ledger import ledger, stretches
from supervisor.errors import Refusal
from supervisor.live.curve import samples
from supervisor.live.screen import Picture, Row, goodputs, screen
from supervisor.live.terminal import columns, fold
from supervisor.live.view import Now, View
from supervisor.reading.brief import brief
from supervisor.reading.choice import Choice
from supervisor.reading.follow import EventRecord, RunFollower
from supervisor.reading.plain import decode, plain
from supervisor.run.folder.lock import is_held
from supervisor.run.runs import Known
from supervisor.run.spec import restore, typed
from supervisor.run.status import now_of

EVERY = 0.5
"""Seconds between two pictures."""
_CURVES_EVERY = 2.0
"""Seconds between two looks at what changes slowly: the curves and the ledger."""
_KEPT = 200
"""Lines of logs, and events, that are kept for the screen."""
_LEVELS = {"warning": "yellow", "error": "red"}
_SIGNALS = {signal.SIGTERM: leave, signal.SIGHUP: leave, signal.SIGTSTP: signal.SIG_IGN}
"""None ends or pauses the command while the terminal is not as it was."""
_LEAVE = ("q", "Q", "\x1b", "\x03", "\x04")


@click.command()
@run_argument
def command(run: str | None) -> None:
    """Show RUN (default: the newest) on the full screen, live: ranks, speed, loss, ledger, events, logs.

    It goes on over restarts. q or Ctrl-C leaves; the run is left alone.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "") in ("", "dumb"):
        raise Refusal("watch needs a terminal that can move its cursor; see: supervise status, supervise tail")
    known = to_read(run)
    with contextlib.suppress(KeyboardInterrupt, Left), handled(_SIGNALS), _keys() as asked:
        _show(Watched(known), asked)
    if is_held(known.run):
        text = f"{known.label} goes on; supervise watch {known.name}, supervise stop {known.name}"
        click.echo(fold(plain(text), columns(sys.stdout.fileno()), 2))


def _show(watched: Watched, asked: _Keys) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=bool(os.environ.get("NO_COLOR")), highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            found = screen(watched.look(), *console.size)
            # Text, not markup: what a rank prints must not be read as a style.
            texts = [Text(row.text, style=row.style, no_wrap=True, overflow="crop", end="\n") for row in found]
            live.update(Text("\n").join(texts), refresh=True)
            if asked.left(EVERY):
                return


class _Keys:
    """The keys that are pressed while the screen is shown."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def left(self, seconds: float) -> bool:
        """Whether somebody wants to leave within that time."""
        if self._fd is None:
            time.sleep(seconds)
            return False
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0 and select.select([self._fd], [], [], rest)[0]:
            keys = os.read(self._fd, 64).decode("utf-8", "replace")
            # Arrow keys begin with an escape character, too.
            if not keys or (keys[0] in _LEAVE and (len(keys) == 1 or keys[0] != "\x1b")):
                return True
        return False


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Inside, each key comes at once, and is not shown."""
    if not sys.stdin.isatty():
        yield _Keys(None)
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield _Keys(fd)
    finally:
        # It may be gone.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


class Watched:
    """One run for the screen."""

    def __init__(self, known: Known) -> None:
        self._known, run, spec = known, known.run, restore(known.spec)
        self._command = command_of({"nproc": spec.nproc, "module": spec.module, "command": typed(spec)})
        self._view = View(run, lambda: is_held(run), lambda: saved(run), now_of)
        self._follower = RunFollower(run, lambda: True, Choice(), back=_KEPT)
        self._events: deque[Row] = deque(maxlen=_KEPT)
        self._logs: deque[str] = deque(maxlen=_KEPT)
        self._due = float("-inf")
        self._losses: list[float] = []

    def look(self) -> Picture:
        """Everything as it is now."""
        now = self._view.look()
        for record in self._follower.poll():
            if isinstance(record, EventRecord):
                if words := brief(record.event):
                    level = str(record.event.fields.get("level"))
                    self._events.append(Row(words, _LEVELS.get(level, "")))
            else:
                who = "L" if record.rank is None else f"r{record.rank}"
                self._logs.append(f"{who} │ {decode(record.line.data)}")
        moment = time.monotonic()
        if moment >= self._due:
            self._due = moment + _CURVES_EVERY
            self._losses = [sample.loss for sample in samples(self._known.run) if sample.loss is not None]
        present = now_of(now.story)
        return Picture(
            title=self._said(now),
            now=now,
            at=present - now.story.offset,
            clock=time.strftime("%H:%M:%S"),
            losses=self._losses,
            goodputs=goodputs(stretches(now.story, present), 60),
            book=ledger(now.story, present),
            events=self._events,
            logs=self._logs,
        )

    def _said(self, now: Now) -> str:
        attempt = f"  attempt {now.story.attempt.number}" if now.story.attempt is not None else ""
        return plain(f"{self._known.label}{attempt}  {self._command}")
