"""torchrun's spellings on the command line of launch: what means something here is taken, the rest named and ignored.

Read in torch 2.13 (torch/distributed/run.py). How torchrun starts ranks is ours, and so is where they meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from supervisor.commands.options import Nproc
from supervisor.errors import Refusal

MEETS = "the ranks meet by themselves"
_LOGS = "each rank's log is in the run's folder; see: supervise tail"
_IGNORED = {
    "--rdzv-backend": MEETS,
    "--rdzv-conf": MEETS,
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
_DEFAULTS: Mapping[str, tuple[str, click.ParamType[Any]]] = {
    "PET_NPROC_PER_NODE": ("nproc", Nproc()),
    "PET_MAX_RESTARTS": ("max_restarts", click.IntRange(0, 10**6)),
    "PET_LOCAL_ADDR": ("local_addr", click.STRING),
}
"""The option of ours that each variable means, and its values."""
_TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")


def spellings(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of torchrun. `nproc_per_node` is given to the command. Those of several nodes are in nodes.py."""
    for name, why in reversed(_IGNORED.items()):
        short = [_SHORT[name]] if name in _SHORT else []
        say = _ignored(name, why)
        command = click.option(name, *short, hidden=True, expose_value=False, callback=say)(command)
    command = click.option("--standalone", is_flag=True, hidden=True, expose_value=False)(command)
    command = click.option("--no-python", is_flag=True, hidden=True, expose_value=False, callback=_no_python)(command)
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
    return ours + rest


def defaults(environ: Mapping[str, str]) -> dict[str, Any]:
    """The options of launch that variables of torchrun give: PET_ and an option's name are its default there. They are
    weaker than a person's own words. Those of several nodes are in core/nodes/engines.py, which believes the whole
    engine or nothing of it. Refusal if one has no meaning."""
    found = dict[str, Any]()
    for variable, (name, kind) in _DEFAULTS.items():
        if text := environ.get(variable, "").strip():
            try:
                found[name] = kind.convert(text, None, None)
            except click.UsageError as error:
                raise Refusal(f"{variable}: {error.message}; unset it, or give --{name.replace('_', '-')}") from None
    return found


def ranks(nproc: int, given: bool, per_node: int | None) -> int:
    """The number of ranks, from --nproc (`given` or not) and torchrun's --nproc-per-node. Refusal if both differ."""
    if per_node is None:
        return nproc
    if given and per_node != nproc:
        raise Refusal(f"--nproc {nproc} and --nproc-per-node {per_node} are the same option; give it once")
    return per_node
