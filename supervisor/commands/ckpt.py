"""supervise ckpt: list, verify, prune and export the checkpoints of a run, or of any folder of checkpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from supervisor.commands.flags import json_flag, run_argument
from supervisor.core.size import human_bytes
from supervisor.errors import HeldByAnother, Refusal
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run import torn
from supervisor.run.checkpoints import (
    age_of,
    described,
    folder_of,
    ranks_of,
    size_of,
    state_of,
    steps_of,
    to_export,
    verified,
)
from supervisor.run.folder.lock import claimed
from supervisor.run.folder.ownership import own, vet
from trainer.checkpoint.disk import retention, store
from trainer.checkpoint.disk.export import export_safetensors
from trainer.checkpoint.errors import CheckpointError
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import RunDir, step_name
from trainer.rundir.programs import program

SCHEMA = 1


@click.group("ckpt")
def command() -> None:
    """Checkpoints of RUN: an id, a prefix of one, a path (of a run, or of any folder of checkpoints), or the newest."""


@command.command("ls")
@run_argument
@json_flag
def ls(run: str | None, as_json: bool) -> None:
    """Every checkpoint, oldest first. Files are looked for and measured, not read."""
    _, folder = folder_of(run)
    found, latest = store.listing(folder), store.read_latest(folder)
    if as_json:
        _dump(folder, [{**described(one), "latest": one.step == latest} for one in found])
        return
    rows = [(one.step, size_of(one), age_of(one), ranks_of(one), state_of(one, latest)) for one in found]
    click.echo(table(("step", "size", "age", "ranks", "state"), rows), nl=False)
    if any(one.problem for one in found):
        click.echo("a bad one is never resumed from: the next attempt moves it to quarantine/", err=True)


@command.command("verify")
@run_argument
@click.option("--step", type=click.IntRange(0), help="Only this one.")
@json_flag
def verify(run: str | None, step: int | None, as_json: bool) -> None:
    """Read every byte and compare it with what was written. Exit code 3 if a checkpoint is bad; the output names the
    file and the reason."""
    _, folder = folder_of(run)
    found = []
    for one in verified(folder, steps_of(folder, step)):
        found.append(one)
        if not as_json:
            verdict = f"BAD  {one.problem}" if one.problem else f"ok  {size_of(one)}"
            click.echo(plain(f"{step_name(one.step)}  {verdict}"))
    if as_json:
        _dump(folder, list(map(described, found)))
    if any(one.problem for one in found):
        click.get_current_context().exit(ExitCode.DAMAGED)


@command.command("prune")
@run_argument
@click.option("--keep", type=click.IntRange(2), required=True, help="How many of the newest stay, at least two.")
@json_flag
def prune(run: str | None, keep: int, as_json: bool) -> None:
    """Remove all but the newest checkpoints. Those that stay are first read and found good."""
    here, folder = folder_of(run)
    own(folder)
    if here:
        vet(here)
    with claimed(here or RunDir(folder)) as ours:
        if not ours:
            raise HeldByAnother("a supervisor holds this run, and its trainer prunes by itself; stop it first")
        staying = [one.step for one in store.listing(folder) if one.problem is None][-keep:]
        for one in verified(folder, staying):
            if one.problem:
                click.echo(f"{step_name(one.step)} is bad ({plain(one.problem)}): nothing was removed", err=True)
                click.get_current_context().exit(ExitCode.DAMAGED)
        try:
            removed = retention.prune(folder, keep, DISK)
        except OSError as error:
            raise Refusal(f"{folder} cannot be pruned: {error}") from None
    if as_json:
        click.echo(encode({"schema": SCHEMA, "folder": str(folder), "kept": staying, "removed": removed}))
    else:
        click.echo("".join(f"{step_name(step)} removed\n" for step in removed), nl=False)


@command.command("export")
@run_argument
@click.option("--format", "form", type=click.Choice(["safetensors", "torch"]), default="safetensors", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--step", type=click.IntRange(0), help="Of this checkpoint; default: the newest good one.")
@json_flag
def export(run: str | None, form: str, output: Path, step: int | None, as_json: bool) -> None:
    """Write the model alone, verified, to one file that other programs can read."""
    _, folder = folder_of(run)
    if output.exists():
        raise Refusal(f"{output} exists; give another -o, or remove it")
    path = to_export(folder, step)
    try:
        others = export_safetensors(path, output) if form == "safetensors" else _export_torch(path, output)
    except (CheckpointError, OSError) as error:
        raise Refusal(f"{path.name} cannot be exported: {error}") from None
    if others:
        click.echo(f"left out, being no tensors: {plain(' '.join(others))}", err=True)
    size = output.stat().st_size
    if as_json:
        body = {"schema": SCHEMA, "checkpoint": str(path), "file": str(output), "format": form, "bytes": size}
        click.echo(encode(body))
    else:
        click.echo(f"{output}  {human_bytes(size)}  from {path.name}")


def _export_torch(path: Path, output: Path) -> list[str]:
    # By path, not with -m: the current folder may belong to anybody. A module of the same name there would run in place
    # of ours.
    child = [sys.executable, *program("checkpoint.disk.export_torch"), str(path), str(output)]
    done = subprocess.run(child, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Refusal(f"{path.name} cannot be exported: {(done.stderr.strip().splitlines() or ['torch failed'])[-1]}")
    return []


@command.command("restore-torn")
@run_argument
def restore_torn(run: str | None) -> None:
    """Give folders their old names back that were renamed because a save into them never ended."""
    here, _ = folder_of(run)
    if here is None:
        raise Refusal("this is a folder of checkpoints; give the run")
    vet(here)
    with claimed(here) as ours:
        if not ours:
            raise HeldByAnother("a supervisor holds this run, and its program may save there; stop it first")
        stayed = []
        for aside in torn.all_set_aside(here):
            try:
                torn.restore(aside)
            except OSError as error:
                stayed.append(f"{aside.moved_to} stays: {error}")
            else:
                click.echo(plain(f"{aside.path}  was {aside.moved_to}"))
    if stayed:
        raise Refusal(plain("; ".join(stayed)))


def _dump(folder: Path, checkpoints: list[dict[str, Any]]) -> None:
    click.echo(encode({"schema": SCHEMA, "folder": str(folder), "checkpoints": checkpoints}))
