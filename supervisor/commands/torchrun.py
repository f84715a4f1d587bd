"""torchrun's spellings on the command line of launch: what means something here is taken, the rest named and ignored.

Read in torch 2.13 (torch/distributed/run.py). How torchrun starts ranks is ours: one machine, a rendezvous on the
loopback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from supervisor.commands.options import Nproc
from supervisor.errors import Refusal

_MEETS = "the ranks of one machine meet by themselves"
_LOGS = "each rank's log is in the run's folder; see: supervise tail"
_IGNORED = {
    "--rdzv-backend": _MEETS,
    "--rdzv-endpoint": _MEETS,
    "--rdzv-id": _MEETS,
    "--rdzv-conf": _MEETS,
    "--node-rank": _MEETS,
    "--master-addr": _MEETS,
    "--master-port": _MEETS,
    "--log-dir": _LOGS,
    "--log-line-prefix-template": _LOGS,
    "--tee": _LOGS,
    "--redirects": _LOGS,
    "--local-ranks-filter": _LOGS,
    "--role": "there is one role",
    "--monitor-interval": "a death is seen at once",
    "--start-method": "ranks are forks, or with --no-standby programs of their own",
}
"""Options with a value that change nothing here, and why."""
_SHORT = {"--tee": "-t", "--redirects": "-r"}
_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
_SEVERAL = {
    "SLURM_STEP_NUM_TASKS": "srun starts this command {count} times",
    "SLURM_STEP_NUM_NODES": "srun starts this command on {count} nodes",
    "SLURM_JOB_NUM_NODES": "this Slurm job has {count} nodes",
    "OMPI_COMM_WORLD_SIZE": "mpirun starts this command {count} times",
    "PMI_SIZE": "an MPI launcher starts this command {count} times",
    "PET_NNODES": "PET_NNODES asks for {count} nodes",
    "NNODES": "NNODES asks for {count} nodes",
}
"""Variables of launchers that start a command once for each node or rank, and what they say."""


def spellings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of torchrun. `nnodes` and `nproc_per_node` are given to the command, as they were written."""
    for name, why in reversed(_IGNORED.items()):
        short = [_SHORT[name]] if name in _SHORT else []
        say = _ignored(name, why)
        command = click.option(name, *short, hidden=True, expose_value=False, callback=say)(command)
    command = click.option("--standalone", is_flag=True, hidden=True, expose_value=False)(command)
    command = click.option("--no-python", is_flag=True, hidden=True, expose_value=False, callback=_no_python)(command)
    command = click.option("--nnodes", hidden=True)(command)
    return click.option("--nproc-per-node", "-n", type=Nproc(), hidden=True)(command)


def _ignored(name: str, why: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def say(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None and not ctx.resilient_parsing:
            click.echo(f"supervise: {name} is ignored: {why}", err=True)

    return say


def _no_python(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        raise Refusal("--no-python: supervise starts Python scripts; give the script that your program runs")


def unwrapped(arguments: Sequence[str], script: Sequence[str]) -> list[str] | None:
    """The arguments of launch without `torchrun` or `python` in front of the script. None if there is no such word.

    `script` is the end of `arguments` that would be the script with its own arguments. Refusal if the interpreter has
    options that would be lost.
    """
    if not script or Path(script[0]).is_file():
        return None
    ours, program, rest = list(arguments[: len(arguments) - len(script)]), Path(script[0]).name, list(script[1:])
    if program in _TORCHRUN[1:] and ours[-1:] in (["-m"], ["--module"]):
        return ours[:-1] + rest
    if program == "torchrun" and rest:
        return ours + rest
    if program != "torchrun" and (not program.startswith("python") or program.strip("python0123456789.")):
        return None
    while rest and rest[0] == "-u":
        rest = rest[1:]
    if rest[:1] == ["-m"] and rest[1:2] and rest[1] in _TORCHRUN:
        return ours + rest[2:]
    if rest and rest[0].startswith("-") and rest[0] != "-m":
        raise Refusal(f"{script[0]} {rest[0]}: leave out {script[0]}, and give the script itself")
    if not rest:
        raise Refusal(f"{script[0]}: no script after it")
    return ours + rest


def ranks(nproc: int, given: bool, per_node: int | None) -> int:
    """The number of ranks, from --nproc (`given` or not) and torchrun's --nproc-per-node. Refusal if both differ."""
    if per_node is None:
        return nproc
    if given and per_node != nproc:
        raise Refusal(f"--nproc {nproc} and --nproc-per-node {per_node} are the same option; give it once")
    return per_node


def on_one_node(nnodes: str | None, environ: Mapping[str, str] = os.environ) -> None:
    """Refusal if several nodes are asked for. Each would train by itself, and all would say that they had finished.

    `--nnodes 1` says that this node trains alone, whatever the environment says.
    """
    later = "training over several nodes is not built yet"
    if nnodes is not None:
        if nnodes.strip() not in ("1", "1:1"):
            raise Refusal(f"--nnodes {nnodes}: {later}; leave it out, or give 1")
        return
    for name, says in _SEVERAL.items():
        if (count := environ.get(name, "").rpartition(":")[2]).isdecimal() and int(count) > 1:
            alone = "to train on this node alone, give --nnodes 1"
            raise Refusal(f"{says.format(count=count)} ({name}), and {later}; {alone}")
