"""`supervise report`: how a run has used its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from supervisor.commands.attempt_words import attempt_words
from supervisor.commands.flags import json_flag, run_argument
from supervisor.commands.meant import to_read
from supervisor.commands.status import command_of, saves_nothing, times
from supervisor.core.size import counted, human_bytes, human_seconds
from supervisor.core.telling import figures, ledger
from supervisor.core.telling.ledger import MEANING
from supervisor.core.telling.story import Story
from supervisor.errors import Refusal
from supervisor.reading.local_time import local_epoch
from supervisor.reading.plain import plain
from supervisor.reading.table import folded, table
from supervisor.run import origin
from supervisor.run.runs import SCHEMA, Known
from supervisor.run.status import now_of, status, story_of
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import replace_file
from trainer.rundir.layout import RunDir


@click.command()
@run_argument
@json_flag
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write one page with curves, time lines, failures and checkpoints. It needs no network.",
)
def command(run: str | None, as_json: bool, page: Path | None) -> None:
    """Show the failures, the recoveries and the ledger of RUN, from its events alone."""
    known = to_read(run)
    if page is not None:
        _write_page(known, page)
        if not as_json:
            return
    story = story_of(known.run)
    body = {"schema": SCHEMA, "run": known.id, **ledger.report(story, now_of(story))}
    if as_json:
        click.echo(encode(body))
        return
    click.echo(plain(f"{known.label}  {str(body['state']).upper()}  {body['reason']}".rstrip()))
    for line in [*_made(known, story), *_aside(known.run), *_attempts(story), *_stacks(story, known.run)]:
        click.echo(folded(plain(line)))
    click.echo("\n" + _ledger(body), nl=False)


def _write_page(known: Known, page: Path) -> None:
    # jinja2 is loaded for a page alone.
    from supervisor.pages.run_page import run_page

    text = run_page(known, command_of)
    try:
        replace_file(page, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise Refusal(f"--html {page}: {error.strerror or error}") from None
    click.echo(plain(f"the page of {known.label} is {page} ({human_bytes(len(text))})"), err=True)


def _made(known: Known, story: Story) -> list[str]:
    """What ran, from which code, when; and what to do if it saves nothing."""
    now = status(known, story)
    code, began = origin.told(now), times(now)
    lines = [f"  {command_of(now)}{f'  (git {code})' if code else ''}", *([f"  {began}"] if began else [])]
    return lines + [f"  {'  ' if i else ''}{said}" for i, said in enumerate(saves_nothing(now))]


def _aside(run: RunDir) -> list[str]:
    """What leaders have told after a later one had begun, if any did."""
    names = [path.name for path in sorted(run.path.glob("events.[0-9]*.jsonl"))]
    return [f"  {name}: what a leader saw after a later one had begun; no part of this" for name in names]


def _attempts(story: Story) -> list[str]:
    """Of each attempt: when it began, for how long it lived, its steps; why it ended; what that has cost."""
    lines = []
    for attempt, words in zip(story.attempts, attempt_words(story), strict=True):
        until = attempt.gone if attempt.gone is not None else story.ended or now_of(story)
        lived = human_seconds(max(0.0, until - attempt.started))
        lines += ["", f"attempt {words.number}  {local_epoch(attempt.began)}, {lived}, steps {words.steps}"]
        lines.append(f"  {words.cause}: {attempt.reason}" if attempt.reason else f"  {words.cause}")
        lines += [f"  {words.cost}"] if words.cost else []
        lines += [f"  {attempt.over.get('text')}"] if attempt.over is not None else []
    return lines


def _stacks(story: Story, run: RunDir) -> list[str]:
    """The places of the ranks of each hung attempt, in groups, and the file with their whole stacks."""
    lines = []
    for attempt in story.failures():
        if attempt.groups:
            lines += ["", f"attempt {attempt.number} stood still; stacks in {run.attempt(attempt.number).groups}"]
            lines += [f"  {group}" for group in attempt.groups]
    return lines


def _ledger(body: dict[str, Any]) -> str:
    wall = body["wall_s"]
    rows = [
        (name, f"{seconds:.2f} s", f"{100 * seconds / wall if wall else 0:.1f} %", MEANING[name])
        for name, seconds in ((key.removesuffix("_s"), seconds) for key, seconds in body["ledger"].items())
        if seconds
    ]
    rows.append(("wall", f"{wall:.2f} s", "100.0 %", "all of it"))
    text = table(("ledger", "time", "share", "spent on"), rows)
    recover = body["recover_s"]
    if recover["p50"] is not None:
        text += f"recover p50 {recover['p50']:.2f} s, p95 {recover['p95']:.2f} s, max {recover['max']:.2f} s\n"
    if paid := figures.standbys(body["standby"]):
        text += f"{paid}\n"
    text += f"goodput {100 * body['goodput']:.1f} %"
    if stopped := body["ledger"]["stopped_s"]:
        text += (
            f" ({100 * body['ledger']['productive_s'] / max(wall - stopped, 1e-9):.1f} % of the time in which it ran)"
        )
    return f"{text}, {counted(body['lost_steps'], 'step')} lost\n"
