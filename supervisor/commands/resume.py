"""`supervise resume`: continues a run that has no supervisor, as it was launched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from supervisor.commands import target
from supervisor.commands.flags import run_argument, session_flags
from supervisor.commands.meant import to_go_on
from supervisor.commands.session import begin
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run import spec as specs
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.folder.requests import ask_to_retry
from supervisor.run.runs import Known
from supervisor.run.spec import Spec
from supervisor.run.status import story_of


@click.command()
@run_argument
@session_flags
def command(run: str | None, detached: bool, as_json: bool, quiet: bool) -> int:
    """Continue RUN: with its ranks if they still train, else from its newest checkpoint.

    If RUN waits before its next try, it tries again at once.

    If the processes of a dead supervisor cannot be continued, they are ended first. Two groups never train at once.
    """
    known = to_go_on(run)
    if is_held(known.run) and story_of(known.run).state == RunState.BACKOFF:
        vet(known.run)
        ask_to_retry(known.run, max(known.run.attempts(), default=-1) + 1)
        click.echo(plain(f"{known.label} waits no longer; follow with: supervise attach {known.name}"), err=True)
        return 0
    return go_on(known, detached, as_json, quiet)


def go_on(known: Known, detached: bool = False, as_json: bool = False, quiet: bool = False) -> int:
    """The run has gone on to its end, or goes on `detached`. Returns the exit code of `launch`."""
    path = dataclasses.replace(known.run, path=known.run.path.resolve())

    def wanted() -> Spec:
        state = story_of(path).state
        if state == RunState.FINISHED:
            raise Refusal(f"{known.label} has finished; to train on, launch on its folder with more steps")
        spec = dataclasses.replace(specs.revealed(specs.restore(known.spec)), resume="auto")
        if state != RunState.LOST:
            # The ranks of a lost run may live. They need no script any more.
            target.command(spec.command, spec.module, Path(spec.cwd))
        return spec

    return begin(path, wanted, detached, as_json, quiet)
