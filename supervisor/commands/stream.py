"""Writes a stream to stdout, in batches. If the reader goes away, it ends. Ctrl-C ends only the reading."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from typing import BinaryIO

import click

from supervisor.reading.follow import Record, RunFollower, pump
from supervisor.reading.render import Renderer

_BATCH = 65536


def colours() -> bool:
    """Whether stdout is a terminal that takes colours, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def stream(follower: RunFollower, renderer: Renderer, follow: bool) -> None:
    """Writes every record to stdout. Messages about the stream itself go to stderr."""
    out = _stdout()

    def write(record: Record) -> None:
        out.write(renderer(record))

    try:
        pump(follower, write, _waiter(out.flush), follow)
        out.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            click.echo("\x1b[0m" if colours() else "")
        click.echo("stopped reading; the run goes on (to stop it: supervise stop)", err=True)
        return
    if follower.skipped:
        click.echo(f"{follower.skipped} lines of events.jsonl are not events and were skipped", err=True)
    if follow and follower.lost:
        click.echo("nobody holds this run: its supervisor is gone; go on with: supervise resume", err=True)


def _stdout() -> BinaryIO:
    try:
        # Python's stdout may be unbuffered: then each line would be a system call, and might be cut. So we have our own
        # buffer.
        return open(sys.stdout.fileno(), "wb", buffering=_BATCH, closefd=False)
    except (OSError, ValueError):  # there is no file behind stdout
        return sys.stdout.buffer


def _waiter(flush: Callable[[], None]) -> Callable[[float], None]:
    """The wait flushes first. It ends with BrokenPipeError as soon as stdout has no reader any more."""
    poller = select.poll()
    try:
        poller.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # there is no file behind stdout, or it cannot be polled
        poller = select.poll()

    def wait(seconds: float) -> None:
        flush()
        if any(state & select.POLLERR for _, state in poller.poll(seconds * 1000)):
            raise BrokenPipeError

    return wait
