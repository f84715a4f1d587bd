"""`supervise resume`: continues a run that has no supervisor, as it was launched."""

from __future__ import annotations

import dataclasses

import click

from supervisor.commands.flags import run_argument, session_flags
from supervisor.commands.session import detach, drive
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.run import spec as specs
from supervisor.run.folder.lock import RunLock
from supervisor.run.runs import Known, find
from supervisor.run.status import story_of


@click.command()
@run_argument
@session_flags
def command(run: str | None, detached: bool, as_json: bool, quiet: bool) -> int:
    """Continue RUN: with its ranks if they still train, else from its newest checkpoint.

    If the processes of a dead supervisor cannot be continued, they are ended first. Two groups never train at once.
    """
    return go_on(find(run), detached, as_json, quiet)


def go_on(known: Known, detached: bool = False, as_json: bool = False, quiet: bool = False) -> int:
    """The run has gone on to its end, or goes on `detached`. Returns the exit code of `launch`."""
    path = dataclasses.replace(known.run, path=known.run.path.resolve())
    with RunLock(path):
        if story_of(path).state == RunState.FINISHED:
            raise Refusal(f"{known.id} has finished; to train on, launch on its folder with more steps")
        spec = dataclasses.replace(specs.revealed(specs.restore(known.spec)), resume="auto")
        path.stop.unlink(missing_ok=True)
        specs.save(path, spec)
        if not detached:
            return drive(path, spec, as_json=as_json, quiet=quiet)
    return detach(path, spec, as_json=as_json, quiet=quiet)
