"""The beats of ranks on other nodes, as the leader's supervisor hears of them, for people. A file like that of beats;
nothing is decided by it."""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import replace

from trainer.rundir.files.untrusted_files import open_file
from trainer.rundir.layout import AttemptDir
from trainer.rundir.records import beats as b
from trainer.rundir.records.beats import Beat, create_beats, last_beats


class Mirror:
    """The file of one attempt, in the supervisor that leads.

    It is on the disk of the run's folder, and is written, not mapped: Python's lock is not held while that disk does
    not answer, so the thread that renews the leases goes on.
    """

    @classmethod
    def new(cls, folder: AttemptDir, world: int) -> Mirror:
        """The file is there, and says nothing yet. OSError if it cannot be made."""
        create_beats(folder.mirror, world)
        return cls(open_file(folder.mirror, os.O_RDWR))

    def __init__(self, fd: int) -> None:
        """Writes the file `fd`, which is ours from here on."""
        self._fd = fd
        self._words = array("q", os.pread(fd, os.fstat(fd).st_size, 0))

    def put(self, beats: Iterable[Beat], offset: float) -> None:
        """The file says `beats`. Their clock minus ours is `offset` seconds. OSError if it cannot be written."""
        known = [beat for beat in beats if 0 <= beat.rank < self._words[b._H_WORLD]]
        for beat in known:
            self._put_one(replace(beat, at=beat.at - offset, since=beat.since - offset))
        if known:
            # The ranks of a node stand together.
            first, last = min(beat.rank for beat in known) + 1, max(beat.rank for beat in known) + 1
            os.pwrite(self._fd, self._words[first * b._WORDS : (last + 1) * b._WORDS], first * b._RECORD)

    def close(self) -> None:
        os.close(self._fd)

    def _put_one(self, beat: Beat) -> None:
        base = (beat.rank + 1) * b._WORDS
        values = {
            b._STEP: beat.step,
            b._PHASE: beat.phase,
            b._NS: int(beat.at * 1e9),
            b._SOURCE: beat.source,
            b._SAVES: beat.saves,
            b._LOWEST: beat.first_step,
            b._OWN: int(beat.own * 1e9),
            b._ROLE: beat.role,
            b._TOTAL: beat.total or 0,
            b._TOLD: 0 if beat.loss_step is None else beat.loss_step + 1,
            b._DOING: beat.doing,
            b._SINCE: int(beat.since * 1e9),
            b._LOSS: _word(beat.loss),
            b._LR: _word(beat.lr),
            b._PID: beat.pid,
        }
        for word, value in values.items():
            self._words[base + word] = value


def _word(value: float | None) -> int:
    word: int = struct.unpack("q", struct.pack("d", value or 0.0))[0]
    return word


def all_beats(folder: AttemptDir) -> list[Beat]:
    """The beats of an attempt's ranks on all nodes, in order of rank, as of now. Pids are those of their nodes."""
    return sorted([*last_beats(folder.beats), *last_beats(folder.mirror)], key=lambda beat: beat.rank)
