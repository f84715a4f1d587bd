"""The variables that the script sets in its environment, and which modules it imports only afterwards.

A module that reads such a variable at its import must not be imported before the script.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import os
import sys
from pathlib import Path
from typing import Any

from ...rundir.files.codec import encode
from ...rundir.files.durable import replace_file
from ...rundir.records.learned import Settings
from . import own_modules
from .modules import third_party

_OURS = b"SUPERVISE_"


class _Follower(importlib.abc.MetaPathFinder):
    """Finds no module. At each import it looks at what has been set by then."""

    def __init__(self) -> None:
        self._began = self._seen = dict(_variables())
        self._before = set(sys.modules)
        self._set: dict[str, set[str]] = {}
        """For each variable: the modules that the script had imported when it was set."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        self.look()

    def look(self) -> None:
        now = _variables()
        if now == self._seen:
            return
        self._seen = dict(now)
        own = set(self.own())
        for name in now.keys() | self._began.keys():
            if now.get(name) != self._began.get(name) and not name.startswith(_OURS):
                self._set.setdefault(os.fsdecode(name), own)

    def own(self) -> list[str]:
        return [name for name in third_party() if name not in self._before]

    def settings(self) -> Settings:
        self.look()
        if not self._set:
            return Settings(mine=own_modules.found())
        own = self.own()
        return Settings(
            own,
            {name: [each for each in own if each not in then] for name, then in self._set.items()},
            own_modules.found(),
        )


def _variables() -> dict[bytes, bytes]:
    """Those of os.environ, as it keeps them: a copy of all at each import would take too long."""
    data: dict[bytes, bytes] = vars(os.environ).get("_data", {})
    return data


_follower: _Follower | None = None


def follow() -> None:
    """Call it in a rank, before its script."""
    global _follower
    _follower = _Follower()
    sys.meta_path.insert(0, _follower)


def remember(path: Path) -> None:
    """`path` tells what the script has set so far. On a full disk only that is lost."""
    settings = _follower.settings() if _follower is not None else Settings()
    if settings != Settings.known(path):
        with contextlib.suppress(OSError):
            replace_file(path, encode(settings))
