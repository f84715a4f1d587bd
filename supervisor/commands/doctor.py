"""supervise doctor: it names what will harm a run on this machine, before the run starts."""

from __future__ import annotations

from pathlib import Path

import click

from supervisor.checkup import checks, installed, probes, space
from supervisor.checkup.checks import Check, Host, Verdict
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
)
_MARK = {Verdict.OK: "ok", Verdict.WARN: "warn", Verdict.BAD: "BAD"}


@click.command("doctor")
@click.option("--run-dir", type=click.Path(path_type=Path), default=RUNS, help="Where runs are to be kept.")
@click.option("--nproc", type=click.IntRange(1), help="Ranks that are to run here.")
@json_flag
def command(run_dir: Path, nproc: int | None, as_json: bool) -> None:
    """Check this machine for what would harm a run: torch, GPUs, memory, disk, limits, leftovers in the environment.

    Exit code 2 if something is bad: a run would not start, or could not be kept alive.
    """
    found = examine(Host(run_dir=run_dir, nproc=nproc))
    bad = any(check.verdict is Verdict.BAD for check in found)
    if as_json:
        click.echo(encode({"schema": SCHEMA, "ok": not bad, "checks": list(map(_json, found))}))
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
    return [*tried, *(look(host) for look in LOOKS)]


def _json(check: Check) -> dict[str, str]:
    return {"name": check.name, "verdict": check.verdict.value, "text": check.text, "next": check.next}


def _text(check: Check) -> str:
    return plain(f"{check.text}; next: {check.next}" if check.next else check.text)
