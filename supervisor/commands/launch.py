"""`supervise launch`: from the command line to the end of a run."""

from __future__ import annotations

import dataclasses
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import click
from click.core import ParameterSource

from supervisor.commands import nodes, slurm, target, torchrun
from supervisor.commands.completion import a_file
from supervisor.commands.flags import session_flags
from supervisor.commands.folder import Folder
from supervisor.commands.help import Paged
from supervisor.commands.hints import CONFIG
from supervisor.commands.nodes import Located
from supervisor.commands.options import (
    LEAST_LIMIT,
    PREFIX,
    CauseAction,
    Duration,
    FaultSpec,
    Nproc,
    Range,
    Words,
    key_of,
    nearest,
    read_config,
    setting,
)
from supervisor.commands.session import arm_faults, begin
from supervisor.commands.sound import sound
from supervisor.core.model import Policy
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.notify.settings import notify_of
from supervisor.run import spec as specs
from supervisor.run.runs import RUNS, Known, load
from supervisor.run.spec import Park, Resume, Spec, resolved
from supervisor.run.status import story_of
from trainer.rundir import variables
from trainer.rundir.duration import spelled
from trainer.rundir.layout import RunDir, committed_steps

NOTIFY = "notify"
"""A table of supervise.toml, and the name of the path to it in a Spec."""
_GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)


