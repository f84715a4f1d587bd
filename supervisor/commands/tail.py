"""supervise tail: events and all ranks' logs of a run, across its restarts."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from supervisor.commands.flags import run_argument
from supervisor.commands.meant import to_read
from supervisor.commands.stream import colours, stream
from supervisor.core.words import EventName
from supervisor.reading.choice import LEVELS, Choice, parse_since
from supervisor.reading.follow import RunFollower
from supervisor.reading.render import Renderer, TextRenderer, render_json, render_raw
from supervisor.run.folder.lock import is_held
from trainer.rundir.nearest import did_you_mean


class Number(click.ParamType[int]):
    """A whole number, or -1 for `all`."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all" or value == -1:
            return -1
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a whole number nor 'all'", param, ctx)
        return int(value)


class Pattern(click.ParamType[re.Pattern[str]]):
    name = "regex"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> re.Pattern[str]:
        try:
            return re.compile(value)
        except re.error as error:
            self.fail(f"{value!r} is not a regular expression: {error}", param, ctx)


class Since(click.ParamType[float]):
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
@click.option("--attempt", type=int, help="One attempt only; -1 is the last.")
@click.option("--rank", type=Number(), default=-1, help="One rank's log only, without the launcher's.")
@click.option("--level", type=click.Choice(LEVELS), default="info", help="Events at this level or above.")
@click.option("--event", "names", multiple=True, callback=known_event, metavar="NAME", help="This event, and no logs.")
@click.option("--grep", type=Pattern(), help="Lines in which this is found.")
@click.option("-o", "form", type=click.Choice(["text", "json", "raw"]), default="text", help="Form of the output.")
@click.option("--no-prefix", is_flag=True, help="Without `a1 r0 │`.")
def command(
    run: str | None,
    follow: bool,
    back: int | None,
    since: float | None,
    attempt: int | None,
    rank: int,
    level: str,
    names: frozenset[str],
    grep: re.Pattern[str] | None,
    form: str,
    no_prefix: bool,
) -> None:
    """Show the events and all ranks' logs of RUN (default: the newest), across restarts.

    In `a1 r0 │ text`, a1 is the attempt and r0 the rank. L is the launcher, ● an event.

    Logs carry no times. While following, lines come as they are seen. Lines of the past come attempt by attempt, file
    by file. --since shows events by their time. It shows a whole log if the log was written since then.

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
        logs=not names,
        events=form != "raw" or bool(names),
    )
    if back is None:
        back = 10 if follow and since is None else -1
    follower = RunFollower(
        known.run, lambda: is_held(known.run), choice, back=None if back < 0 else back, raw=form == "raw"
    )
    stream(follower, _renderer(form, follower, not no_prefix), follow)


def _renderer(form: str, follower: RunFollower, prefix: bool) -> Renderer:
    match form:
        case "json":
            return render_json
        case "raw":
            return render_raw
        case _:
            return TextRenderer(follower.restarts, colours(), prefix)
