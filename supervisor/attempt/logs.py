"""The growth of an attempt's logs: when each grew is noted in its folder, for `tail`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from supervisor.reading.log_times import LAUNCHER, TimesWriter
from trainer.rundir.layout import AttemptDir


class Logs:
    """The logs of one attempt."""

    def __init__(self, folder: AttemptDir) -> None:
        self.grew_at = 0.0
        """The time of the look at which the log of a rank had grown last."""
        self._folder, self._times = folder, TimesWriter(folder.times)
        self._bytes = 0

    def look(self, ranks: Iterable[int], now: float) -> None:
        """Measures the logs of these ranks, and the launcher's."""
        paths = {LAUNCHER: self._folder.launcher_log, **{rank: self._folder.rank_log(rank) for rank in ranks}}
        sizes = {}
        for rank, path in paths.items():
            with contextlib.suppress(OSError):
                sizes[rank] = path.stat().st_size
        self._times.note(sizes, now)
        grown = sum(size for rank, size in sizes.items() if rank != LAUNCHER)
        if grown != self._bytes:
            self._bytes, self.grew_at = grown, now

    def close(self) -> None:
        self._times.close()
