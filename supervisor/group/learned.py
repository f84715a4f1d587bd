"""The known imports of a script, from this run or an earlier one. Some of them cannot be made beforehand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import msgspec

from supervisor.run.folder.user_folders import cache
from supervisor.run.spec import Spec
from trainer.rundir.files.codec import encode, read
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.layout import RunDir
from trainer.rundir.records.learned import Settings, Wanted, remembered

_SUFFIX, _VARIABLES = ".left-out.json", ".variables.json"


class Learned:
    """The modules of one run's script. The findings are kept for its next run, in the user's cache."""

    def __init__(self, spec: Spec, run: RunDir) -> None:
        self._script = spec.command[0]
        self._path = Path(spec.cwd) if spec.module else Path(spec.cwd, self._script).resolve().parent
        """The folder in which the script's imports are looked for first."""
        self._list = run.modules
        what: Any = [spec.module, spec.command[0], spec.cwd, sys.prefix]
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        self._folder = _folder()
        self._cached, self._cached_out = self._folder / f"{name}.json", self._folder / f"{name}{_SUFFIX}"
        self._variables, self._cached_variables = run.variables, self._folder / f"{name}{_VARIABLES}"
        self._written: list[int] = []
        self.settings = Settings.known(self._cached_variables)
        """The variables that the script sets, and its own modules."""
        # Another version of a library may behave better.
        self.left_out = _kept(self._cached_out) or Wanted()

    def names(self) -> list[str]:
        """The modules to import beforehand."""
        names = remembered(self._list) or remembered(self._cached)
        return [name for name in names if name not in self.left_out.left_out]

    def has_news(self) -> bool:
        """Whether the list of the run, or its variables, were written since the last call."""
        written = [_stamp(self._list), _stamp(self._variables)]
        news, self._written = bool(written[0]) and written != self._written, written
        if news:
            self._keep(self._cached, self._list.read_bytes)
            self._learn_variables()
        return news

    def _learn_variables(self) -> None:
        told = Settings.known(self._variables)
        settings = Settings([], told.of(remembered(self._list), self.settings.late), told.mine)
        if settings != self.settings:
            # What was left out because of a variable need not be any more.
            self.settings, self.left_out = settings, Wanted()
            self._keep(self._cached_variables, lambda: encode(settings))

    def ask(self, path: Path) -> list[str]:
        """`path` tells a fork server which modules to import. Returns their names. OSError if it cannot be written."""
        known, names = self.settings, self.names()
        mine = {**known.mine, **self._beside(names)}
        asked = msgspec.structs.replace(self.left_out, names=names, late=known.late, mine=mine)
        asked.write(path)
        return asked.names

    def _beside(self, names: list[str]) -> dict[str, str]:
        """Where the script's folder has modules of its own with these names, as far as they may be new: no rank has
        told of them yet."""
        folder, found = [str(self._path)], {}
        for top in {name.partition(".")[0] for name in names}:
            with contextlib.suppress(ImportError, ValueError):
                if (spec := PathFinder.find_spec(top, folder)) is not None and spec.has_location and spec.origin:
                    found[top] = spec.origin
        return found

    def leave_out(self, found: Path) -> None:
        """Learns which modules a fork server has left out. The server wrote them to `found`. They may be new."""
        with contextlib.suppress(OSError, ValueError):
            told = read(found, Wanted)
            if told.left_out == self.left_out.left_out:
                return
            self.left_out = msgspec.structs.replace(
                told, names=[], late={}, mine={}, script=self._script, installed=_installed()
            )
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_soon(self._cached_out, encode(self.left_out))

    def _keep(self, to: Path, content: Callable[[], bytes]) -> None:
        # It is only a cache. Without it, the next run of this script learns the same again.
        with contextlib.suppress(OSError):
            to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_soon(to, content())


def _stamp(path: Path) -> int:
    """0 if there is no such file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _folder() -> Path:
    """The folder with the imports of scripts. If the user has no cache: a folder that cannot be made."""
    return (cache() or Path(os.devnull)) / "modules"


def known() -> list[tuple[str, dict[str, str], float]]:
    """For each script whose last run had to leave modules out: (script, modules with the reasons, their CPU
    seconds)."""
    kept = map(_kept, sorted(_folder().glob(f"*{_SUFFIX}")))
    return [(found.script, found.causes, found.seconds) for found in kept if found is not None and found.causes]


def _kept(path: Path) -> Wanted | None:
    """The findings of an earlier run in the cache, unless something was installed since."""
    try:
        found = read(path, Wanted)
    except (OSError, ValueError):
        return None
    return found if found.installed == _installed() else None


def _installed() -> list[int]:
    """A value that changes when something is installed or upgraded."""
    stamps = []
    for folder in sys.path:
        if folder.endswith("-packages"):
            with contextlib.suppress(OSError):
                stamps.append(Path(folder).stat().st_mtime_ns)
    return stamps
