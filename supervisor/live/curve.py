"""RUN/curve: the way of a run, as (time, step, loss, learning rate) at the looks of its supervisor.

It makes curves of any script, without a line of the script's. A record has 48 bytes and is appended. The file holds at
most MOST records: when it is full, every second one is dropped, and from then on they come half as often. So it is
small however long a run is, and its reader needs no index. It is never synced: after a power cut the last part may be
missing. An error of the disk leaves a gap and nothing else.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass

from supervisor.core.telling.progress import Trained
from trainer.rundir.files.durable import append, replace_soon
from trainer.rundir.files.untrusted_files import open_file, read_file
from trainer.rundir.layout import RunDir

MOST = 4096
EVERY = 0.2
"""Seconds between two records at first: the poll interval."""
_PAUSE = 10.0
"""Seconds without another try after the disk has refused."""
_RECORD = struct.Struct("<dqdqdiI")
_MAGIC = 0x5355504352563031  # "SUPCRV01"
_KNOWN, _EDGE = 1, 2
"""Flags. KNOWN: the step is one of the run's, not only of the process's. EDGE: the first or last one of an attempt."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at an attempt. `at` is CLOCK_MONOTONIC, the time when `step` was done."""

    attempt: int
    step: int
    at: float
    loss: float | None = None
    loss_step: int | None = None
    """The step after which that loss was told. It may be older than `step`."""
    lr: float | None = None
    placed: bool = True
    """Whether `step` counts steps of the run. Else they are of this process alone."""


def samples(run: RunDir) -> list[Sample]:
    """All that is in the file, in its order. Empty if there is none, or it is of another version."""
    try:
        _, records = _read(run)
    except (OSError, ValueError):
        return []
    return [_sample(record) for record in records]


class Curve:
    """The file, in the supervisor that writes it."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._fd = -1
        self._every, self._count = EVERY, 0
        self._attempt = -1
        self._due = float("-inf")
        self._written: bytes | None = None
        """The last record in the file."""
        self._newest: bytes | None = None
        """The last one that was seen."""

    def see(self, attempt: int, trained: Trained | None) -> None:
        """Takes the present step of the attempt. It is written if one is due."""
        if trained is None:
            return
        edge = attempt != self._attempt
        if edge:
            self._end()
            self._attempt, self._due = attempt, float("-inf")
        flags = _KNOWN * (trained.start is not None) | _EDGE * edge
        loss, loss_step, lr = trained.loss, trained.loss_step, trained.lr
        self._newest = _RECORD.pack(
            trained.at,
            _int64(trained.step),
            math.nan if loss is None else loss,
            -1 if loss_step is None else _int64(loss_step),
            math.nan if lr is None else lr,
            attempt,
            flags,
        )
        if trained.at >= self._due:
            # The looks come a little early or late.
            self._due = trained.at + 0.9 * self._every
            self._write(self._newest)

    def close(self) -> None:
        """The last step of the attempt is in the file."""
        self._end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _end(self) -> None:
        """The newest record is in the file, as the last one of its attempt."""
        newest, self._newest = self._newest, None
        if newest is not None and newest != self._written:
            *values, flags = _RECORD.unpack(newest)
            self._write(_RECORD.pack(*values, flags | _EDGE))

    def _write(self, record: bytes) -> None:
        try:
            if self._fd < 0:
                self._open()
            if self._count >= MOST:
                self._thin()
            append(self._fd, record)
        except OSError:
            self._due += _PAUSE
            return
        self._count += 1
        self._written = record

    def _open(self) -> None:
        """The file of an earlier supervisor is continued. One that cannot be read, or is torn, begins anew or is cut to
        whole records."""
        try:
            self._every, records = _read(self._run)
        except (FileNotFoundError, ValueError):
            records = []
        self._replace(records)

    def _thin(self) -> None:
        try:
            _, records = _read(self._run)
        except ValueError:
            records = []
        self._every *= 2
        kept = [record for n, record in enumerate(records) if n % 2 == 0 or _RECORD.unpack(record)[-1] & _EDGE]
        # A run of very many attempts is all edges.
        self._replace(kept if len(kept) < MOST * 3 // 4 else records[::2])

    def _replace(self, records: list[bytes]) -> None:
        head = _RECORD.pack(self._every, _MAGIC, 0.0, 0, 0.0, 0, 0)
        replace_soon(self._run.curve, b"".join([head, *records]))
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._fd = open_file(self._run.curve, os.O_WRONLY | os.O_APPEND)
        self._count = len(records)


def _read(run: RunDir) -> tuple[float, list[bytes]]:
    """(seconds between records, the records). ValueError if it is no such file."""
    data = read_file(run.curve, _RECORD.size * (MOST + 64))
    size = _RECORD.size
    every, magic = _RECORD.unpack_from(data)[:2] if len(data) >= size else (0.0, 0)
    if magic != _MAGIC or not EVERY <= every < 1e9:
        raise ValueError(f"{run.curve} is not a curve of this version")
    return every, [data[at : at + size] for at in range(size, len(data) - size + 1, size)]


def _sample(record: bytes) -> Sample:
    at, step, loss, loss_step, lr, attempt, flags = _RECORD.unpack(record)
    told = loss if math.isfinite(loss) else None
    return Sample(
        attempt=attempt,
        step=step,
        at=at,
        loss=told,
        loss_step=loss_step if told is not None and loss_step >= 0 else None,
        lr=lr if math.isfinite(lr) else None,
        placed=bool(flags & _KNOWN),
    )


def _int64(value: int) -> int:
    return max(-(1 << 63), min(value, (1 << 63) - 1))
