"""`supervise chaos`: a job under a seeded schedule of faults, compared with the same job undisturbed."""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from supervisor.chaos.page import page
from supervisor.chaos.session import Interrupted, Session, Wanted
from supervisor.chaos.words import figures, verdicts
from supervisor.commands.options import LEAST_LIMIT, Duration, Nproc, nearest
from supervisor.commands.target import is_built_in
from supervisor.commands.values import ParamType
from supervisor.core.chaos.summary import as_json, summary
from supervisor.errors import Refusal
from supervisor.run.runs import SCHEMA
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode
from trainer.rundir.records.fault_kinds import FAULTS, Moment

_COUNT = 8
_SIZE, _LONG_SIZE = 5, 20
_LONG = 300.0
"""A session of more seconds than this has fewer and longer rounds."""
_STEPS_A_FAULT = 150
"""For the built-in trainer. A recovery and the making of a standby fit between two faults."""
_MODEL = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --data random --dropout 0.1 --log-every 100"
_SAVES = "--checkpoint-every 20 --snapshot-every 1 --keep 2"


class _Names(ParamType[Any]):
    """Some of a known set of names, separated by commas."""

    def __init__(self, what: str, known: list[str]) -> None:
        self.name, self._known = what, known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        names = [part.strip() for part in value.split(",") if part.strip()]
        for name in names:
            if name not in self._known:
                self.fail(f"unknown {self.name} {name!r}{nearest(name, self._known)}", param, ctx)
        if not names:
            self.fail(f"no {self.name} at all; known: {' '.join(self._known)}", param, ctx)
        return tuple(dict.fromkeys(names))


@click.command(context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]})
@click.option("--nproc", type=Nproc(), default="2", show_default=True, help="Ranks.")
@click.option(
    "--seed", type=click.IntRange(0), default=None, help="The same seed gives the same schedule.  [default: new]"
)
@click.option(
    "--count", type=click.IntRange(1), default=None, help=f"Faults.  [default: {_COUNT}, or no limit in time]"
)
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=None, help="Run for this many minutes: a soak."
)
@click.option(
    "--faults", "kinds", type=_Names("fault", list(FAULTS)), default=None, help="Which faults.  [default: all but nan]"
)
@click.option(
    "--moments",
    type=_Names("moment", [m.value for m in Moment]),
    default=None,
    help="When they strike.  [default: all]",
)
@click.option("--matrix", is_flag=True, help="Every fault at every moment at which it can strike.")
@click.option(
    "--compare", "globs", multiple=True, help="Files in a run's folder to compare, as 'out/*.pt'. Repeatable."
)
@click.option("--hang-timeout", type=Duration(least=LEAST_LIMIT), default="6s", show_default=True, help="As of launch.")
@click.option(
    "--startup-timeout", type=Duration(least=LEAST_LIMIT), default="20s", show_default=True, help="As of launch."
)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="A page of HTML with the time lines.")
@click.option("--json", "as_json_", is_flag=True, help="One JSON document on stdout.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
@click.option("-m", "--module", "module", is_flag=True, help="SCRIPT is a module, as in python -m.")
@click.argument("command_line", metavar="[SCRIPT] [ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(report: Path | None, as_json_: bool, quiet: bool, **given: Any) -> int:
    """Train SCRIPT (or a small built-in GPT) under faults, and compare its end with that of an undisturbed run.

    Each fault must be noticed under its right name. Nothing may be left of an attempt. The end must be the same to the
    bit. At the end there is a table of verdicts. The exit code is 107 if a verdict is bad. The runs are kept in runs/.

    The script must write into the run's own folder. Otherwise the second run finds the files of the first. In ARGS,
    {run} stands for that folder; the script finds it in $SUPERVISE_RUN_DIR.

    \b
    supervise chaos                                     two minutes with the built-in trainer
    supervise chaos --seed 7 --count 20                 the same faults as the last time
    supervise chaos --faults kill,stop --minutes 30
    supervise chaos --compare 'out/*.pt' train.py --out {run}/out
    """
    wanted = _wanted(**given)
    if report is not None and not os.access(report.resolve().parent, os.W_OK):
        raise Refusal(f"--report {report}: {report.resolve().parent} is not a folder that can be written to")

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"chaos: {text}", err=True)

    say(f"seed {wanted.seed}: with --seed {wanted.seed} and the same options it is the same schedule")
    session = Session(wanted, say)
    interrupted = False
    try:
        session.run()
    except Interrupted:
        interrupted = True
    results = session.results
    totals = summary(results)
    ok = bool(results) and all(result.ok for result in results)
    body: dict[str, Any] = {
        "schema": SCHEMA,
        "seed": wanted.seed,
        "command": _typed(),
        "nproc": wanted.nproc,
        "ok": ok,
        "interrupted": interrupted,
        "summary": totals,
        "rounds": [as_json(result) for result in results],
    }
    if as_json_:
        click.echo(encode(body))
    else:
        click.echo(verdicts(results) + figures(totals), nl=False)
    if report is not None:
        report.write_text(page(results, totals, wanted.seed, _typed()))
        say(f"the page is {report}")
    if interrupted:
        say("stopped; nothing of it runs any more")
        return ExitCode.STOPPED
    return ExitCode.FINISHED if ok else ExitCode.CHAOS


def _wanted(
    nproc: int,
    seed: int | None,
    count: int | None,
    minutes: float | None,
    kinds: tuple[str, ...] | None,
    moments: tuple[str, ...] | None,
    matrix: bool,
    globs: tuple[str, ...],
    hang_timeout: float,
    startup_timeout: float,
    module: bool,
    command_line: tuple[str, ...],
) -> Wanted:
    if matrix and (count is not None or minutes is not None):
        raise click.UsageError("--matrix has a size of its own; leave --count and --minutes out")
    if count is None and minutes is None:
        count = _COUNT
    built_in = is_built_in(command_line, module)
    if not built_in and not module and not Path(command_line[0]).is_file():
        raise Refusal(f"no script {command_line[0]!r} in {Path.cwd()}")
    seconds = None if minutes is None else 60.0 * minutes
    size = _LONG_SIZE if seconds is not None and seconds >= _LONG else _SIZE
    steps = _STEPS_A_FAULT * (size + 1)
    flags = [*_MODEL.split(), *_SAVES.split(), "--batch-size", str(4 * nproc), "--steps", str(steps)]
    return Wanted(
        command=() if built_in else (("-m", *command_line) if module else command_line),
        flags=(*flags, *command_line) if built_in else (),
        nproc=nproc,
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        kinds=kinds or tuple(kind for kind in FAULTS if matrix or FAULTS[kind].same_bits),
        moments=tuple(Moment(name) for name in moments) if moments else tuple(Moment),
        matrix=matrix,
        count=count,
        seconds=seconds,
        size=size,
        globs=globs,
        hang_timeout=hang_timeout,
        startup_timeout=startup_timeout,
    )


def _typed() -> str:
    return shlex.join(["supervise", *sys.argv[1:]])
