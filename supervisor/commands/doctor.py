"""supervise doctor: it names what will harm a run on this machine, before the run starts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from supervisor.checkup import checks, gpus, installed, probes, space
from supervisor.checkup.checks import Check, Host, Verdict
from supervisor.checkup.kept import kept
from supervisor.checkup.script import files
from supervisor.checkup.script.advice import findings
from supervisor.checkup.script.source import Unreadable
from supervisor.commands.flags import json_flag
from supervisor.group.learned import known
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run.runs import RUNS
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode

SCHEMA = 1
LOOKS = (
    checks.cores,
    space.memory,
    space.shm,
    space.disk,
    space.filesystem,
    checks.limits,
    checks.clock,
    checks.variables,
    checks.home,
    checks.linger,
    kept,
)
_WHOLE: Any = {"break_long_words": False, "break_on_hyphens": False}
_MARK = {Verdict.OK: "ok", Verdict.WARN: "warn", Verdict.BAD: "BAD"}


@click.command("doctor", context_settings={"ignore_unknown_options": True})
@click.argument("script", required=False, type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--run-dir", type=click.Path(path_type=Path), default=RUNS, help="Where runs are to be kept.")
@click.option("--nproc", type=click.IntRange(1), help="Ranks that are to run here.")
@json_flag
def command(script: Path | None, arguments: tuple[str, ...], run_dir: Path, nproc: int | None, as_json: bool) -> None:
    """Check this machine for what would harm a run: torch, GPUs, memory, disk, limits, leftovers in the environment.

    With a SCRIPT (and the arguments that it will have): what a run of it will be like, told from its source. How does
    it save and resume, which adapter acts, is a restart warm? The script and its own modules do not run; the packages
    that it imports are imported in another process.

    Exit code 2 if something is bad: a run would not start, or could not be kept alive.
    """
    if script is not None and str(script).startswith("-"):
        # The options of a script come behind it.
        raise click.NoSuchOption(str(script), ctx=click.get_current_context())
    if script is not None:
        try:
            source, names = files.script(script)
        except Unreadable as error:
            raise click.UsageError(plain(str(error))) from None
        found = findings(source, arguments, files.tried(names))
    else:
        found = examine(Host(run_dir=run_dir, nproc=nproc))
    bad = any(check.verdict is Verdict.BAD for check in found)
    if as_json:
        click.echo(encode({"schema": SCHEMA, "ok": not bad, "checks": list(map(_json, found))}))
    elif script is not None:
        click.echo("\n".join(line for check in found for line in _wrapped(check)))
    else:
        rows = [(c.name, _MARK[c.verdict], _text(c)) for c in found]
        click.echo(table(("check", "", "what"), rows), nl=False)
    if bad:
        click.get_current_context().exit(ExitCode.USAGE)


def examine(host: Host) -> list[Check]:
    """The findings of all checks. It takes as long as the import of torch."""
    answer = probes.ask_torch()
    tried = [
        probes.python(),
        probes.torch(answer),
        probes.cuda(answer),
        probes.standby(answer, known()),
        probes.processes(),
        probes.stacks(),
        installed.names(),
        probes.network(),
        probes.resolver(),
    ]
    return [*tried, *gpus.gpus(host), *(look(host) for look in LOOKS)]


def _json(check: Check) -> dict[str, str]:
    return {"name": check.name, "verdict": check.verdict.value, "text": check.text, "next": check.next}


def _wrapped(check: Check) -> Iterator[str]:
    """The finding in lines of 80 columns."""
    indent = " " * 16
    rows = (check.name, _MARK[check.verdict], check.text), ("", "next", check.next)
    for head, text in ((f"{name:<10}{mark:<6}", text) for name, mark, text in rows):
        if text:
            # Paths stay whole, to be copied.
            yield from textwrap.wrap(plain(text), 80, initial_indent=head, subsequent_indent=indent, **_WHOLE)


def _text(check: Check) -> str:
    return plain(f"{check.text}; next: {check.next}" if check.next else check.text)
