"""`supervise rm`: removes the folders of runs that are over."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import click

from supervisor.commands.completion import known_runs
from supervisor.core.size import human_bytes
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run.folder.lock import RunLock, is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.leftovers import mark_of, marks, size_of
from supervisor.run.runs import Known, find
from supervisor.run.status import story_of
from trainer.rundir.machine.shm import remove, segment_of


@click.command("rm")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=known_runs)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def command(runs: tuple[str, ...], dry_run: bool) -> None:
    """Remove RUN with everything in its folder: events, logs, checkpoints, and what the script has written there.

    A run that is not over is refused; then none of the others is removed either.
    """
    wanted = {known.run.path.resolve(): known for known in map(find, runs)}
    for known in wanted.values():
        _must_be_over(known)
    for path, known in wanted.items():
        size = human_bytes(size_of(path))
        if not dry_run:
            _remove(known, path)
        click.echo(plain(f"{'would remove' if dry_run else 'removed'} {known.label} ({size}): {path}"), err=True)


def _must_be_over(known: Known) -> None:
    vet(known.run)
    if is_held(known.run):
        raise Refusal(f"{known.label} is running; stop it first: supervise stop {known.name}")
    state = story_of(known.run).state
    if state == RunState.LOST:
        ends = f"end it first: supervise stop {known.name}"
        raise Refusal(f"{known.label} is not over, it has lost its supervisor; {ends}")
    if Path.cwd().resolve().is_relative_to(known.run.path.resolve()):
        raise Refusal(f"{known.label} is the folder that you are in; cd to another one first")


def _remove(known: Known, path: Path) -> None:
    """Nothing of the run is left. While it is removed, nobody can take it up. If that is cut short, it can be repeated:
    what makes the folder a run goes last."""
    with RunLock(known.run, unnamed=True):
        # It was over. Somebody may have gone on with it since.
        if story_of(known.run).state == RunState.LOST:
            raise Refusal(f"{known.label} goes on again, and is left alone")
        if left := marks().get(mark_of(known)):
            pids = " ".join(str(process.pid) for process in left)
            see = f"see: supervise gc {known.name}"
            raise Refusal(f"{known.label} is over, but processes of it live (pid {pids}); {see}")
        if mark_of(known):
            # What a full disk has kept from becoming a checkpoint.
            remove(segment_of(mark_of(known)))
        last = (known.run.events, known.run.holder, known.run.lock, known.run.run_json)
        for each in sorted(path.iterdir()):
            if each.name not in {kept.name for kept in last}:
                _remove_tree(each)
        for kept in last:
            kept.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        known.run.lock.unlink(missing_ok=True)
    if known.run.path.is_symlink():
        known.run.path.unlink()
    path.rmdir()


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
