"""Ctrl-Z at a run in the foreground: it does not pause the supervisor, which would leave the ranks unwatched. It says
how to leave the run to the background, and the second one does it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from supervisor.commands.signals import handled
from supervisor.reading.plain import plain_lines
from supervisor.run.folder.stops import Stops


@contextlib.contextmanager
def on_ctrl_z(stops: Stops, say: Callable[[str], None], name: str) -> Iterator[None]:
    """Inside, Ctrl-Z does what this module says. A program without job control ignores Ctrl-Z, and goes on doing so."""
    told = False

    def asked(number: int, frame: FrameType | None) -> None:
        nonlocal told
        stops.leave, told = told, True
        if stops.leave:
            say("\nleaving the run to the background …")
        else:
            again = f"Ctrl-Z again: it goes on in the background (back with: supervise attach {name})"
            say(f"\nthe run is not paused. {again}\nCtrl-C: a checkpoint, then stop")

    with _handled(asked):
        yield


def never_paused(say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Inside, Ctrl-Z does nothing: a node that is paused would lose its lease, and its ranks."""
    return _handled(lambda number, frame: say("\na run over several nodes cannot be paused; Ctrl-C: save, then stop"))


def _handled(handler: Callable[[int, FrameType | None], object]) -> contextlib.AbstractContextManager[None]:
    usual = signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
    return handled({signal.SIGTSTP: handler} if usual else {})


def say_left(name: str) -> None:
    """How to look after the run from now on."""
    text = f"it goes on in the background: supervise attach {name} · supervise status {name} · supervise stop {name}"
    print(plain_lines(text), file=sys.stderr)
