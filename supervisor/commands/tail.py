"""supervise tail: events and all ranks' logs of a run, across its restarts."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import click

from supervisor.commands.flags import run_argument
from supervisor.commands.meant import to_read
from supervisor.commands.stream import colours, stream
from supervisor.commands.values import ParamType
from supervisor.core.stack import named
from supervisor.core.words import EventName
from supervisor.errors import Refusal
from supervisor.reading.choice import LEVELS, Choice, parse_since
from supervisor.reading.follow import RunFollower
from supervisor.reading.past import log_files
from supervisor.reading.plain import plain
from supervisor.reading.render import Renderer, TextRenderer, render_json, render_raw
from supervisor.run.folder.lock import is_held
from supervisor.run.runs import Known
from trainer.rundir.nearest import did_you_mean

_MOST_RANKS = 100_000
_DIGITS = len(str(sys.maxsize))


class Number(ParamType[int]):
    """A whole number, or -1 for `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all" or value == -1:
            return -1
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor 'all'", param, ctx)
        # More than there can be is as good as the most that Python counts with.
        return int(value) if len(str(value)) < _DIGITS else sys.maxsize


class Pattern(ParamType[re.Pattern[str]]):
    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is not a regular expression: {error}", param, ctx)


class Since(ParamType[float]):
    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_since(value, time.time())
        except ValueError as error:
            self.fail(str(error), param, ctx)


def known_event(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> frozenset[str]:
    """The names. A usage error if one is unknown; it gives the nearest known name."""
    known = [event.value for event in EventName]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, f"there are: {' '.join(known)}")
            raise click.BadParameter(f"no event {name!r}; {hint}")
    return frozenset(names)


@click.command("tail")
@run_argument
@click.option("-f", "--follow/--no-follow", "follow", default=True, help="Follow until the run is over (default).")
@click.option("-n", "back", type=Number(), help="Last lines of each source; default 10 when following, else all.")
@click.option("--since", type=Since(), help="Newer than 3h ago, or than an ISO time.")
@click.option("--until", type=Since(), help="Not newer than that.")
@click.option("--attempt", type=int, help="One attempt only; -1 is the last.")
@click.option("--rank", type=Number(), default=-1, help="One rank's log only, without the launcher's.")
@click.option("--level", type=click.Choice(LEVELS), default="info", help="Events at this level or above.")
@click.option("--event", "names", multiple=True, callback=known_event, metavar="NAME", help="This event, and no logs.")
@click.option("--grep", type=Pattern(), help="Lines in which this is found.")
@click.option("-o", "form", type=click.Choice(["text", "json", "raw"]), default="text", help="Form of the output.")
@click.option("-t", "--timestamps", is_flag=True, help="The local time of each line.")
@click.option("--no-prefix", is_flag=True, help="Without `a1 r0 │`.")
def command(
    run: str | None,
    follow: bool,
    back: int | None,
    since: float | None,
    until: float | None,
    attempt: int | None,
    rank: int,
    level: str,
    names: frozenset[str],
    grep: re.Pattern[str] | None,
    form: str,
    timestamps: bool,
    no_prefix: bool,
) -> None:
    """Show the events and all ranks' logs of RUN (default: the newest), across restarts.

    In `a1 r0 │ text`, a1 is the attempt and r0 the rank. L is the launcher, ● an event.

    All ranks' lines are in the order of their times, which the supervisor notes while the logs grow: to 0.2 s. --since
    and --until are about events and logs. Lines of a time without a supervisor have the time of its next look.

    With -o json, `stream` is event (as in events.jsonl), rank or launcher (the line is in `text`).

    A progress bar is shown as its last state. Control characters are removed or written out. `-o raw` gives the bytes
    of the logs as they are, and events only with --event. Ctrl-C ends the reading, not the run.
    """
    known = to_read(run)
    choice = Choice(
        attempt=attempt,
        rank=None if rank < 0 else rank,
        level=level,
        names=names,
        grep=grep,
        since=since,
        until=until,
        logs=not names,
        events=form != "raw" or bool(names),
    )
    if back is None:
        back = 10 if follow and since is None else -1
    if choice.rank is not None:
        _vet_rank(known, choice.rank)
    follower = RunFollower(
        known.run, lambda: is_held(known.run), choice, back=None if back < 0 else back, raw=form == "raw"
    )
    stream(follower, _renderer(form, follower, not no_prefix, timestamps), follow)


def _vet_rank(known: Known, rank: int) -> None:
    """Refusal if the run has no such rank. A script with one launched rank may start others, as long as it runs."""
    # As it is written there: a damaged run.json is no reason not to read logs.
    told = known.spec.get("nproc")
    nproc = told if isinstance(told, int) and 0 < told < _MOST_RANKS else 1
    there = set(range(nproc))
    for attempt in known.run.attempts():
        there |= {file.rank for file in log_files(known.run, attempt, Choice()) if file.rank is not None}
    if rank in there:
        return
    said = f"{known.label} has no rank {rank}; it has {named(sorted(there))}"
    if nproc > 1 or not is_held(known.run):
        raise Refusal(said)
    click.echo(plain(f"supervise: {said} so far"), err=True)


def _renderer(form: str, follower: RunFollower, prefix: bool, timestamps: bool) -> Renderer:
    match form:
        case "json":
            return render_json
        case "raw":
            return render_raw
        case _:
            return TextRenderer(follower.restarts, colours(), prefix, timestamps)
