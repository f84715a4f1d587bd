"""supervise gc: lists the leftovers of dead runs, and removes them on request."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict

import click
import psutil

from supervisor.checkup.kept import told
from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import tell
from supervisor.core.size import human_bytes
from supervisor.errors import Refusal
from supervisor.group import kept
from supervisor.nodes.own import abandoned
from supervisor.process.memory import resident
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run.folder.lock import claimed
from supervisor.run.folder.ownership import vet
from supervisor.run.folder.registry import registered
from supervisor.run.leftovers import Fate, Kind, Leftover, clear, find, mark_of, marks, size_of
from supervisor.run.runs import Known, load, survey
from supervisor.run.runs import find as find_run
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode

SCHEMA = 1


@click.command("gc")
@run_argument
@click.option("--yes", is_flag=True, help="Remove what is found.")
@click.option("--dry-run", is_flag=True, help="Only list (default).")
@json_flag
def command(run: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """List the leftovers of dead runs: processes, half-written folders and files, shared memory, memory cgroups.

    Looks at RUN; without RUN, at all runs here and all runs that this user has launched on this machine, and at the
    fork servers that --keep-warm keeps. A run that a supervisor holds is never touched. Without --yes nothing is
    removed.
    """
    if yes and dry_run:
        raise click.UsageError("--yes and --dry-run exclude each other")
    runs = [find_run(run)] if run is not None else _every()
    if yes and run is not None:
        vet(runs[0].run)
    processes = marks()
    fates = [fate for known in runs for fate in _collect(known, processes.get(mark_of(known), []), yes)]
    fates += [] if run is not None else [*_kept(yes), *_places(yes)]
    if as_json:
        click.echo(encode({"schema": SCHEMA, "dry_run": not yes, "leftovers": list(map(_json, fates))}))
    else:
        _print(fates, yes)
    if any(fate.problem for fate in fates):
        click.get_current_context().exit(ExitCode.FAILED)


def _every() -> list[Known]:
    """The runs here, and the runs that are known from elsewhere. Each comes once."""
    here, refused = survey()
    tell(refused.values())
    runs = {known.run.path.resolve(): known for known in here}
    for path in registered():
        with contextlib.suppress(Refusal, OSError):
            if path not in runs and (known := load(path)):
                runs[path] = known
    return list(runs.values())


def _collect(known: Known, processes: list[psutil.Process], yes: bool) -> list[Fate]:
    with claimed(known.run) as ours:
        if not ours:
            return []
        if not yes:
            return [Fate(leftover) for leftover in find(known, processes)]
        try:
            vet(known.run)
        except Refusal as refusal:
            return [Fate(leftover, problem=str(refusal)) for leftover in find(known, processes)]
        return clear(known, processes)


def _kept(yes: bool) -> list[Fate]:
    """The fork servers that wait for a next run."""
    fates = []
    for one in kept.found():
        found = Leftover("-", Kind.KEPT, str(one.pid), resident(one.pid), told(one).partition(", for ")[2])
        problem = kept.end(one) if yes else None
        fates.append(Fate(found, yes and problem is None, problem))
    return fates


def _places(yes: bool) -> list[Fate]:
    """The folders of nodes whose supervisors are dead."""
    fates = []
    for path in abandoned():
        found = Leftover("-", Kind.MEMORY, str(path), size_of(path), "a node's own folder")
        if yes:
            shutil.rmtree(path, ignore_errors=True)
        fates.append(Fate(found, yes))
    return fates


def _json(fate: Fate) -> dict[str, object]:
    body = asdict(fate.leftover)
    return {**body, "kind": fate.leftover.kind.value, "removed": fate.removed, "problem": fate.problem}


def _print(fates: list[Fate], yes: bool) -> None:
    if not fates:
        click.echo("dead runs left nothing", err=True)
        return
    rows = [(f.leftover.run, f.leftover.kind.value, human_bytes(f.leftover.bytes), _what(f)) for f in fates]
    click.echo(table(("run", "kind", "size", "what"), rows), nl=False)
    total = human_bytes(sum(fate.leftover.bytes for fate in fates))
    removed = sum(fate.removed for fate in fates)
    if yes:
        click.echo(f"{removed} of {len(fates)} removed", err=True)
    else:
        if any(fate.leftover.kind is Kind.PROCESS for fate in fates):
            click.echo("processes may be training still: supervise resume goes on with them", err=True)
        click.echo(f"{len(fates)} leftovers, {total}; nothing was removed: to do that, supervise gc --yes", err=True)


def _what(fate: Fate) -> str:
    what = f"{fate.leftover.place} {fate.leftover.about}".rstrip()
    return plain(f"{what}: {fate.problem}" if fate.problem else what)
