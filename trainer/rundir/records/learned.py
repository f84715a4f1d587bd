"""The list of modules that a rank has left for the fork server, as a reader finds it."""

from __future__ import annotations

from pathlib import Path

from ..files.untrusted_files import read_json


def remembered(path: Path) -> list[str]:
    """The names that trainer.rank.preload.modules.remember() wrote to `path`; none, if it did not or that cannot be read."""
    try:
        names = read_json(path)
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
