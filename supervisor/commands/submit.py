"""`supervise submit`: a run as a job of Slurm's."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from supervisor.commands import launch, slurm, target
from supervisor.commands.sound import sound
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.run.runs import RUNS

_BY_DEVICES = re.compile(r"(?:^| )(?:--nproc(?:[-_]per[-_]node)?|-n)[ =]?(?:auto|gpu|cpu)\b")


class Submit(click.Command):
    """Everything before `--` is for sbatch, everything after it for launch."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta["launch"] = args[cut + 1 :] if cut < len(args) else None
        ours = [word for word in args[:cut] if word in ("--slurm", "--print", "-h", "--help")]
        ctx.meta["sbatch"] = [word for word in args[:cut] if word not in ours]
        return super().parse_args(ctx, ours)


@click.command("submit", cls=Submit, options_metavar="--slurm [SBATCH OPTIONS] -- [LAUNCH OPTIONS] [SCRIPT] [ARGS]...")
@click.option("--slurm", "engine", is_flag=True, help="To Slurm, by sbatch. The options before -- are sbatch's.")
@click.option("--print", "only_print", is_flag=True, help="Print the batch script, and submit nothing.")
@click.pass_context
def command(ctx: click.Context, engine: bool, only_print: bool) -> None:
    """Submit a run as a batch job, on one node.

    The job saves and goes back into the queue before its time limit ends, goes on with the same run when it is started
    again, for whatever reason, and ends with launch's exit code. What is after -- is as for launch.
    """
    if not engine:
        raise click.UsageError("which engine? There is --slurm", ctx)
    if ctx.meta["launch"] is None:
        raise click.UsageError("no --: write the options of sbatch, then --, then what launch would get", ctx)
    words, name = _launched(ctx)
    text = slurm.batch_script(words, ctx.meta["sbatch"], name)
    if only_print:
        click.echo(text, nl=False)
        return
    if shutil.which("sbatch") is None:
        raise Refusal("there is no sbatch here; --print shows the script, to be submitted where there is one")
    done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"sbatch: {done.stderr.strip() or done.returncode}")
    folder = words[words.index("--run-dir") + 1]
    click.echo(done.stdout.strip().partition(";")[0])
    click.echo(plain(f"to look at it: supervise status {folder}, supervise tail {folder}"), err=True)


def _launched(ctx: click.Context) -> tuple[list[str], str]:
    """The whole command of the job, and the job's name. It has a folder for the run, the same at each start."""
    given = list(ctx.meta["launch"])
    read = _read(ctx, given)
    params = read.params
    if params.get("detached"):
        raise Refusal("-d: a job must wait for its run; leave it out")
    script, module = list(params["command_line"]), params["module"]
    target.command(script, module)
    # A folder that is given may be that of an earlier run, of any script.
    sound(_for_a_node(read, ctx.meta["sbatch"], given), starts_ranks=bool(script or params.get("run_dir")))
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", Path(script[0]).stem) if script else "gpt"
    name = str(params.get("name") or stem or "run")
    program = shutil.which("supervise", path=str(Path(sys.executable).parent))
    begin = [program] if program else [sys.executable, "-m", "supervisor"]
    folder = (
        [] if params.get("run_dir") else ["--run-dir", str(Path(RUNS, f"{name}-{secrets.token_hex(2)}").absolute())]
    )
    return [*begin, "launch", *folder, *given], name


def _for_a_node(read: click.Context, sbatch: list[str], given: list[str]) -> dict[str, Any]:
    """The options of launch without those that only the node of the job can judge: its addresses, and its ranks if
    their number is that of its devices."""
    params = {**read.params, "local_addr": None}
    params["nproc"] = params["nproc_per_node"] or params["nproc"]
    params["nnodes"] = params["nnodes"] or str(slurm.nodes_asked(sbatch))
    typed = read.get_parameter_source("nproc") in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT)
    options = " ".join(given[: len(given) - len(read.params["command_line"] or ())])
    if not typed or _BY_DEVICES.search(options):
        params["inject"] = ()
    return params


def _read(ctx: click.Context, given: list[str]) -> click.Context:
    """The options of launch, as it will read them. What is wrong is told now, not when the job has waited its turn."""
    try:
        return launch.command.make_context("launch", list(given), parent=ctx.parent)
    except click.BadParameter as error:
        if error.param is None or error.param.name not in ("nproc", "nproc_per_node"):
            raise
        # The node has GPUs that the place of the submission may not have.
        return launch.command.make_context("launch", _without_gpus(given), parent=ctx.parent)


def _without_gpus(given: list[str]) -> list[str]:
    return ["1" if word == "gpu" else word.replace("=gpu", "=1") for word in given]
