"""The run that a command is about if no RUN was given: the newest for a reader, the one that runs for a command that
acts on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run.folder.lock import is_held
from supervisor.run.runs import Known, all_runs, find, load, survey


def to_go_on(name: str | None) -> Known:
    """The run of that name, or the newest. stderr names those that cannot be read: the newest may be one of them."""
    known = find(name)
    if name is None and load(Path()) is None:
        tell(survey()[1].values())
    return known


def to_read(name: str | None) -> Known:
    """The same. If the newest is over while another one runs, stderr says so."""
    known = to_go_on(name)
    if name is None and not is_held(known.run) and (others := _running(all_runs())):
        ids = " ".join(other.name for other in others)
        said = f"this is {known.label}, the newest run, which is over; running now: {ids}"
        click.echo(plain(f"supervise: {said}"), err=True)
    return known


def to_act_on(name: str | None) -> Known:
    """The run of that name, or the only one that runs. If none runs: the newest. Refusal if several run."""
    if name is not None or load(Path()) is not None:
        return find(name)
    runs, refused = survey()
    running = _running(runs)
    if len(running) > 1:
        raise Refusal(f"{len(running)} runs are running; say which: {' '.join(each.name for each in running)}")
    known = running[0] if running else find(None)
    # One of them may run as well.
    tell(refused.values())
    return known


def tell(refused: Iterable[Refusal]) -> None:
    """stderr names the runs that cannot be read."""
    for refusal in refused:
        click.echo(plain(f"supervise: a run is left out: {refusal}"), err=True)


def _running(runs: Iterable[Known]) -> list[Known]:
    return [] if load(Path()) is not None else [known for known in runs if is_held(known.run)]
