"""`supervise ls`: the runs here, newest first."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from supervisor.commands.flags import json_flag
from supervisor.commands.meant import tell
from supervisor.commands.values import ParamType
from supervisor.core.words import RunState
from supervisor.errors import Refusal
from supervisor.reading.choice import parse_since
from supervisor.reading.local_time import moment, short
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run.runs import SCHEMA, Known, survey
from supervisor.run.status import status
from trainer.rundir.files.codec import encode

_HEADS = ("run", "state", "step", "restarts", "created", "cause")
"""A line of these fits a terminal of 80 columns; --json has more."""


class _Since(ParamType[float]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_since(str(value), time.time())
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command()
@click.option("-n", "--limit", "most", type=click.IntRange(1), help="Only the newest N.")
@click.option(
    "--state",
    "states",
    type=click.Choice([state.value for state in RunState]),
    multiple=True,
    help="Only runs in this state. Repeatable.",
)
@click.option("--since", type=_Since(), help="Only runs launched since: 3h, 2d, or a time like 2026-11-24T02:26.")
@json_flag
def command(as_json: bool, most: int | None, states: tuple[str, ...], since: float | None) -> None:
    """The runs in ./runs, newest first."""
    runs, refused = survey()
    tell(refused.values())
    rows = list(itertools.islice(_rows(runs, states, since), most))
    if as_json:
        click.echo(encode({"schema": SCHEMA, "runs": rows}))
        return
    if not rows:
        other = "no such run here" if runs or refused else "no runs here; start one with: supervise launch"
        click.echo(other, err=True)
        return
    now = datetime.now().astimezone()
    shown = [{**row, "run": row["name"], "created": short(row["created"], now)} for row in rows]
    click.echo(table(_HEADS, [[row[head] for head in _HEADS] for row in shown]), nl=False)


def _rows(runs: list[Known], states: tuple[str, ...], since: float | None) -> Iterator[dict[str, Any]]:
    for known in runs:
        created = moment(str(known.spec.get("created", "")))
        if since is not None and (created is None or created.timestamp() < since):
            continue
        try:
            row = _row(known)
        except Refusal as refusal:
            click.echo(plain(f"{known.run.path} is skipped: {refusal}"), err=True)
            continue
        if not states or row["state"] in states:
            yield row


def _row(known: Known) -> dict[str, Any]:
    now = status(known)
    checkpoint, failure = now["checkpoint"], now["last_failure"]
    return {
        "run": known.id,
        "name": known.name,
        "run_dir": now["run_dir"],
        "state": now["state"],
        "exit_code": now["exit_code"],
        "attempt": now["attempt"],
        "restarts": now["restarts"],
        "step": now["step"],
        "checkpoint": checkpoint["step"] if checkpoint else None,
        "created": str(known.spec.get("created", "")),
        "cause": failure["cause"] if failure else None,
    }
