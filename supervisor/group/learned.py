"""What a script is known to import, from this run or an earlier one of it, and what of that cannot be imported beforehand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from supervisor.run.folder.user_folders import cache
from supervisor.run.spec import Spec
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.files.untrusted_files import read_json
from trainer.rundir.layout import RunDir
from trainer.rundir.records.learned import remembered

_SUFFIX = ".left-out.json"


class Learned:
    """The modules of one run's script. What was found out is kept for its next run, in the user's cache."""

    def __init__(self, spec: Spec, run: RunDir) -> None:
        self._script = spec.command[0]
        self._list = run.modules
        what: Any = [spec.module, spec.command[0], spec.cwd, sys.prefix]
        name = hashlib.sha256(repr(what).encode()).hexdigest()[:24]
        self._folder = _folder()
        self._cached, self._cached_out = self._folder / f"{name}.json", self._folder / f"{name}{_SUFFIX}"
        self._written: int | None = None
        self.causes: dict[str, str] = {}
        """By module that cannot be imported beforehand: what its import does."""
        self.left_out: set[str] = set()
        """Those, and the modules that import them."""
        self.seconds = 0.0
        """Of CPU: what importing `left_out` takes in each restart."""
        self._recall()

    def names(self) -> list[str]:
        """What is to be imported beforehand."""
        names = remembered(self._list) or remembered(self._cached)
        return [name for name in names if name not in self.left_out]

    def has_news(self) -> bool:
        """Whether the run's list has been written since the last call."""
        try:
            written = self._list.stat().st_mtime_ns
        except OSError:
            return False
        news, self._written = written != self._written, written
        if news:
            self._keep(self._cached, self._list)
        return news

    def ask(self, path: Path) -> list[str]:
        """`path` tells a fork server what to import. Returns the names. OSError if it cannot be written."""
        names = self.names()
        body = {
            "names": names,
            "causes": self.causes,
            "left_out": sorted(self.left_out),
            "seconds": self.seconds,
        }
        path.write_text(json.dumps(body))
        return names

    def leave_out(self, found: Path) -> None:
        """A fork server has written to `found` what it has left out, which may be more than was known."""
        body = _read(found)
        if body is None or set(body["left_out"]) == self.left_out:
            return
        self._take(body)
        kept = {"script": self._script, "installed": _installed(), **body, "names": []}
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_soon(self._cached_out, json.dumps(kept).encode())

    def _take(self, body: dict[str, Any]) -> None:
        self.causes, self.left_out = dict(body["causes"]), set(body["left_out"])
        self.seconds = float(body["seconds"])

    def _recall(self) -> None:
        body = _read(self._cached_out)
        # Another version of a library may behave better.
        if body is not None and body.get("installed") == _installed():
            self._take(body)

    def _keep(self, to: Path, source: Path) -> None:
        # A cache: without it the next run of this script learns it again.
        with contextlib.suppress(OSError):
            to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_soon(to, source.read_bytes())


def _folder() -> Path:
    """Where it is kept what scripts import; for a user without a cache a folder that cannot be made."""
    return (cache() or Path(os.devnull)) / "modules"


def known() -> list[tuple[str, dict[str, str], float]]:
    """By script whose last run had to leave out something: (script, what and why, CPU seconds of it)."""
    found = []
    for path in sorted(_folder().glob(f"*{_SUFFIX}")):
        body = _read(path)
        if body is not None and body["causes"] and body.get("installed") == _installed():
            found.append((str(body.get("script")), dict(body["causes"]), float(body["seconds"])))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body = read_json(path)
        causes, left_out = body["causes"], body["left_out"]
        texts = [*causes, *causes.values(), *left_out]
        float(body["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(body) if all(isinstance(text, str) for text in texts) else None


def _installed() -> list[int]:
    """Changes when something is installed or upgraded."""
    stamps = []
    for folder in sys.path:
        if folder.endswith("-packages"):
            with contextlib.suppress(OSError):
                stamps.append(Path(folder).stat().st_mtime_ns)
    return stamps
