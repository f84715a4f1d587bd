"""`supervise ls`: the runs here, newest first."""

from __future__ import annotations

from typing import Any

import click

from supervisor.commands.flags import json_flag
from supervisor.errors import Refusal
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run.runs import SCHEMA, Known, all_runs
from supervisor.run.status import status
from trainer.rundir.files.codec import encode


@click.command()
@json_flag
def command(as_json: bool) -> None:
    """The runs in ./runs, newest first."""
    rows = []
    for known in all_runs():
        try:
            rows.append(_row(known))
        except Refusal as refusal:
            click.echo(plain(f"{known.run.path} is skipped: {refusal}"), err=True)
    if as_json:
        click.echo(encode({"schema": SCHEMA, "runs": rows}))
        return
    if not rows:
        click.echo("no runs here; start one with: supervise launch", err=True)
        return
    heads = ("run", "state", "attempt", "restarts", "step", "checkpoint", "created", "cause")
    # To the minute: a line then fits a terminal of 80 columns.
    shown = [{**row, "created": row["created"].replace("T", " ")[:16]} for row in rows]
    click.echo(table(heads, [[row[head] for head in heads] for row in shown]), nl=False)


def _row(known: Known) -> dict[str, Any]:
    now = status(known)
    checkpoint, failure = now["checkpoint"], now["last_failure"]
    return {
        "run": known.id,
        "run_dir": now["run_dir"],
        "state": now["state"],
        "exit_code": now["exit_code"],
        "attempt": now["attempt"],
        "restarts": now["restarts"],
        "step": now["step"],
        "checkpoint": checkpoint["step"] if checkpoint else None,
        "created": str(known.spec.get("created", ""))[:19],
        "cause": failure["cause"] if failure else None,
    }
