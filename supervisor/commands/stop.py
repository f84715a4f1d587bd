"""`supervise stop`: it asks for a checkpoint, then stops. With --now, it only stops."""

from __future__ import annotations

import dataclasses
import time

import click

from supervisor.commands.flags import running_argument
from supervisor.commands.meant import to_act_on
from supervisor.commands.session import Stopping, drive
from supervisor.errors import Refusal
from supervisor.process.place import elsewhere, here
from supervisor.reading.plain import plain
from supervisor.run.folder.lock import RunLock, holder, is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.folder.requests import ask_to_stop
from supervisor.run.runs import Known
from supervisor.run.spec import restore
from supervisor.run.status import story_of
from trainer.rundir.codes import ExitCode

_SLACK = 60.0
"""Seconds that we wait longer than the run's grace."""


@click.command()
@running_argument
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
@click.option("--no-wait", is_flag=True, help="Ask, and return at once.")
def command(run: str | None, now: bool, no_wait: bool) -> int:
    """Ask the supervisor of RUN (default: the only run that runs) to stop, and wait until no process of it is alive.

    If the supervisor is dead, this command ends the processes itself, in the same way. Then the exit code is that of
    the run: 103.
    """
    known = to_act_on(run)
    vet(known.run)
    if not is_held(known.run):
        return _end(known, now)
    ask_to_stop(known.run, now)
    if no_wait:
        return 0
    until = time.monotonic() + (0.0 if now else restore(known.spec).policy.grace) + _SLACK
    while is_held(known.run):
        if time.monotonic() > until:
            raise Refusal(f"{known.label} has not stopped; see: supervise status {known.name}")
        time.sleep(0.05)
    story = story_of(known.run)
    if not story.over:
        # Its supervisor died for another reason before it could stop.
        return _end(known, now)
    known.run.stop.unlink(missing_ok=True)
    click.echo(plain(f"{known.label} is {story.state}: {story.reason}"), err=True)
    return ExitCode.STUCK if story.exit_code == ExitCode.STUCK else ExitCode.FINISHED


def _end(known: Known, now: bool) -> int:
    """Ends all processes of a run that no supervisor holds. Returns the exit code that `launch` would have given."""
    run = dataclasses.replace(known.run, path=known.run.path.resolve())
    died = holder(run)
    with RunLock(run, unnamed=True):
        # We hold the lock. So nobody else can take up the run, or has just done so.
        story = story_of(run)
        if story.over:
            click.echo(plain(f"{known.label} is {story.state} already"), err=True)
            return ExitCode.FINISHED
        if why := elsewhere(died, here()):
            again = f"to go on with it: supervise resume {known.name}"
            raise Refusal(f"{known.label} has no supervisor, and {why}; {again}")
        click.echo(f"the supervisor of {known.label} is dead; the processes of the run are ended from here", err=True)
        run.stop.unlink(missing_ok=True)
        code = drive(run, restore(known.spec), quiet=True, stopping=Stopping(now))
    story = story_of(run)
    click.echo(plain(f"{known.label} is {story.state}: {story.reason}"), err=True)
    return code
