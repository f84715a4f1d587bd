"""`supervise attach`: a live run in this terminal, as if it had been launched here."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import click

from supervisor.commands.console import Console, closing_words
from supervisor.commands.flags import running_argument
from supervisor.commands.meant import to_act_on
from supervisor.commands.signals import Left, handled, leave
from supervisor.core.actions import End
from supervisor.core.telling import advice
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.folder.requests import ask_to_stop
from supervisor.run.runs import Known
from supervisor.run.spec import restore
from supervisor.run.status import story_of
from trainer.rundir.codes import ExitCode

_LOOK_EVERY = 0.1
_BETWEEN = 5.0
"""Seconds without a supervisor, after which none takes the run over any more."""


@click.command()
@running_argument
def command(run: str | None) -> int:
    """Follow RUN (default: the only run that runs), with its end and its exit code.

    Ctrl-C asks the run for a checkpoint and its end; a second one ends it now. Ctrl-Z, or closing the terminal, leaves
    it alone.
    """
    known = to_act_on(run)
    vet(known.run)
    if not is_held(known.run):
        raise Refusal(f"{known.label} is not running; see: supervise status {known.name}")
    known = replace(known, run=replace(known.run, path=known.run.path.resolve()))
    spec = restore(known.spec)
    name = known.name
    console = Console(known.run, quiet=False, grace=spec.policy.grace)
    try:
        with console, _keys(_Stop(known)):
            keys = "Ctrl-C: a checkpoint, then stop; twice: now; Ctrl-Z: leave it alone"
            console.say(f"attached to {known.label}; {keys}")
            _until_over(known)
    except Left:
        console.say(f"\n{known.label} goes on; again: supervise attach {name}; to stop it: supervise stop {name}")
        return ExitCode.FINISHED
    return _end(known, console, name)


def _until_over(known: Known) -> None:
    """The run is over, or nobody holds it. For a moment it may be between two supervisors (Ctrl-Z at its launch)."""
    alone = 0
    while alone * _LOOK_EVERY < _BETWEEN:
        alone = 0 if is_held(known.run) else alone + 1
        if alone and story_of(known.run).over:
            return
        time.sleep(_LOOK_EVERY)


def _end(known: Known, console: Console, name: str) -> int:
    story, several = story_of(known.run), restore(known.spec).several
    if not story.over or story.exit_code is None:
        console.say(f"{known.label} has lost its supervisor; go on with: {advice.go_on(name, several)}")
        return ExitCode.FAILED
    try:
        end = End(ExitCode(story.exit_code), RunState(story.state), story.reason)
    except ValueError:
        # It ended under a newer version, with words that this one does not know.
        console.say(f"{known.label} is {story.state}: {story.reason}")
    else:
        console.say(closing_words(known.run, end, several))
    return story.exit_code


class _Stop:
    """Ctrl-C: a request, and at the second time an urgent one."""

    def __init__(self, known: Known) -> None:
        self._known, self._asked = known, False

    def __call__(self) -> None:
        # The console tells what the supervisor does about it.
        ask_to_stop(self._known.run, now=self._asked)
        self._asked = True


def _keys(stop: Callable[[], None]) -> AbstractContextManager[None]:
    """Inside, Ctrl-C stops the run. Ctrl-Z, a hang-up and a TERM are about this command alone."""
    away = dict.fromkeys((signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP), leave)
    return handled({signal.SIGINT: lambda number, frame: stop(), **away})
