"""Follows a run, not a file: its events and the logs of all ranks, over all its attempts, until it is over.

    poll ─┬─ first ──▶ the past: one attempt after another; in each, all lines and events by their times
          └─ later ──▶ known logs, by time ─▶ events ─▶ logs that are new ─▶ over? then everything to its end

Lines of one file keep their order. The supervisor notes how far the logs have grown, and when (log_times.py). A line of
the past whose time was never noted has that of the log's last write, a new line the time at which it is seen. The logs
of an attempt, and of a standby, are shown after it has started. Nothing here blocks or sleeps.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from supervisor.errors import Refusal
from supervisor.reading.choice import EVERYTHING, Choice
from supervisor.reading.events_file import Event, EventReader
from supervisor.reading.lines import Line, LineSplitter, RawSplitter, Splitter
from supervisor.reading.logfile import LogFollower
from supervisor.reading.past import Clocks, LogFile, Opened, log_files, open_back
from supervisor.reading.plain import decode
from supervisor.reading.wording import Restarts
from trainer.rundir.layout import RunDir

POLL = 0.15
"""Seconds between two polls."""
REST = 0.5
"""Seconds between two polls when nothing has come for a while. Each poll takes 0.6 ms from training."""
RETIRE = 2.0
"""Seconds into an attempt after which the logs of the previous attempt count as complete."""
LOOK = 1.0
"""Seconds between two looks whether a supervisor holds the run."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A line of a log. `rank` None is the launcher. `at` is the time of the line in seconds since the epoch, or None if
    it is not known."""

    attempt: int
    rank: int | None
    line: Line
    at: float | None = None


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event, and the newest attempt that was known when the event was written."""

    attempt: int
    event: Event


Record = LogRecord | EventRecord
Timed = tuple[float, Record]


