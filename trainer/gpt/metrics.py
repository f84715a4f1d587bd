"""metrics.jsonl: one line for each finished step. After any kill no line is missing and none is there twice.

    resume at S:   lines of steps > S, and a torn last line, are cut off; then step S + 1 follows step S
    checkpoint S:  the lines up to S are synced before the commit, so a power cut cannot lose them

A line depends on the training alone, not on clocks. Two runs with the same training have the same file, byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from pathlib import Path

import msgspec

from ..rundir.files.codec import decode
from ..rundir.files.durable import DISK
from ..rundir.variables import RUN_DIR


class _Line(msgspec.Struct):
    step: int


def _step_of(line: bytes) -> int | None:
    try:
        return decode(line, _Line).step
    except ValueError:
        return None


def _end_of(data: bytes, step: int) -> int:
    """The length of `data` up to the end of its last whole line of a step <= `step`."""
    end = data.rfind(b"\n") + 1
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        found = _step_of(data[start:end])
        if found is not None and found <= step:
            return end
        end = start
    return 0


class Metrics:
    """The file at `path`, in the one process that writes it. A full disk delays lines; it neither drops nor tears
    them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # If the run's own folder was moved or removed, it is not made again.
        if str(path.parent) != os.environ.get(RUN_DIR):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._pending = b""
        self._named = False

    @property
    def pending(self) -> str:
        """Lines that the disk has not taken yet. A snapshot keeps them; otherwise a death would lose them."""
        return self._pending.decode()

    def resume_at(self, step: int, pending: str = "") -> None:
        """The file ends with the line of `step`, or else of the newest earlier step that was in it or in `pending`."""
        data = self.path.read_bytes()
        end = _end_of(data, step)
        last = _step_of(data[data.rfind(b"\n", 0, max(0, end - 1)) + 1 : end]) or 0
        lines = pending.encode().splitlines(keepends=True)
        self._pending = b"".join(line for line in lines if last < (_step_of(line) or 0) <= step)
        # One call, to the end of a line: a reader finds the whole file or the cut one.
        os.ftruncate(self._fd, end)
        os.lseek(self._fd, end, os.SEEK_SET)
        os.fsync(self._fd)
        with contextlib.suppress(OSError):
            self._flush()

    def start_over(self) -> None:
        """The file is empty. Its old content is beside it, under another name."""
        number = 1
        while (aside := self.path.with_name(f"metrics-superseded-{number}.jsonl")).exists():
            number += 1
        DISK.create(aside, [self.path.read_bytes()])
        DISK.sync_dir(aside.parent)
        self.resume_at(0)

    def write(self, **fields: int | float) -> None:
        """A line with `fields` is in the file, or will be when the disk has room. A number that is not finite is
        null."""
        finite = {name: value if math.isfinite(value) else None for name, value in fields.items()}
        self._pending += json.dumps(finite).encode() + b"\n"
        try:
            self._flush()
        except OSError:
            return  # the rest stays pending; if it still is at the next checkpoint, sync() raises

    def _flush(self) -> None:
        while self._pending:
            at = os.lseek(self._fd, 0, os.SEEK_CUR)
            written = os.write(self._fd, self._pending)
            whole = self._pending.rfind(b"\n", 0, written) + 1
            if whole < written:
                # Half a line is removed again. The whole line stays pending, because two halves could not be joined.
                os.ftruncate(self._fd, at + whole)
                os.lseek(self._fd, at + whole, os.SEEK_SET)
            self._pending = self._pending[whole:]
            if not whole:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Every written line is durable; else OSError."""
        self._flush()
        os.fsync(self._fd)
        if not self._named:
            # The first time, the folder too: a sync of the content does not promise that the file's name is durable.
            DISK.sync_dir(self.path.parent)
            self._named = True

    def close(self) -> None:
        """Like sync(). After it nothing more can be written."""
        try:
            self.sync()
        finally:
            os.close(self._fd)
