"""events.jsonl: one flat JSON line for each event, written by the supervisor alone, through structlog.

Each line carries ts (ISO, UTC), mono (CLOCK_MONOTONIC seconds), seq (no gaps), level, run, attempt, msg (the event's
name, one of EventName) and its own fields, without the secrets of the environment. A full disk does not stop a run:
lines wait in memory until there is room again. A slow disk does not either: a thread syncs the file. On several nodes,
a leader that a later one has followed writes to a file of its own (folder/epoch.py).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partialmethod
from pathlib import Path
from typing import Any

from supervisor.core.words import EventName
from supervisor.run.folder.epoch import Epoch
from trainer.rundir.files import room
from trainer.rundir.files.codec import encode
from trainer.rundir.files.durable import DISK, Disk, append_line, mend_tail
from trainer.rundir.files.json_lines import object_of
from trainer.rundir.files.untrusted_files import open_file, tail
from trainer.rundir.layout import RunDir
from trainer.rundir.secrets import Redactor

_KEPT = 10_000
_ROOM = 32_768
"""Bytes of disk reserved for later events: the end of a run on a full disk must be known."""


class EventLog:
    """The events of one run, into its file. Only the holder of the run's lock has one."""

    def __init__(
        self,
        run: RunDir,
        run_id: str,
        environ: Mapping[str, str] = os.environ,
        disk: Disk = DISK,
        epoch: Epoch | None = None,
    ) -> None:
        self.attempt = -1
        self.epoch = epoch
        """Of the leader that writes, on several nodes."""
        self.heard: Callable[[bytes], None] | None = None
        """Is called with each line, before it is in the file. It must not wait."""
        self._redactor = Redactor(environ)
        cut = mend_tail(run.events)
        self._seq = _last_seq(run)
        self._file = _File(run.events, disk, epoch)
        self._log: Any = _Direct([self._stamp, _renamed, self._render], self._file, run_id)
        if cut:
            self.emit("warning", "warning", text=f"cut a torn last line of {cut} bytes off events.jsonl")

    @property
    def unwritten(self) -> str:
        """How many events wait for the disk, and why."""
        return self._file.unwritten

    def emit(self, event: str, level: str = "info", **fields: Any) -> None:
        """The event is in the file (not yet synced), or it waits in memory while the disk refuses it."""
        if self.epoch is not None and self.epoch.is_over():
            self.heard = None  # Nobody is told of what is not part of the run.
        getattr(self._log, level)(EventName(event).value, **fields)
        if event == EventName.FIRST_STEP and isinstance(self._log, _Direct):
            self._log = self._log.through_structlog()
        self._tell()

    def sync(self) -> None:
        """The written events will soon survive a power cut. It does not wait for the disk: that may take seconds, and a
        rank may die meanwhile."""
        self._file.sync()
        self._tell()

    def close(self) -> None:
        """The written events survive a power cut. It waits for the disk, also for a slow one."""
        self._file.flush()
        self._tell()
        self._file.close()

    def _tell(self) -> None:
        """Trouble with the file becomes an event in it, as soon as possible."""
        while self._file.troubles:
            self._log.warning(EventName.WARNING.value, text=self._file.troubles.pop(0))

    def _stamp(self, _: Any, level: str, fields: Any) -> Any:
        self._seq += 1
        ts = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = {"ts": ts, "mono": round(time.monotonic(), 6), "seq": self._seq, "level": level, "run": fields["run"]}
        return {**head, "attempt": self.attempt, **fields}

    def _render(self, _: Any, __: str, fields: Any) -> bytes:
        line = self._redactor.json(encode(fields))
        if self.heard is not None:
            self.heard(line)
        return line


def _renamed(_: Any, __: str, fields: Any) -> Any:
    """The name of the event is its `msg`."""
    fields["msg"] = fields.pop("event")
    return fields


class _Direct:
    """Calls the processors as structlog does, for the lines up to the first step.

    The import of structlog takes 50 ms of CPU, since rich and asyncio come with it. Nothing waits for the supervisor
    once the ranks train: then it is imported, and calls them.
    """

    def __init__(self, processors: list[Callable[[Any, str, Any], Any]], file: _File, run_id: str) -> None:
        self._processors, self._file, self._run_id = processors, file, run_id

    def through_structlog(self) -> Any:
        """What writes the same lines by structlog."""
        import structlog

        make = structlog.make_filtering_bound_logger(0)
        return structlog.wrap_logger(self._file, self._processors, make, run=self._run_id)

    def _write(self, level: str, event: str, **fields: Any) -> None:
        line: Any = {"run": self._run_id, **fields, "event": event}
        for processor in self._processors:
            line = processor(self, level, line)
        self._file.write(line)

    info = partialmethod(_write, "info")
    warning = partialmethod(_write, "warning")
    error = partialmethod(_write, "error")


