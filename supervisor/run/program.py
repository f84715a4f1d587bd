"""The files of a script's program, as an attempt loaded them: RUN/program.json."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from supervisor.core.program import Change, Source, changes
from supervisor.run.spec import Spec
from trainer.rundir.files.codec import encode, read
from trainer.rundir.files.durable import replace_soon
from trainer.rundir.files.untrusted_files import read_file
from trainer.rundir.layout import RunDir

_LARGEST = 4 << 20
"""The largest source file, in bytes. A larger file is data."""
_MOST = 500


class Program:
    """The program of one run. The knowledge outlives the supervisor. A file that cannot be read is not known."""

    def __init__(self, run: RunDir, spec: Spec) -> None:
        self._run = run
        self._known = _kept(run.program)
        self._heard: Path | None = None
        self._script = None if spec.module else os.path.join(spec.cwd, spec.command[0])  # noqa: PTH118 (as it is named)

    def launched(self) -> tuple[Change, ...]:
        """The files that have changed since the last attempt loaded them. From now on, the new content is the known
        one."""
        now = {path: _looked(path, was) for path, was in self._known.items()}
        found = changes(self._known, now)
        self._known = {path: source for path, source in now.items() if source is not None}
        if self._script is not None and self._script not in self._known:
            self._add(self._script)
        self._keep()
        return found

    def hear(self, told: Path) -> None:
        """Learns the files that the attempt's rank 0 has loaded, as soon as the rank has told them."""
        if told == self._heard:
            return
        try:
            files = read(told, list[tuple[str, int, int]])
        except (OSError, ValueError):
            return
        self._heard = told
        for path, *about in files[:_MOST]:
            known = self._known.get(path)
            if known is None or [known.bytes, known.changed_ns] != about:
                self._add(path, about)
        self._keep()

    def _add(self, path: str, about: list[int] | None = None) -> None:
        source = _looked(path)
        # If a file changed after it was loaded, nobody can know the loaded content any more.
        if source is not None and about in (None, [source.bytes, source.changed_ns]):
            self._known[path] = source

    def _keep(self) -> None:
        with contextlib.suppress(OSError):
            replace_soon(self._run.program, encode(self._known))


def _kept(path: Path) -> dict[str, Source]:
    try:
        return read(path, dict[str, Source])
    except (OSError, ValueError):
        return {}


def _looked(path: str, was: Source | None = None) -> Source | None:
    """The file as it is now. It is not read again if its size and time are those of `was`."""
    try:
        found = Path(path).stat()
        if was is not None and (was.bytes, was.changed_ns) == (found.st_size, found.st_mtime_ns):
            return was
        data = read_file(Path(path).resolve(), _LARGEST)
    except (OSError, ValueError):
        return None
    return Source(found.st_size, found.st_mtime_ns, hashlib.sha256(data).hexdigest())
