"""The list of modules that a rank has left for the nursery, as a reader finds it."""

from __future__ import annotations

import json
from pathlib import Path


def remembered(path: Path) -> list[str]:
    """The names that trainer.modules.remember() wrote to `path`; none, if it did not or that cannot be read."""
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