class _File:
    """Finished lines are written to it. They are appended whole, or wait in memory until the disk takes them."""

    def __init__(self, path: Path, disk: Disk, epoch: Epoch | None) -> None:
        self.troubles: list[str] = []
        """Trouble with the disk that is not told yet. It is removed when it is told."""
        self.unwritten = ""
        self._fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._unsynced = ""
        """The error of the last sync; empty if it was good."""
        self._room = room.keep(self._fd, _ROOM)
        """The file has room up to this offset, even on a full disk."""
        self._disk, self._epoch = disk, epoch
        self._syncer = _Syncer(self._fd, path, disk)

    def write(self, line: bytes) -> None:
        self._waiting.append(line)
        while len(self._waiting) > _KEPT:
            self._waiting.popleft()
            self._dropped += 1
        self.flush()

    info = warning = error = write

    def flush(self) -> None:
        """All lines are in the file, or `unwritten`."""
        try:
            if self._waiting:
                self._unless_over()
            while self._waiting:
                append_line(self._fd, self._waiting[0])
                self._waiting.popleft()
                self._syncer.dirty = True
        except OSError as error:
            if not self.unwritten:
                text = f"events.jsonl cannot be written ({error.strerror}); events wait in memory until it can"
                self.troubles.append(text)
            self.unwritten = f"{len(self._waiting)} events could not be written: {error.strerror}"
            return
        self.unwritten = ""
        if os.fstat(self._fd).st_size > self._room - _ROOM // 2:
            self._room = room.keep(self._fd, _ROOM)
        if self._dropped:
            self.troubles.append(f"{self._dropped} events were lost: there were too many to wait in memory")
            self._dropped = 0

    def _unless_over(self) -> None:
        """Lines of a leader that a later one has followed go to a file of its own, from now on. OSError if there can be
        none."""
        if self._epoch is None or not self._epoch.is_over():
            return
        fd = open_file(self._epoch.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._syncer.close()
        # Its room is not given back: the file is another one's, and may have grown since we looked at its length.
        os.close(self._fd)
        self._fd, self._room = fd, room.keep(fd, _ROOM)
        self._syncer = _Syncer(fd, self._epoch.events, self._disk)
        self._epoch = None

    def sync(self) -> None:
        """Starts a sync of the lines that could be written."""
        self.flush()
        self._syncer.start()
        problem = self._syncer.problem
        if problem and problem != self._unsynced:
            self.troubles.append(f"events.jsonl cannot be synced ({problem}): a power cut may take the last events")
        self._unsynced = problem

    def close(self) -> None:
        self._syncer.close()
        room.give_back(self._fd)
        os.close(self._fd)


class _Syncer:
    """Runs a file's fsync in its own thread, at most one at a time."""

    def __init__(self, fd: int, path: Path, disk: Disk) -> None:
        self.dirty = False
        """Whether something was written since the last sync began."""
        self.problem = ""
        self._fd, self._path, self._disk = fd, path, disk
        self._thread: threading.Thread | None = None
        self._due = threading.Semaphore(0)
        self._busy = False
        self._named = False
        self._ended = False

    def start(self) -> None:
        """Starts a sync of the written lines. If one is running, the next call starts it."""
        if not self.dirty or self._busy:
            return
        self.dirty = False
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._serve, name="sync", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:
            self._sync()  # There is no memory for a thread. So this thread waits.
            return
        self._busy = True
        self._due.release()

    def close(self) -> None:
        if self._thread is not None:
            self._ended = True
            self._due.release()
            self._thread.join()
        # It may have been told of the end before it had begun with what was due.
        if self.dirty or self._busy:
            self._sync()

    def _serve(self) -> None:
        while self._due.acquire() and not self._ended:
            self._sync()
            self._busy = False

    def _sync(self) -> None:
        try:
            self._disk.fsync(self._fd, self._path)
            if not self._named:
                # At the first time, the folder is synced too: a sync of the content does not make the file's name
                # durable.
                self._disk.sync_dir(self._path.parent)
                self._named = True
            self.problem = ""
        except OSError as error:
            self.problem = error.strerror or str(error)


def _last_seq(run: RunDir) -> int:
    for line in reversed(tail(run.events, 65536).splitlines()):
        body = object_of(line)
        if body is not None and type(seq := body.get("seq")) is int:
            return seq
    return 0