class RunFollower:
    """Each poll gives the new records. `held` tells whether a supervisor lives.

    `back` is the number of past lines of each source that the first poll gives.
    """

    def __init__(
        self,
        run: RunDir,
        held: Callable[[], bool],
        choice: Choice = EVERYTHING,
        *,
        back: int | None = None,
        raw: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.restarts = Restarts()
        self.over = False
        """The run has ended, or its supervisor is gone, and all records were given."""
        self.lost = False
        """It is over because no supervisor holds it. No event tells its end."""
        self._run, self._held, self._choice, self._back = run, held, choice, back
        self._splitter: Callable[[], Splitter] = RawSplitter if raw else LineSplitter
        self._clock, self._wall = clock, wall
        self._reader = EventReader(run.events)
        self._clocks = Clocks(run)
        self._files: dict[LogFile, LogFollower] = {}
        self._begun = self._ended = self._any_event = False
        self._attempt = 0
        self._started = -1
        self._started_at: float | None = None
        self._live_from = 0
        self._looked, self._quiet, self._free = -LOOK, False, False

    @property
    def skipped(self) -> int:
        """The number of lines of events.jsonl that are not events."""
        return self._reader.skipped

    @property
    def behind(self) -> bool:
        """Whether another poll right now would give more."""
        return any(follower.behind for follower in self._files.values())

    def poll(self) -> Iterator[Record]:
        """The records since the last poll, at most about 1 MiB of each log. The first poll gives the whole past.

        Refusal if the requested attempt does not exist.
        """
        if not self._begun:
            self._begun = True
            yield from self._past()
        for record in self._poll(self._clock(), self._wall()):
            self._quiet = False
            yield record

    def finish(self) -> Iterator[Record]:
        """The last lines, which never got a newline. Then every file is closed."""
        for file in list(self._files):
            yield from self._records(file, self._files.pop(file).finish(), self._wall())

    def _past(self) -> Iterator[Record]:
        # Only the end of the events shows which attempt -1 is. Otherwise, events that are not shown need not be kept.
        counts_back = self._choice.attempt is not None and self._choice.attempt < 0
        events = deque(self._events(), maxlen=None if counts_back else self._back)
        attempts = self._attempts()
        self._choice = choice = replace(self._choice, attempt=_resolve(self._choice.attempt, attempts))
        waiting = deque((e for e in events if choice.attempt in (None, e.attempt)), maxlen=self._back)
        self._live_from = max(attempts, default=0)
        newest = self._live_from if choice.attempt is None else choice.attempt
        files = [f for attempt in attempts for f in log_files(self._run, attempt, choice)]
        files.sort(key=lambda file: (file.attempt, file.written))
        self._clocks.refresh({file.attempt for file in files})
        opened = open_back(files, self._back, newest, self._splitter, choice, self._wanted, self._clocks)
        for attempt in sorted({one.file.attempt for one in opened} | {event.attempt for event in waiting}):
            logs = [one for one in opened if one.file.attempt == attempt]
            told = _in_order((event.event.time, event) for event in waiting if event.attempt == attempt)
            streams: list[Iterator[Timed]] = [told, *map(self._lines, logs)]
            yield from (record for _, record in heapq.merge(*streams, key=lambda timed: timed[0]))
            for one in logs:
                self._files[one.file] = one.follower
                if attempt < newest:
                    yield from self._retire(one.file, None)

    def _lines(self, one: Opened) -> Iterator[Timed]:
        """The past lines of a log, with their times."""
        written, file = one.file.written, one.file
        timed = ((self._clocks.time(file, line), line) for line in one.lines)
        records = ((at, LogRecord(file.attempt, file.rank, line, at)) for at, line in timed)
        return _in_order((written if at is None else at, record) for at, record in records)

    def _poll(self, now: float, seen: float) -> Iterator[Record]:
        self._clocks.refresh({file.attempt for file in self._files})
        yield from self._read(list(self._files), now, seen)
        yield from self._events()
        yield from self._read(self._discover(), now, seen)
        if self._started_at is not None and now - self._started_at > RETIRE:
            for file in [f for f in self._files if f.attempt < self._started and not self._files[f].behind]:
                yield from self._retire(file, seen)
            self._live_from = max(self._live_from, self._started)
        if self._is_over(now):
            yield from self._read(list(self._files), now, seen)
            self.over = not self.behind

    def _events(self) -> Iterator[EventRecord]:
        for event in self._reader.read():
            self.restarts.see(event)
            self._any_event, self._quiet = True, False
            self._attempt = max(self._attempt, event.attempt)
            match event.name:
                case "run_ended":
                    self._ended = True
                case "run_started":
                    self._ended = False
                case "attempt_started":
                    self._ended = False
                    self._started = max(self._started, event.attempt)
                    self._started_at = self._clock()
            only = self._choice.attempt
            if (only is None or only < 0 or only == self._attempt) and self._choice.event(event):
                yield EventRecord(self._attempt, event)

    def _attempts(self) -> list[int]:
        """The attempts whose logs are shown: those that have started. If no event tells, all of them."""
        return [n for n in self._run.attempts() if n <= self._started or not self._any_event]

    def _discover(self) -> list[LogFile]:
        fresh = [
            file
            for attempt in self._attempts()
            if attempt >= self._live_from
            for file in log_files(self._run, attempt, self._choice)
            if file not in self._files
        ]
        for file in fresh:
            self._files[file] = LogFollower(file.path, self._splitter())
        return fresh

    def _read(self, files: list[LogFile], now: float, seen: float) -> Iterator[Record]:
        found = [record for file in files for record in self._records(file, self._files[file].poll(now), seen)]
        yield from sorted(found, key=lambda record: record.at or seen)

    def _retire(self, file: LogFile, seen: float | None) -> Iterator[Record]:
        yield from self._records(file, self._files.pop(file).finish(), seen)

    def _records(self, file: LogFile, lines: list[Line], seen: float | None) -> Iterator[LogRecord]:
        for line in lines:
            if self._wanted(file, line, seen):
                at = self._clocks.time(file, line)
                yield LogRecord(file.attempt, file.rank, line, seen if at is None else at)

    def _wanted(self, file: LogFile, line: Line, seen: float | None = None) -> bool:
        choice = self._choice
        if choice.since is not None or choice.until is not None:
            at = self._clocks.time(file, line)
            if not choice.during(seen if at is None else at):
                return False
        return choice.grep is None or choice.text(decode(line.data))

    def _is_over(self, now: float) -> bool:
        if self._choice.until is not None and self._wall() > self._choice.until:
            return True
        attempt = self._choice.attempt
        self.lost = not self._ended and self._is_free(now)
        return self._ended or self.lost or (attempt is not None and attempt < self._started)

    def _is_free(self, now: float) -> bool:
        """Whether nobody held the run at two looks, a second apart, with nothing new between them.

        One look is not enough: a supervisor may be just starting.
        """
        if now - self._looked < LOOK:
            return self.lost
        free, self._looked = not self._held(), now
        gone = free and self._free and self._quiet
        self._free, self._quiet = free, True
        return gone


def _in_order(records: Iterable[tuple[float | None, Record]]) -> Iterator[Timed]:
    """`records` of one source, with times that never go back."""
    last = 0.0
    for at, record in records:
        last = last if at is None else max(last, at)
        yield last, record


def _resolve(attempt: int | None, attempts: list[int]) -> int | None:
    if attempt is None or attempt in attempts:
        return attempt
    if attempt < 0 and -attempt <= len(attempts):
        return attempts[attempt]
    there = f"there are {attempts[0]} to {attempts[-1]}" if attempts else "none has started"
    raise Refusal(f"no attempt {attempt}; {there}")


def pump(
    follower: RunFollower, write: Callable[[Record], None], wait: Callable[[float], None], follow: bool = True
) -> None:
    """Writes every record, in order. With `follow`, it goes on until the run is over. `wait` gets seconds, or 0 if
    there is more already."""
    pause = POLL
    while True:
        pause = min(1.5 * pause, REST)
        for record in follower.poll():
            write(record)
            pause = POLL
        if follower.over or not follow:
            for record in follower.finish():
                write(record)
            return
        wait(0.0 if follower.behind else pause)
