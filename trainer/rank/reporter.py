"""Reports of a supervised rank to the supervisor: beats, notes, its last exception. It also fires the rank's faults."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import NotFinite
from ..rundir.codes import Doing, Phase
from ..rundir.environment import STACKS_SIGNAL, Supervised
from ..rundir.files.codec import encode
from ..rundir.files.durable import replace_file
from ..rundir.layout import SCRIPT
from ..rundir.records import faults
from ..rundir.records.beats import UNPLACED, BeatWriter, Source
from ..rundir.records.errors import ErrorRecord
from ..rundir.records.notes import NoteWriter
from ..rundir.records.told import told
from ..rundir.secrets import Redactor
from . import parking, program
from .exceptions import causes, described, is_ours, unread
from .faults import inflict
from .hooks.bars import BARS
from .journal.journal import Begun, Journal
from .journal.kept import keep_all
from .journal.missed import Missed
from .journal.went_on import Known, went_on_from
from .preload import script_variables
from .preload.modules import remember
from .progress import Position, Progress

_PR_SET_PTRACER = 0x59616D61
_FRAMES = 5
_ROOM = 4096
"""Bytes of disk that are reserved for the record of an exception."""
_LEARNED_BY = (1, 10)
"""Steps after which a script has imported the modules that it trains with: nearly all, and all."""
_STAY = 20.0
"""Seconds that a rank stays in a phase for a fault that the supervisor fires in it, which is late on a busy machine."""


class Reporter(Progress):
    """The Progress of a rank under a supervisor."""

    def __init__(self, place: Supervised, rank: int, beats: BeatWriter | None = None) -> None:
        super().__init__()
        self.place = place
        self.rank = rank
        self.note = NoteWriter(place.attempt.notes(rank))
        self._beats = beats or BeatWriter(place.attempt.beats, rank, os.getpid())
        self._done = 0
        self._announced = self._counts = False
        self._resumed = False
        """Whether a Checkpointer has said from which step this rank resumes."""
        self._placed = True
        """Whether `_done` counts steps of the run. Otherwise it counts from the start of this process."""
        self._ahead = 0
        """Steps that were done before those that the optimizer hook counts."""
        # Another process may have saved as this rank before.
        first = 0 if beats is None else os.getpid() << 20
        self.journal = Journal(place, rank, lambda: (self._done if self._placed else -1, self._steps_here), first)
        self._began: int | None = None
        """The step from which it has begun to train, if that is known."""
        self._missed = (
            Missed(own.saved, place.attempt.loaded) if (own := told(os.environ)).guard and own.saved else None
        )
        self._guessed = False
        """Whether steps are backward passes, because there is no torch optimizer."""
        self.on_first_step: Callable[[], object] = lambda: None
        self._asked = -1
        self._steps_here = 0
        self._stepping = False
        """Whether its first step has begun and has not ended."""
        self._left_backward = 0
        self._pending: list[faults.Fault] = []
        self._redactor = Redactor(os.environ)
        # The file is removed with the attempt's other unfinished files. No other file can have its name.
        self._room = place.attempt.error(rank).with_name(f".room.rank{rank}.tmp-{os.getpid()}-0")
        _keep_room(self._room)
        self.note.keep_room()
        _allow_stacks(place, rank)
        self._fire(Phase.STARTUP)

    @property
    def displaced(self) -> bool:
        """Whether the rank is now a process that this one has started."""
        return not self._beats.mine

    def grouped(self) -> None:
        """Reports that this rank has joined a process group, or is about to."""
        self._beats.grouped()

    def step(self, done: int, optimizer: Any = None) -> None:
        self._announced = True
        self._stepped(done, Source.LOOP, optimizer)

    def counted(self, done: int, optimizer: Any = None) -> None:
        # As a rule the optimizer's hook has counted the same.
        if done != self._done or not self._steps_here:
            self._ahead += done - self._done
            self._stepped(done, Source.HOOK, optimizer)

    def hooked(self, count: int, restored: int | None, optimizer: Any) -> None:
        """Counts the `count`-th step here of an optimizer. Its restored state counts `restored` steps (None: it does
        not count). `optimizer` None: a backward pass has ended, and there is no torch optimizer. The step counts unless
        the loop reports its steps itself."""
        if self._announced:
            return
        if not self._steps_here and not self._resumed:
            self._place_here(restored, settled=True)
        if not self._steps_here or (optimizer is None) != self._guessed:
            # An optimizer without a count of its own starts at step one after every restore.
            self._ahead = self._done - (count - 1)
        self._guessed = optimizer is None
        self._stepped(count + self._ahead, Source.HOOK, optimizer)

    def told(self, total: int | None = None, loss: float | None = None, step: int | None = None) -> None:
        if total is not None and total > 0:
            self._counts = True
            self._beats.total(total)
        if loss is not None:
            self._beats.loss(loss, self._done if step is None else step)

    def now(self, doing: Doing) -> None:
        self._beats.doing(Doing.STEPPING if doing is Doing.NONE and self._stepping else doing)

    def _place_here(self, restored: int | None, settled: bool = False) -> None:
        """Tells all ranks from which step this rank resumes, as far as it is known by now. The note is written only
        once that is `settled`."""
        journal, others = self.journal, self._beats.others()
        steps = [saved.step for saved in journal.loaded]
        strange = journal.strange or UNPLACED in others
        first = self.place.attempt_number == 0
        step = went_on_from(Known(steps, restored, others, strange, first))
        self._placed, self._done = step is not None, step or 0
        self._beats.resume_at(step)
        self._began = step if settled else None
        if settled and journal.loaded:
            newest = max(journal.loaded, key=lambda saved: saved.step)
            about = {"path": newest.path, "saved_step": newest.step, "mono": journal.loaded_mono}
            self.note("resumed", step=-1 if step is None else step, source="script", **about)
        elif settled and step == 0 and (known := told(os.environ)).saved:
            kept = keep_all(known.saved, known.others, known.step)
            self.note("started_over", path=known.saved, step=known.step, kept=str(kept or ""))

    def _stepped(self, done: int, source: Source, optimizer: Any) -> None:
        self._done = done
        self._beats.step(done, source)
        if optimizer is not None and type(lr := _rate(optimizer)) is float:
            self._beats.rate(lr)
        self._steps_here += 1
        if not self._counts and (total := BARS.total(done)) is not None:
            self._beats.total(total)
        self.note.retry()
        self.journal.retry()
        if self._steps_here == 1:
            self._stepping = False
            self.on_first_step()
            if self.rank == 0:
                program.leave(self.place.attempt.program)
        parking.learn(self._steps_here)
        if self._steps_here in _LEARNED_BY and self.rank == 0:
            script_variables.remember(self.place.run.variables)
            remember(self.place.run.modules)
        self._fire(None, optimizer)

    def hooked_backward(self, entered: bool) -> None:
        """A backward pass has begun, or has ended. Between two of them a rank works alone."""
        now = time.monotonic_ns()
        if entered and not self._steps_here and not self._stepping:
            self._stepping = True
            self._beats.doing(Doing.STEPPING)
        if not entered:
            self._left_backward = now
        elif self._left_backward:
            self._beats.worked(now - self._left_backward)

    def save_begun(self, path: str | None, by: str, about: Mapping[str, Any]) -> Begun:
        """The script saves by itself: to `path`, or to no file (None)."""
        known = self._resumed or self.journal.loaded or self.journal.strange or (self._steps_here and self._began != 0)
        if path is not None and self._missed is not None and not known:
            self._missed.guard(path, bool(self._steps_here), self._beats.others(), self.failed)
        for each in self.before_saves:
            each()
        self.now(Doing.SAVING)
        return self.journal.begin(path, by, {**about, "training": self.training} if self.training else about)

    def torn(self, path: str, why: str, begun: Begun | None) -> None:
        """Warns once that the file at `path` is written over, and a kill would tear it."""
        if self.journal.torn(begun):
            text = f"{path} is written over in place: {why}. A kill during such a save tears the file"
            self.note("warning", text=text)

    def save_ended(self, begun: Begun, error: BaseException | None) -> None:
        self.journal.end(begun, error)
        self.now(Doing.NONE)
        if error is None:
            self._beats.saved()

    def loaded(self, path: str, error: BaseException | None) -> None:
        """The script has loaded `path` by itself. Once it trains, a load says nothing about its step."""
        if self._steps_here and self._missed is not None and error is None:
            self._missed.loaded(path)
        if not self._steps_here and self.journal.load(path, error) and not self._resumed:
            self._place_here(None)

    def phase(self, phase: Phase) -> None:
        self._beats.phase(phase)
        self._fire(phase)

    def failed(self, error: BaseException, exit_code: int) -> None:
        trace = traceback.TracebackException.from_exception(error)
        if not self._steps_here and self.rank == 0:
            program.leave(self.place.attempt.program)
        frames = _without_our_frames(trace)
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        record = ErrorRecord(
            **msgspec.structs.asdict(described(error)),
            rank=SCRIPT if self.displaced else self.rank,
            because=tuple(described(each) for each in causes(error)),
            frame=places[-1] if places else "",
            frames=tuple(places[-_FRAMES:]),
            traceback="".join(trace.format())[-20_000:],
            exit_code=exit_code,
            file=unread(error),
            bad_step=error.step if isinstance(error, NotFinite) else -1,
            data_step=self.data_step,
            mono=time.monotonic(),
            time=time.time(),
        )
        with contextlib.suppress(OSError):
            self._record(record)

    def _record(self, record: ErrorRecord) -> None:
        """Writes `record` to disk. If the disk is full, it uses the reserved room, with the end of the traceback
        only."""
        path = self.place.attempt.error(record.rank)
        try:
            replace_file(path, self._encoded(record))
        except OSError:
            short = {"message": record.message[:200], "traceback": record.traceback[-500:], "because": ()}
            data = self._encoded(msgspec.structs.replace(record, **short))
            fd = os.open(self._room, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(fd, os.pwrite(fd, data, 0))
            finally:
                os.close(fd)
            self._room.rename(path)

    def _encoded(self, record: ErrorRecord) -> bytes:
        return self._redactor.json(encode(record))

    def resume_at(self, step: int) -> None:
        self._done, self._resumed, self._placed = step, True, True
        self._beats.resume_at(step)

    def position(self) -> Position | None:
        if not self._steps_here and not self._resumed and not self.journal.loaded:
            return None
        return Position(self._done - self._steps_here if self._placed else None, self._done, self._steps_here)

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        self.phase(phase)
        try:
            yield
        finally:
            self._beats.phase(Phase.TRAIN)

    def _fire(self, phase: Phase | None, optimizer: Any = None) -> None:
        asked = self._beats.faults_asked()
        if asked != self._asked:
            self._asked = asked
            self._pending = [f for f in faults.armed(self.place.run.faults) if self._mine(f)]
        if not self._pending:
            return
        now = time.monotonic()
        for fault in [f for f in self._pending if f.due(self._done, now, phase)]:
            if fault.phase is None and phase is not None:
                continue
            self._pending.remove(fault)
            if fault.by_supervisor:
                self._stay(fault)
            elif faults.claim(self.place.run.faults, fault, self.rank, self.place.attempt_number, self._done):
                self.note("fault", spec=fault.text, step=self._done)
                inflict(fault, self, self.place.run.checkpoints, optimizer)

    def _stay(self, fault: faults.Fault) -> None:
        """Stays in this phase until the supervisor, which looks only now and then, has fired `fault`."""
        until = time.monotonic() + _STAY
        while time.monotonic() < until and not faults.has_fired(self.place.run.faults, fault, None):
            time.sleep(0.002)

    def _mine(self, fault: faults.Fault) -> bool:
        """Whether this rank has a part in it: it fires the fault, or stays in a phase until the supervisor has."""
        if not fault.on(self.rank) or (fault.by_supervisor and fault.phase is None):
            return False
        return not faults.has_fired(self.place.run.faults, fault, None if fault.by_supervisor else self.rank)


def _without_our_frames(trace: traceback.TracebackException) -> list[traceback.FrameSummary]:
    """The frames of `trace` that are not ours. It, and what it came from, has no others now."""
    left, seen = [trace], set[int]()
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))
            each.stack = traceback.StackSummary.from_list([f for f in each.stack if not is_ours(f.filename)])
            left += [one for one in (each.__cause__, each.__context__) if one is not None]
            left += getattr(each, "exceptions", None) or []
    return list(trace.stack)


def _rate(optimizer: Any) -> object:
    """Its learning rate. A tensor, which may be on a GPU, is left alone."""
    try:
        return optimizer.param_groups[0]["lr"]
    except (AttributeError, LookupError, TypeError):
        return None


def _keep_room(path: Path) -> None:
    """Reserves _ROOM bytes, so that `path` can be written even on a disk that has filled up since."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _ROOM)
        finally:
            os.close(fd)


def _allow_stacks(place: Supervised, rank: int) -> None:
    """Lets the supervisor get the stacks of all threads: by ptrace where Yama asks for consent, or by a signal."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, place.supervisor_pid, 0, 0, 0)
        place.attempt.stacks.mkdir(mode=0o700, exist_ok=True)
        # Kept open for the life of the process: a signal handler cannot open a file.
        file = (place.attempt.stacks / f"rank{rank}.faulthandler.txt").open("w")
        faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)
