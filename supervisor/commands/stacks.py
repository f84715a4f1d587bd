"""`supervise stacks`: where every rank of a live run stands now, or where they spend their time."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from supervisor.attempt import profiler
from supervisor.attempt.stacks import observed
from supervisor.commands.flags import json_flag, running_argument
from supervisor.commands.meant import to_act_on
from supervisor.commands.options import Duration
from supervisor.core.stack import Stacks, grouped, named, summary
from supervisor.core.telling.profile import Share, shares
from supervisor.errors import Refusal
from supervisor.nodes.look import Answer
from supervisor.process.proctree import Process
from supervisor.reading.plain import plain, plain_lines
from supervisor.reading.table import table
from supervisor.run.folder.lock import is_held
from supervisor.run.folder.ownership import vet
from supervisor.run.folder.requests import ask_to_look
from supervisor.run.runs import Known
from supervisor.run.status import story_of
from trainer.rundir.files.codec import encode, read
from trainer.rundir.records.beats import last_beats

SCHEMA = 1
_ROWS = 12
_ANSWER = 20.0
"""Seconds that the answer of several nodes may take longer than the look."""
_LOOK_EVERY = 0.05
_LONGEST_LOOK = 86400.0
"""Seconds. Who wants to know where a day goes does not wait for it in a terminal."""
_COLUMNS = 4
"""The most ranks that have a column of their own."""


@click.command()
@running_argument
@click.option("--top", type=Duration(most=_LONGEST_LOOK), help="Sample for so long, and show where the time goes.")
@json_flag
def command(run: str | None, top: float | None, as_json: bool) -> None:
    """Show where every rank of RUN (default: the only run that runs) stands now. Ranks at the same place are together.

    The ranks are looked at from outside, by py-spy, and are not disturbed; where that is not allowed, they are asked
    by a signal. With --top, the main thread of each rank is
    sampled; waiting counts, too. On several nodes each supervisor looks at its own ranks.
    """
    known = to_act_on(run)
    vet(known.run)
    if not is_held(known.run):
        raise Refusal(f"{known.label} is not running; the stacks of a rank that hung: supervise report {known.name}")
    attempt = story_of(known.run).attempt
    if attempt is not None and attempt.nodes:
        answer = _asked(known, attempt.number, top or 0.0)
        for node in answer.silent:
            click.echo(f"supervise: node {node} has not answered", err=True)
        if top is None:
            _stand(known, Stacks(0.0, tuple(answer.stacks)), as_json)
        else:
            samples = {rank: Counter(found) for rank, found in answer.samples.items()}
            _spend(known, profiler.Profile(samples, answer.problem), top, as_json)
        return
    with _ranks(known) as ranks:
        if not ranks:
            raise Refusal(f"{known.label} has no rank at this moment; see: supervise status {known.name}")
        if top is None:
            _stand(known, observed(ranks, known.run.attempt(known.run.attempts()[-1]).stacks), as_json)
        else:
            _spend(known, profiler.profile({r: p.pid for r, p in ranks.items()}, top), top, as_json)


def _asked(known: Known, attempt: int, seconds: float) -> Answer:
    """What the supervisors of a run over several nodes see: each looks at its own ranks. Refusal if the one that leads
    does not answer."""
    name = secrets.token_hex(4)
    path = known.run.attempt(attempt).stacks / f"look.{name}.json"
    ask_to_look(known.run, name, max(1.0, seconds) if seconds else 0.0)
    until = time.monotonic() + seconds + _ANSWER
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError):
            answer = read(path, Answer)
            path.unlink()
            if not answer.stacks and not answer.samples:
                raise Refusal(f"{known.label} has no rank at this moment; see: supervise status {known.name}")
            return answer
        time.sleep(_LOOK_EVERY)
    known.run.look.unlink(missing_ok=True)
    raise Refusal(f"the supervisor that leads {known.label} does not answer within {seconds + _ANSWER:.0f} s")


def _stand(known: Known, found: Stacks, as_json: bool) -> None:
    if as_json:
        rows = [{**asdict(stack), "place": stack.place} for stack in found.stacks]
        click.echo(encode({"schema": SCHEMA, "run": known.id, "stacks": rows}))
        return
    click.echo(plain_lines("\n".join(summary(found.stacks))))
    for ranks, stack in grouped(found.stacks):
        lines = [f"  {frame.file}:{frame.line} {frame.function}" for frame in stack.frames]
        click.echo(plain_lines("\n".join(["", named(ranks), *(lines or ["  its stack cannot be read"])])))


def _spend(known: Known, found: profiler.Profile, seconds: float, as_json: bool) -> None:
    rows = shares(found.samples, _ROWS)
    if as_json:
        body = {rank: dict(counts.most_common()) for rank, counts in found.samples.items()}
        click.echo(encode({"schema": SCHEMA, "run": known.id, "seconds": seconds, "samples": body}))
    elif not rows:
        raise Refusal(f"{known.label}: no rank could be sampled: {found.problem or 'no samples'}")
    else:
        click.echo(table(*_table(rows)), nl=False)
    for rank in sorted(rank for rank, counts in found.samples.items() if not counts):
        click.echo(plain(f"rank {rank} could not be sampled: {found.problem or 'no samples'}"), err=True)


def _table(rows: list[Share]) -> tuple[list[str], list[list[Any]]]:
    ranks = sorted(rows[0].shares)
    if len(ranks) <= _COLUMNS:
        heads = [f"rank {rank}" for rank in ranks]
        return [*heads, "main thread in"], [[*(_percent(r.shares[rank]) for rank in ranks), r.place] for r in rows]
    body = []
    for row in rows:
        least, most = (end(ranks, key=row.shares.__getitem__) for end in (min, max))
        edges = [f"{_percent(row.shares[rank])} ({rank})" for rank in (least, most)]
        body.append([_percent(row.mean), *edges, row.place])
    return ["mean", "least (rank)", "most (rank)", "main thread in"], body


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@contextlib.contextmanager
def _ranks(known: Known) -> Iterator[dict[int, Process]]:
    """The living ranks of the newest attempt."""
    attempt = story_of(known.run).attempt
    found: dict[int, Process] = {}
    try:
        for beat in last_beats(known.run.attempt(attempt.number).beats) if attempt is not None else []:
            with contextlib.suppress(ProcessLookupError):
                found[beat.rank] = Process.as_of(beat.pid, beat.at)
        yield found
    finally:
        for process in found.values():
            process.close()
