"""The table [notify] of supervise.toml: which messages, and where to.

    [notify]
    on = ["failed", "hang", "recovered", "finished"]
    urls = ["ntfy://my-topic", "mailtos://me:secret@example.com"]
    command = 'mail -s "$1" me@example.com'

The URLs hold secrets. So a run keeps the path of this file and reads it again, and nothing of it is written anywhere.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from supervisor.core.telling.notices import Kind
from supervisor.errors import Refusal

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Notify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sound table."""

    on: tuple[Kind, ...] = (Kind.FAILED, Kind.FINISHED)
    urls: tuple[str, ...] = ()
    """Of services, as apprise spells them (https://github.com/caronc/apprise)."""
    command: str = ""
    """For sh: $1 is the title, $2 the text, and the event is JSON on stdin."""


def notify_of(table: Any, source: Path) -> Notify:
    """The settings in `table`. Refusal if it is not sound, or if apprise is needed and missing. No text holds a URL."""
    if not isinstance(table, dict):
        raise Refusal(f"{source}: notify is a table; write [notify] and below it, say, command = 'mail …'")
    try:
        # A word in place of a list of one.
        lists = {key: [value] for key, value in table.items() if key in ("on", "urls") and isinstance(value, str)}
        found = msgspec.convert({**table, **lists}, Notify)
    except msgspec.ValidationError as error:
        words = ", ".join(kind.value for kind in Kind)
        raise Refusal(
            f"{source}: [notify] {error}; its keys are on (of {words}), urls (a list) and command (a text)"
        ) from None
    if not found.urls and not found.command:
        raise Refusal(f"{source}: [notify] says nowhere to send to; add urls or command")
    if found.urls and find_spec("apprise") is None:
        raise Refusal(f"{source}: [notify] urls need apprise: pip install 'supervise[notify]'; or use command")
    for number, url in enumerate(found.urls, 1):
        if not _known(url):
            raise Refusal(f"{source}: [notify] the {_th(number)} of urls is no address that apprise knows")
    return found


def read_notify(path: Path) -> Notify | None:
    """The settings in the file; None if it has no [notify]. Refusal as notify_of(), or if it cannot be read."""
    try:
        table = tomllib.loads(path.read_text()).get("notify")
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"{path} cannot be read ({type(error).__name__}), so no message is sent") from None
    return None if table is None else notify_of(table, path)


def _known(url: str) -> bool:
    import apprise

    return apprise.Apprise.instantiate(url, suppress_exceptions=True) is not None


def _th(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
