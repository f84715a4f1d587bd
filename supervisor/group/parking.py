"""Where the next standby waits: at its script's first line, or in Checkpointer.restore()."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from supervisor.core.standby.parking import Facts, Gpu, Place, where
from supervisor.group.group import WorkerGroup
from supervisor.group.launch import Order, release
from supervisor.process.memory import available, resident
from supervisor.run.spec import Spec
from trainer.rundir import variables as names
from trainer.rundir.files.codec import read
from trainer.rundir.layout import RunDir
from trainer.rundir.records.beats import last_beats
from trainer.rundir.records.gate import Release
from trainer.rundir.records.parking import File, Reached

_AT_RELEASE = {
    names.MARK,
    names.RESUME_STEP,
    names.RESUME_FROM,
    names.LEAVING,
    names.ROLLBACK,
    names.TOLD,
    names.FLUSH_SECONDS,
    names.MTBF_SECONDS,
}
"""Variables that nobody knows before the release."""


class Parking:
    """Chooses the place of each standby of one run, and says whether a group may be released."""

    def __init__(self, spec: Spec, run: RunDir) -> None:
        self._spec, self._run = spec, run
        self._failures: list[str] = []
        self.why = ""
        """Why the newest standby waits at the first line. Empty if it does not, or if nobody asks for more."""
        self.on_gpu = False
        """Whether the newest standby holds memory of a GPU."""
        self.crowded = ""
        """The kind of memory of which an attempt had too little while a standby held some."""

    def expected(self, attempt: int) -> Release | None:
        """The release that is expected for the group that waits while `attempt` runs. None: it waits at the first
        line."""
        facts = self._facts(attempt)
        place, self.why = where(self._spec.park, facts)
        self.on_gpu = place is Place.RESTORE and bool(facts.gpus)
        if place is Place.START:
            return None
        body = release(self._spec, self._run, Order(attempt + 1), "")
        return Release(
            body.attempt,
            {k: v for k, v in body.env.items() if k not in _AT_RELEASE},
            body.arguments,
            body.nproc,
            body.cwd,
        )

    def _facts(self, attempt: int) -> Facts:
        folder = self._run.attempt(attempt)
        told = []
        for rank in range(self._spec.nproc):
            with contextlib.suppress(OSError, ValueError):
                told.append(read(folder.reached(rank), Reached))
        return Facts(
            spawns=self._spec.spawns,
            reached=len(told) == self._spec.nproc,
            asks=any(body.park for body in told),
            steps=max((body.steps for body in told), default=0),
            failures=tuple(self._failures),
            gpus=tuple(Gpu(gpu.device, gpu.reserved, gpu.free, gpu.exclusive) for body in told for gpu in body.gpus),
            crowded=self.crowded,
            used=sum(resident(beat.pid) for beat in last_beats(folder.beats)),
            available=available(),
        )

    def lost(self, group: WorkerGroup) -> str:
        """Why `group`, which was to wait in restore(), has ended."""
        return self.failed(group.unfit() or "its launcher has ended")

    def failed(self, why: str) -> str:
        """A group could not wait in restore(). Returns that in words."""
        self._failures.append(why)
        return f"the standby cannot wait in restore(): {why}"

    def refused(self, group: WorkerGroup, release_of: Callable[[], Release]) -> str:
        """Why `group` cannot have the release that `release_of` makes; empty if it can."""
        expected = group.expected
        if expected is None:
            return ""
        body = release_of()
        if expected.attempt != body.attempt:
            # That one could not be launched: nothing that the program has done.
            return f"it was made for attempt {expected.attempt}"
        if (expected.arguments, expected.edits) != (body.arguments, body.edits):
            # Those that tell where to resume are not known before. It would be in vain each time.
            self._failures.append("the attempt has other arguments than the standby was started with")
            return self._failures[-1]
        parked = group.parked_ranks()
        known = [file for each in parked for file in each.files]
        changed = next((file[0] for file in known if _has_changed(file)), "")
        if len(parked) < group.seat.nproc:
            # It has not come that far: it reads its files at this moment.
            changed = changed or self._changed_since(group.gate.ahead, body.attempt - 1)
        return f"{changed} has changed since it was read" if changed else ""

    def _changed_since(self, began: Path, attempt: int) -> str:
        """A file of the program, as `attempt` has loaded it, that is younger than the file `began`."""
        with contextlib.suppress(OSError, ValueError):
            start = began.stat().st_mtime_ns
            for path, *_ in read(self._run.attempt(attempt).program, list[tuple[str, int, int]]):
                try:
                    known = Path(path).stat()
                    # A file that was moved here keeps the time of its content.
                    if max(known.st_mtime_ns, known.st_ctime_ns) >= start:
                        return path
                except OSError:
                    return path
        return ""


def _has_changed(file: File) -> bool:
    path, *about = file
    try:
        now = Path(path).stat()
    except OSError:
        return True
    return [now.st_size, now.st_mtime_ns, now.st_ino] != about
