"""supervise ckpt: the checkpoints of a run, or of any folder of checkpoints: listed, shown, compared, in and out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import to_read
from supervisor.core.size import human_bytes
from supervisor.errors import HeldByAnother, Refusal
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run import torn
from supervisor.run.checkpoints import (
    age_of,
    described,
    folder_of,
    one_of,
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
from trainer.checkpoint.errors import CheckpointError
from trainer.checkpoint.transfer.contents import loss_of, shown
from trainer.checkpoint.transfer.safetensors_files import export_hf, export_safetensors
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import RunDir, step_name
from trainer.rundir.programs import program

SCHEMA = 1


def _by_torch(form: str) -> Callable[[Path, Path], list[str]]:
    def export(path: Path, output: Path) -> list[str]:
        try:
            _torch_child("checkpoint.transfer.torch_files", form, str(path), str(output))
        except Refusal as error:
            raise Refusal(f"{path.name} cannot be exported: {error}") from None
        return []

    return export


_FORMS: dict[str, Callable[[Path, Path], list[str]]] = {
    "safetensors": export_safetensors,
    "hf": export_hf,
    "torch": _by_torch("torch"),
    "dcp": _by_torch("dcp"),
}
"""How the model of a checkpoint is written. Each returns the keys that it left out."""


def _folder_of(run: str | None) -> tuple[RunDir | None, Path]:
    """The run, or the newest, and its folder of checkpoints. If that one is over while another one runs, stderr says
    so."""
    if run is None:
        to_read(None)
    return folder_of(run)


@click.group("ckpt")
def command() -> None:
    """Checkpoints of RUN: an id, a prefix of one, a path (of a run, or of any folder of checkpoints), or the newest."""


@command.command("ls")
@run_argument
@json_flag
def ls(run: str | None, as_json: bool) -> None:
    """Every checkpoint, oldest first. Files are looked for and measured, not read."""
    _, folder = _folder_of(run)
    found, latest = store.listing(folder), store.read_latest(folder)
    if as_json:
        _dump(folder, [{**described(one), "latest": one.step == latest} for one in found])
        return
    if not found:
        _none_in(folder)
        return
    rows = [(one.step, size_of(one), age_of(one), ranks_of(one), state_of(one, latest)) for one in found]
    click.echo(table(("step", "size", "age", "ranks", "state"), rows), nl=False)
    if any(one.problem for one in found):
        click.echo("a bad one is never resumed from: the next attempt moves it to quarantine/", err=True)


def _none_in(folder: Path) -> None:
    """Tells it, and what is not looked for here. stdout stays empty."""
    click.echo(
        plain(
            f"no checkpoints in {folder}: what a script saves by itself is not listed (see: supervise status), and "
            "docs/checkpoints.md says how it gets checkpoints in five lines"
        ),
        err=True,
    )


@command.command("verify")
@run_argument
@click.option("--step", type=click.IntRange(0), help="Only this one.")
@json_flag
def verify(run: str | None, step: int | None, as_json: bool) -> None:
    """Read every byte and compare it with what was written. Exit code 3 if a checkpoint is bad; the output names the
    file and the reason."""
    _, folder = _folder_of(run)
    found = []
    for one in verified(folder, steps_of(folder, step)):
        found.append(one)
        if not as_json:
            verdict = f"BAD  {one.problem}" if one.problem else f"ok  {size_of(one)}"
            click.echo(plain(f"{step_name(one.step)}  {verdict}"))
    if as_json:
        _dump(folder, list(map(described, found)))
    elif not found:
        _none_in(folder)
    if any(one.problem for one in found):
        click.get_current_context().exit(ExitCode.DAMAGED)


@command.command("prune")
@run_argument
@click.option("--keep", type=click.IntRange(2), required=True, help="How many of the newest stay, at least two.")
@json_flag
def prune(run: str | None, keep: int, as_json: bool) -> None:
    """Remove all but the newest checkpoints. Those that stay are first read and found good."""
    here, folder = _folder_of(run)
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
@click.option("--format", "form", type=click.Choice(list(_FORMS)), default="safetensors", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The file or folder to write.")
@click.option("--step", type=click.IntRange(0), help="Of this checkpoint; default: the newest good one.")
@json_flag
def export(run: str | None, form: str, output: Path, step: int | None, as_json: bool) -> None:
    """Write the model alone, verified, for other programs: to one file (safetensors, torch), to a folder as Hugging
    Face has it (hf), or to a folder of torch.distributed.checkpoint (dcp)."""
    _, folder = _folder_of(run)
    if output.exists():
        raise Refusal(f"{output} exists; give another -o, or remove it")
    path = to_export(folder, step)
    try:
        others = _FORMS[form](path, output)
    except (CheckpointError, OSError) as error:
        raise Refusal(f"{path.name} cannot be exported: {error}") from None
    if others:
        click.echo(f"left out, being no tensors: {plain(' '.join(others))}", err=True)
    size = sum(file.stat().st_size for file in output.iterdir()) if output.is_dir() else output.stat().st_size
    if as_json:
        body = {"schema": SCHEMA, "checkpoint": str(path), "file": str(output), "format": form, "bytes": size}
        click.echo(encode(body))
    else:
        click.echo(f"{output}  {human_bytes(size)}  from {path.name}")


@command.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder of checkpoints.")
@click.option("--step", type=click.IntRange(0), help="The steps that are done; default: what the source says, or 0.")
@click.option("--trust-pickle", is_flag=True, help="Read the pickle of a torch.distributed.checkpoint folder.")
@json_flag
def import_(source: Path, output: Path, step: int | None, trust_pickle: bool, as_json: bool) -> None:
    """Make a checkpoint of a state of another program: a file of torch.save (its model, optimizer and step), a
    safetensors file, a folder as Hugging Face has it, or of torch.distributed.checkpoint."""
    output.mkdir(parents=True, exist_ok=True)
    own(output)
    number, trust = "" if step is None else str(step), "trust" if trust_pickle else ""
    given = str(source.absolute()), str(output.absolute()), number, trust
    run = RunDir(output.absolute().parent)
    with claimed(run) if run.run_json.exists() else nullcontext(True) as ours:
        if not ours:
            raise HeldByAnother("a supervisor holds this run; stop it first, or give another folder")
        found = json.loads(_torch_child("checkpoint.transfer.inward", *given))
    path = output / step_name(found["step"])
    if found["left_out"]:
        click.echo(f"left out: {plain(' '.join(found['left_out']))}", err=True)
    if as_json:
        click.echo(encode({"schema": SCHEMA, "checkpoint": str(path), **found}))
    else:
        click.echo(f"{plain(str(path))}  {human_bytes(found['bytes'])}  {' and '.join(found['parts'])}")


@command.command("show")
@click.argument("checkpoint")
@click.option("--run", help="The run or folder that it is in; default: the newest run.")
@json_flag
def show(checkpoint: str, run: str | None, as_json: bool) -> None:
    """What is in CHECKPOINT (a step, or a path): each tensor with its type, shape, size and kind: replicated, sharded
    (and how), or which rank alone has it. Only headers are read."""
    path, metrics = one_of(checkpoint, run)
    try:
        manifest, found = shown(path)
    except CheckpointError as error:
        raise Refusal(f"{path} cannot be shown: {error}") from None
    loss = loss_of(metrics, manifest.step)
    if as_json:
        about = {"step": manifest.step, "world_size": manifest.world_size, "bytes": manifest.bytes, "loss": loss}
        click.echo(encode({"schema": SCHEMA, "checkpoint": str(path), **about, "tensors": list(map(asdict, found))}))
        return
    rows = [
        (plain(one.name), one.dtype, list(one.shape), human_bytes(one.bytes), " ".join((one.kind, *one.placements)))
        for one in found
    ]
    click.echo(table(("tensor", "type", "shape", "size", "kind"), rows), nl=False)
    told = "" if loss is None else f", loss {loss:.6g}"
    ranks = f"{manifest.world_size} rank{'s' if manifest.world_size > 1 else ''}"
    click.echo(f"{path.name}: {len(found)} tensors, {human_bytes(manifest.bytes)}, {ranks}{told}", err=True)


@command.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--run", help="The run or folder that they are in; default: the newest run.")
@json_flag
def diff(a: str, b: str, run: str | None, as_json: bool) -> None:
    """Where the checkpoints A and B (a step, or a path) differ: in how many elements, by how much at most; and all
    values that are no tensors. Both are verified."""
    one, two = one_of(a, run)[0], one_of(b, run)[0]
    lines = _torch_child("checkpoint.transfer.difference", str(one), str(two)).splitlines()
    found = [json.loads(line) for line in lines]
    if as_json:
        click.echo(encode({"schema": SCHEMA, "a": str(one), "b": str(two), "same": not found, "differences": found}))
        return
    rows = [(plain(item["name"]), plain(_differs(item))) for item in found]
    if rows:
        click.echo(table(("what", "differs"), rows), nl=False)
    click.echo(f"{len(rows)} differences" if rows else "they are the same", err=True)


def _differs(item: Mapping[str, Any]) -> str:
    if "only" in item:
        return f"only in {item['only']}"
    if "elements" not in item:
        return f"{item['a']} and {item['b']}"
    more = f", {item['not_finite']} not finite" if "not_finite" in item else ""
    return f"{item['elements']} of {item['of']} elements, by {item['largest']:.3g} at most{more}"


def _torch_child(module: str, *arguments: str) -> str:
    """What our program `module`, which needs torch, has printed. Refusal with its last line if it failed."""
    # By path, not with -m: the current folder may belong to anybody. A module of the same name there would run in place
    # of ours.
    child = [sys.executable, *program(module), *arguments]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(plain((done.stderr.strip().splitlines() or ["torch failed"])[-1]))
    return done.stdout


@command.command("restore-torn")
@run_argument
def restore_torn(run: str | None) -> None:
    """Give folders their old names back that were renamed because a save into them never ended."""
    here, _ = _folder_of(run)
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