def _configure(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """The values of supervise.toml become click's default_map. So the environment is stronger, and the defaults are
    weaker."""
    options = [p for p in ctx.command.params if isinstance(p, click.Option) and p.name != "config" and not p.hidden]
    names = {key_of(p.opts): str(p.name) for p in options}
    read = read_config(value, [*names, NOTIFY])
    if (table := read.pop(NOTIFY, None)) is not None:
        source = (value or Path("supervise.toml")).absolute()
        notify_of(table, source)
        ctx.meta[NOTIFY] = str(source)
    settings = {**torchrun.defaults(os.environ), **{names[key]: setting for key, setting in read.items()}}
    for option in options:
        given = settings.get(str(option.name))
        if isinstance(given, list) and not option.multiple:
            raise Refusal(f"{value or 'supervise.toml'}: {option.name} is a list; it takes one value")
        if isinstance(given, str) and option.multiple:
            # A word in place of a list of one.
            settings[str(option.name)] = [given]
    ctx.meta[CONFIG] = str(value or "supervise.toml")
    ctx.default_map = {**(ctx.default_map or {}), **settings}


def _merge(ctx: click.Context, param: click.Parameter, given: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """A flag for one cause does not change the file's setting for another cause."""
    return {**dict((ctx.default_map or {}).get("actions", ())), **dict(given)}


def _metrics_file(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    """The whole path of a file that can be written."""
    if not given:
        return None
    if find_spec("prometheus_client") is None:
        raise Refusal("--metrics-file needs prometheus_client: pip install 'supervise[metrics]'")
    path = Path(given).absolute()
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise Refusal(
            f"--metrics-file {given}: no file can be written there; give one in a folder that you can write to"
        )
    return str(path)


class Launch(Paged):
    """Takes the command of torchrun or python that somebody has for a script, in place of the script."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        parser = self.make_parser(ctx)
        numbers = [p for p in self.params if isinstance(p, click.Option) and isinstance(p.type, Nproc | click.IntRange)]
        for name in (name for option in numbers for name in option.opts):
            # Each value is kept, not only the last one.
            (parser._long_opt if name.startswith("--") else parser._short_opt)[name].action = "append"
        found, _, _ = parser.parse_args(args=list(args))
        for option in numbers:
            if len(values := dict.fromkeys(found.get(str(option.name)) or ())) > 1:
                raise Refusal(f"{option.opts[0]} is given as {' and as '.join(values)}; give it once")
        script = _words(found)
        bare = torchrun.unwrapped(args, script)
        if bare is not None:
            left, _, _ = parser.parse_args(args=list(bare))
            if not _words(left) and not left.get("help"):
                raise Refusal(f"{script[0]}: no script after it")
        return super().parse_args(ctx, args if bare is None else bare)


def _words(parsed: Mapping[str, Any]) -> tuple[str, ...]:
    """The script with its arguments, as click's parser has found them. If there are none, newer ones have no tuple."""
    found = parsed["command_line"]
    return found if isinstance(found, tuple) else ()


@click.command(
    "launch",
    cls=Launch,
    context_settings={
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
        # torchrun takes both spellings.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_configure,
    envvar="SUPERVISE_CONFIG",
    help="A TOML file with these options as keys.  [default: supervise.toml, if there]",
)
@setting("--nproc", type=Nproc(), default="1", help="Ranks on this machine; auto: one per GPU, else one per core.")
@setting("--name", help="The run's name. Its id begins with the name.")
@setting("--run-dir", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<id>]")
@setting("--resume", type=click.Choice(get_args(Resume)), help="Whether to begin from the newest checkpoint.")
@setting(
    "--resume-args",
    type=Words(),
    help="More arguments for the script on every relaunch. They may contain {checkpoint} {checkpoint_dir} {step}.",
)
@setting(
    "--adapter",
    metavar="auto|NAME|off",
    help="The adapter that tells the script, on a relaunch, to resume from its own saves.",
)
@setting("--max-restarts", type=click.IntRange(0, 10**6), help="Restarts without a new checkpoint, per window.")
@setting("--window", type=Duration(), help="The budget's sliding window.")
@setting("--no-progress-limit", type=click.IntRange(1, 10**6), help="Attempts in a row with no new checkpoint.")
@setting(
    "--backoff",
    type=Range(),
    help="Wait between restarts that bring no progress, MIN:MAX. At least 15 s if only time helps.",
)
@setting("--grace", type=Duration(), help="Time from a stop's TERM to its KILL, for a last checkpoint.")
@setting(
    "--hang-timeout",
    type=Duration({"auto": None, "off": float("inf")}, LEAST_LIMIT),
    help="Longest time without a step: auto (learned), a duration, or off.",
)
@setting("--startup-timeout", type=Duration(least=LEAST_LIMIT), help="Longest time to the first step.")
@setting("--spawns/--no-spawns", help="SCRIPT starts its ranks itself. It is started as by: python SCRIPT.")
@setting("--standby/--no-standby", help="Keep the next worker group warm.")
@setting(
    "--park",
    type=click.Choice(get_args(Park)),
    help="Where the standby waits: SCRIPT's first line, or Checkpointer.restore(); auto: there if SCRIPT asks for it.",
)
@setting(
    "--keep-warm",
    type=Duration({"off": 0.0}),
    help="Keep the imports in memory for so long after the run; the next launch of SCRIPT by you then imports nothing.",
)
@setting("--plain-saves/--no-plain-saves", help="SCRIPT's saves overwrite its files directly, as without supervise.")
@setting(
    "--local-addr", metavar="ADDR", help="The address at which the ranks meet (MASTER_ADDR).  [default: 127.0.0.1]"
)
@setting("--log-restarts/--no-log-restarts", help="SCRIPT's W&B or TensorBoard gets restarts, lost steps, goodput.")
@setting(
    "--metrics-file",
    metavar="FILE",
    callback=_metrics_file,
    help="Keep the run's numbers in FILE (….prom), for Prometheus' node_exporter.",
)
@setting(
    "--policy",
    "actions",
    type=CauseAction(),
    multiple=True,
    callback=_merge,
    help="The action after a cause, as host_oom=stop. See: supervise policy. Repeatable.",
)
@setting(
    "--inject",
    "--inject-failure",
    "inject",
    type=FaultSpec(),
    multiple=True,
    help="A fault to fire once, as kill:rank=1@step=40. Repeatable.",
)
@nodes.options
@session_flags
@torchrun.spellings
@click.option("-m", "--module", "module", is_flag=True, help="SCRIPT is a module, as in python -m.")
@click.argument("command_line", metavar="[SCRIPT] [ARGS]...", nargs=-1, type=click.UNPROCESSED, shell_complete=a_file)
@click.pass_context
def command(ctx: click.Context, /, detached: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Train SCRIPT under supervision. Without SCRIPT: train the built-in byte-level GPT.

    All arguments after SCRIPT go to the script. If --run-dir is the folder of an earlier run, launch continues that
    run. If only its supervisor has died, it continues with the living ranks.
    """
    _warn_unknown_environment(ctx)
    if target.asks_for_help(given["command_line"], given["module"]):
        return subprocess.run([sys.executable, "-m", specs.BUILT_IN, "--help"], check=False).returncode
    located = _located(given, detached)
    given["nproc"] = torchrun.ranks(
        given["nproc"], ctx.get_parameter_source("nproc") is ParameterSource.COMMANDLINE, given.pop("nproc_per_node")
    )
    if located is not None and not located.leads:
        from supervisor.commands import far, several

        return (far.detached_follow if detached else several.follow)(located, given, quiet)
    with Folder() as folder:
        spec, run = _resolve(ctx, given, folder)
        return _launched(run, _in_a_job(spec), detached, as_json, quiet, located)


def _located(given: dict[str, Any], detached: bool) -> Located | None:
    """The place of this node among several. None if it trains alone."""
    meaningless = nodes.ignored(given)
    place = nodes.placed(given)
    if not place.alone:
        from supervisor.commands import several

        return several.place(given, place, detached)
    for name in meaningless:
        click.echo(f"supervise: {name} is ignored: {torchrun.MEETS}", err=True)
    return None


def _in_a_job(spec: Spec) -> Spec:
    """The spec with a --grace that a batch system leaves time for."""
    most = slurm.grace(spec.policy.grace, os.environ)
    if most is None:
        return spec
    cut = f"--grace {spelled(spec.policy.grace)} is cut to {spelled(most)}"
    click.echo(f"supervise: {cut}: Slurm kills {spelled(most + slurm.MARGIN_S)} after it asks (KillWait)", err=True)
    return dataclasses.replace(spec, policy=dataclasses.replace(spec.policy, grace=most))


def _launched(run: RunDir, spec: Spec, detached: bool, as_json: bool, quiet: bool, located: Located | None) -> int:
    def wanted() -> Spec | None:
        known = load(run.path)
        if known and _already_finished(known, spec):
            click.echo(f"supervise: {known.label} has finished already; nothing to do", err=True)
            return None
        if spec.resume == "must" and not committed_steps(run.checkpoints):
            raise Refusal(f"--resume must, but there is no checkpoint in {run.checkpoints}; use --resume auto")
        arm_faults(run, spec)
        return spec

    return begin(run, wanted, detached, as_json, quiet, located)


def _resolve(ctx: click.Context, given: dict[str, Any], made: Folder) -> tuple[Spec, RunDir]:
    """The Spec of the run, and its folder, which exists."""
    folder = given.pop("run_dir")
    name = given.pop("name")
    known = load(folder) if folder is not None else None
    arguments, module = list(given.pop("command_line")), given.pop("module")
    options = {key: value for key, value in given.items() if key in specs.NAMES}
    sound({**options, "name": name}, starts_ranks=bool(arguments) or known is not None)
    if known is not None:
        old = specs.restore(known.spec)
        values = specs.flat(old)
        if arguments or module:
            values |= options | target.command(arguments, module)
        else:
            # Only the folder was given. So the run goes on as it was launched, with the options that are given anew. An
            # old `never` was about the checkpoints of that time.
            values["resume"] = "auto" if old.resume == "never" else old.resume
            values |= {key: value for key, value in options.items() if ctx.get_parameter_source(key) in _GIVEN}
        values["inject"] = tuple(given["inject"])
        values |= _notify(ctx)
        values["actions"] = resolved(({} if arguments else {**old.policy.actions}) | options["actions"])
        sound(values, starts_ranks=True)
        spec = specs.made(values)
        return spec if arguments else specs.revealed(spec), RunDir(folder.resolve())
    run_id = f"{name or target.stem(arguments)}-{secrets.token_hex(2)}"
    run = RunDir((folder or RUNS / run_id).resolve())
    made.make(run)
    options["actions"] = resolved(options["actions"])
    return specs.made(
        {"run": run_id, "mark": secrets.token_hex(8), **options, **target.command(arguments, module), **_notify(ctx)}
    ), run


def _notify(ctx: click.Context) -> dict[str, str]:
    """The file that says who is told what, if this launch read one."""
    return {NOTIFY: ctx.meta[NOTIFY]} if NOTIFY in ctx.meta else {}


def as_configured(ctx: click.Context, config: Path | None) -> Policy:
    """The policy that `supervise launch` would have here without a flag but --config."""
    arguments = ["--config", str(config)] if config else []
    given = command.make_context("launch", arguments, parent=ctx.parent).params
    return specs.policy_of({**given, "actions": resolved(given["actions"])})


def _already_finished(known: Known, spec: Spec) -> bool:
    """Whether exactly the same command has run to its end here."""
    old = specs.restore(known.spec)
    same = (old.command, old.module) == (specs.shown(spec).command, spec.module)
    return same and spec.resume != "never" and story_of(known.run).state == RunState.FINISHED


def _warn_unknown_environment(ctx: click.Context) -> None:
    known = {p.envvar for p in ctx.command.params if isinstance(p, click.Option) and p.envvar}
    ours = {name for name in vars(variables).values() if isinstance(name, str)}
    for name in sorted(os.environ.keys() - ours):
        if name.startswith(PREFIX) and name not in known:
            names = [str(n)[len(PREFIX) :].lower() for n in known]
            hint = nearest(name[len(PREFIX) :].lower(), names)
            click.echo(f"supervise: the environment's {name} is no option of launch{hint}", err=True)
