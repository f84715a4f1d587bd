"""RUN/lanes: what each rank did beside its steps, as the looks of the supervisor have seen it.

A record has 24 bytes and is appended: one when a stretch is worth a mark, and one when it is over. The file holds at
most MOST records. When it is full, the shortest half of the stretches is dropped. It is never synced, and an error of
the disk leaves a gap and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from supervisor.core.telling.activity import Seen
from supervisor.core.telling.lanes import Lane, lane
from trainer.rundir.codes import Phase
from trainer.rundir.files.durable import append, replace_soon
from trainer.rundir.files.untrusted_files import open_file, read_file
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import Beat

MOST = 32768
_RECORD = struct.Struct("<ddihH")
_MAGIC = 0x4C4E
_LANES = {kind.value for kind in Lane}
_GENTLE = 0.1
"""How much a new step counts for the usual time of a step."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one rank, by CLOCK_MONOTONIC. `end` is infinite while it lasts, or if nobody has seen its end."""

    attempt: int
    rank: int
    kind: Lane
    begin: float
    end: float


def parts(run: RunDir) -> list[Part]:
    """All that is in the file, by their begins. Empty if there is none."""
    try:
        data = read_file(run.lanes, _RECORD.size * (MOST + 64))
    except OSError:
        return []
    found: dict[tuple[int, int, float], Part] = {}
    for begin, end, attempt, rank, what in _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size]):
        kind = what ^ _MAGIC
        if kind in _LANES and 0.0 <= begin < end and rank >= 0:
            found[attempt, rank, begin] = Part(attempt, rank, Lane(kind), begin, end)
    return sorted(found.values(), key=lambda part: part.begin)


class Lanes:
    """The file, in the supervisor that writes it."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._fd, self._count = -1, 0
        self._attempt = -1
        self._open: dict[int, Part] = {}
        self._lasted: dict[int, float] = {}
        """By rank: the newest look at which its stretch lasted."""
        self._steps: dict[int, tuple[int, float, float]] = {}
        """By rank: its step, when it was done, and the usual seconds of one."""

    def see(self, attempt: int, beats: Sequence[Beat], now: float) -> None:
        """Takes one look at the living ranks of the attempt."""
        if attempt != self._attempt:
            self._leave(self._open.keys(), now)
            self._attempt, self._steps = attempt, {}
        self._leave(self._open.keys() - {beat.rank for beat in beats}, now)
        for beat in beats:
            self._see(beat, now)

    def close(self, now: float) -> None:
        """Every stretch has an end."""
        self._leave(self._open.keys(), now)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _see(self, beat: Beat, now: float) -> None:
        step, at, usual = self._steps.get(beat.rank, (beat.step, beat.at, 0.0))
        if beat.step > step and beat.at > at:
            one = (beat.at - at) / (beat.step - step)
            usual = one if not usual else usual + _GENTLE * (min(one, 10.0 * usual) - usual)
        if beat.phase >= Phase.TRAIN:
            # What came before the first step tells nothing about a step.
            self._steps[beat.rank] = beat.step, beat.at, usual
        found = lane(Seen(beat.rank, beat.phase, beat.at, beat.doing, beat.since), now, usual)
        before = self._open.get(beat.rank)
        if before is not None and (found is None or found != (before.kind, before.begin)):
            # It ended when the rank told of something else, or made its step, since the look before.
            lasted = self._lasted[beat.rank]
            later = [time for time in (beat.at, beat.since, found[1] if found else 0.0) if lasted < time <= now]
            self._end(before, min(later, default=lasted))
            before = None
        if found is not None:
            self._lasted[beat.rank] = now
            if before is None:
                self._open[beat.rank] = part = Part(self._attempt, beat.rank, found[0], found[1], math.inf)
                self._write(part)

    def _leave(self, ranks: Iterable[int], now: float) -> None:
        for rank in list(ranks):
            self._end(self._open[rank], now)

    def _end(self, part: Part, at: float) -> None:
        del self._open[part.rank]
        self._write(Part(part.attempt, part.rank, part.kind, part.begin, max(at, part.begin + 1e-6)))

    def _write(self, part: Part) -> None:
        with contextlib.suppress(OSError, struct.error):
            if self._fd < 0 or self._count >= MOST:
                self._renew()
            append(self._fd, _packed(part))
            self._count += 1

    def _renew(self) -> None:
        """The file has whole records alone, and room. An earlier supervisor's are kept."""
        kept = parts(self._run)
        if len(kept) > MOST // 2:
            ends = sorted(part.end - part.begin for part in kept)
            kept = [part for part in kept if part.end - part.begin > ends[len(ends) // 2]]
        replace_soon(self._run.lanes, b"".join(map(_packed, kept)))
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._fd = open_file(self._run.lanes, os.O_WRONLY | os.O_APPEND)
        self._count = len(kept)


def _packed(part: Part) -> bytes:
    return _RECORD.pack(part.begin, part.end, part.attempt, part.rank, part.kind ^ _MAGIC)
