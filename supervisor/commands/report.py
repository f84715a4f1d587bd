"""`supervise report`: how a run has used its time."""

from __future__ import annotations

import time
from typing import Any

import click

from supervisor.commands.console import attempt_lines
from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import to_read
from supervisor.core.size import counted
from supervisor.core.telling import ledger
from supervisor.core.telling.story import Story
from supervisor.core.words import RunState
from supervisor.reading.plain import plain
from supervisor.reading.table import table
from supervisor.run.runs import SCHEMA
from supervisor.run.status import story_of
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir


@click.command()
@run_argument
@json_flag
def command(run: str | None, as_json: bool) -> None:
    """Show the failures, the recoveries and the ledger of RUN, from its events alone."""
    known = to_read(run)
    story = story_of(known.run)
    now = story.last if story.state == RunState.LOST else time.monotonic() + story.offset
    body = {"schema": SCHEMA, "run": known.id, **ledger.report(story, now)}
    if as_json:
        click.echo(encode(body))
        return
    click.echo(plain(f"{known.id}  {body['state']}  {body['reason']}".rstrip()))
    for line in attempt_lines(story):
        click.echo(plain(f"  {line}"))
    for attempt in story.attempts:
        if attempt.over is not None:
            click.echo(plain(f"  attempt {attempt.number}: {attempt.over.get('text')}"))
    for line in _stacks(story, known.run):
        click.echo(line)
    click.echo(_ledger(body), nl=False)


def _stacks(story: Story, run: RunDir) -> list[str]:
    """The places of the ranks of each hung attempt, in groups, and the file with their whole stacks."""
    lines = []
    for attempt in story.failures():
        if attempt.groups:
            groups = run.attempt(attempt.number).groups
            lines += [f"attempt {attempt.number} stood still; stacks in {groups}"]
            lines += [f"  {plain(group)}" for group in attempt.groups]
    return lines


def _ledger(body: dict[str, Any]) -> str:
    wall = body["wall_s"]
    rows = [
        (name.removesuffix("_s"), f"{seconds:.2f} s", f"{100 * seconds / wall if wall else 0:.1f} %")
        for name, seconds in body["ledger"].items()
    ]
    rows.append(("wall", f"{wall:.2f} s", "100.0 %"))
    text = table(("ledger", "time", "share"), rows)
    recover = body["recover_s"]
    if recover["p50"] is not None:
        text += f"recover p50 {recover['p50']:.2f} s, p95 {recover['p95']:.2f} s, max {recover['max']:.2f} s\n"
    return text + f"goodput {100 * body['goodput']:.1f} %, {counted(body['lost_steps'], 'step')} lost\n"
