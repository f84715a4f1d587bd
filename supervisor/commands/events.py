"""supervise events: the state transitions of a run, without its logs."""

from __future__ import annotations

import click

from supervisor.commands.flags import run_argument
from supervisor.commands.meant import to_read
from supervisor.commands.stream import colours, stream
from supervisor.commands.tail import known_event
from supervisor.reading.choice import LEVELS, Choice
from supervisor.reading.follow import RunFollower
from supervisor.reading.render import Renderer, TextRenderer, render_raw
from supervisor.run.folder.lock import is_held


@click.command("events")
@run_argument
@click.option("--json", "as_json", is_flag=True, help="The JSON lines as they stand in events.jsonl.")
@click.option("-f", "--follow", is_flag=True, help="Follow until the run is over.")
@click.option("--event", "names", multiple=True, callback=known_event, metavar="NAME", help="Only this event.")
@click.option("--level", type=click.Choice(LEVELS), default="info", help="Only at this level or above.")
def command(run: str | None, as_json: bool, follow: bool, names: frozenset[str], level: str) -> None:
    """Show what happened in RUN (default: the newest), when (UTC), and why."""
    known = to_read(run)
    choice = Choice(names=names, level=level, logs=False)
    follower = RunFollower(known.run, lambda: is_held(known.run), choice)
    renderer: Renderer = render_raw if as_json else TextRenderer(follower.restarts, colours())
    stream(follower, renderer, follow)
