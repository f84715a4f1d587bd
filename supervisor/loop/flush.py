"""The flush process: it makes durable checkpoints of snapshots, one at a time, beside the training and after its death."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from supervisor.loop.narrator import Chronicle
from supervisor.process import proctree
from supervisor.process.proctree import Process
from supervisor.run.checkpoints import flush_command
from trainer.checkpoint.memory import snapshots
from trainer.rundir import environment as names
from trainer.rundir.layout import RunDir
from trainer.rundir.shm import segment_of

_KEEP = 3
_PATIENCE = 120.0
"""Seconds for the last flush of a run that is over."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`step` None means the newest snapshot there is, if it is newer than what is on disk."""

    step: int | None
    keep: int


class Flusher:
    """Does what is wanted, one after another, and has it told. A later wish replaces one that has not begun."""

    def __init__(self, run: RunDir, mark: str, chronicle: Chronicle) -> None:
        self._run, self._mark, self._chronicle = run, mark, chronicle
        self.segment = segment_of(mark)
        self._wanted: Wanted | None = None
        self._keep = _KEEP
        self._done = -1
        """The newest step that a flush has made durable."""
        self._after_crash = False
        self.process: Process | None = None
        """The one flush under way."""
        self._began = 0.0
        self.took: float | None = None
        """Seconds of the newest flush that made a checkpoint, its process and all."""
        self._stdout: Any = None
        self._inherited: list[Process] = []
        """Flushes of a supervisor that died. They end by themselves, and what they have made is found on the disk."""
        self._training = False

    def inherit(self, training: bool) -> None:
        """What the flush of a dead supervisor reads stays as it is until that is over. `training`: the attempt lives on."""
        self._training = training
        if (due := self._chronicle.flush_due) is not None:
            # The dead one may have begun it, or even ended it; a pin tells.
            self._chronicle.flush_due = None
            self._keep = due[1] or self._keep
        for process in proctree.marked(f"{self._mark}.flush"):
            with contextlib.suppress(ProcessLookupError):
                self._inherited.append(Process(process.pid))
        if not self._inherited:
            self._take_pins()

    def _take_pins(self) -> None:
        """Nothing that a dead flush has pinned stays so; what was to be flushed, is."""
        if self._training and snapshots.any_pinned(snapshots.boards(self.segment).values()):
            self._wanted = self._wanted or Wanted(None, self._keep)
        else:
            snapshots.clear_pins(self.segment)

    def attempt_died(self) -> None:
        """What the dead attempt left in memory will be made durable, once its successor has made its first step: until
        then it needs the machine for itself."""
        self._after_crash = True

    def newest(self) -> int:
        """The newest snapshot that all ranks have, or -1."""
        step = snapshots.newest_snapshot(self.segment)
        return -1 if step is None else step

    def tick(self, ended: set[int], stepped: bool) -> None:
        """A flush that has ended is told of; the next one is under way. `stepped`: the attempt has made its first step."""
        if (due := self._chronicle.flush_due) is not None:
            self._chronicle.flush_due = None
            self._keep = due[1] or self._keep
            self._wanted = Wanted(due[0], self._keep)
        if self._after_crash and stepped:
            self._after_crash = False
            self._wanted = self._wanted or Wanted(None, self._keep)
        self._go_on(ended)

    def _go_on(self, ended: set[int]) -> None:
        if self.process is not None and self.process.fd in ended:
            outcome = self._outcome()
            if "error" not in outcome:
                self._done = max(self._done, int(outcome["step"]))
            if "seconds" in outcome:
                self.took = time.monotonic() - self._began
            self._chronicle.flushed(outcome)
        for inherited in [process for process in self._inherited if process.fd in ended]:
            inherited.close()
            self._inherited.remove(inherited)
            # Nobody hears what it says; what it has made is on the disk.
            self._chronicle.scan(time.monotonic(), final=True)
            if not self._inherited:
                self._take_pins()
        if self.process is not None or self._inherited or self._wanted is None:
            return
        wanted, self._wanted = self._wanted, None
        step = self.newest() if wanted.step is None else wanted.step
        if step > self._done:
            self._start(wanted)
        else:
            snapshots.clear_pins(self.segment)

    def abandon(self) -> None:
        """Nothing is being flushed, and nothing is wanted: what is in memory may be what the run goes back from."""
        self._wanted, self._done, self._chronicle.flush_due = None, -1, None
        for process in self._all():
            process.send(signal.SIGKILL)
            poll = select.poll()
            poll.register(process.fd, select.POLLIN)
            poll.poll(1000)
        while self._inherited:
            self._inherited.pop().close()
            snapshots.clear_pins(self.segment)
        if self.process is not None:
            self._outcome()

    def fds(self) -> list[int]:
        """Readable when a flush has ended."""
        return [process.fd for process in self._all()]

    def pids(self) -> set[int]:
        return {process.pid for process in self._all()}

    def _all(self) -> list[Process]:
        return self._inherited + ([self.process] if self.process is not None else [])

    def finish(self) -> None:
        """What is newer in memory than on disk is durable, and gone from memory. What the disk refused stays in memory."""
        self._wanted = Wanted(None, self._keep) if self.newest() > self._chronicle.checkpoint else None
        until = time.monotonic() + _PATIENCE
        ended: set[int] = set()
        while True:
            self._go_on(ended)
            if not self.fds() or time.monotonic() > until:
                break
            poll = select.poll()
            for fd in self.fds():
                poll.register(fd, select.POLLIN)
            ended = {fd for fd, _ in poll.poll(100)}
        if (step := self.newest()) > self._chronicle.checkpoint:
            self._chronicle.only_in_memory(step, self.segment)
        else:
            snapshots.remove(self.segment)

    def _start(self, wanted: Wanted) -> None:
        step = "newest" if wanted.step is None else str(wanted.step)
        self._began = time.monotonic()
        try:
            process = subprocess.Popen(
                flush_command(self.segment, self._run, step, wanted.keep),
                env={**os.environ, names.MARK: f"{self._mark}.flush"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            snapshots.clear_pins(self.segment)
            return
        self._stdout = process.stdout
        self.process = Process(process.pid)
        process.returncode = 0

    def _outcome(self) -> dict[str, Any]:
        assert self.process is not None
        text = self._stdout.read().decode(errors="replace").strip()
        self._stdout.close()
        self.process.close()
        self.process = None
        with contextlib.suppress(ValueError, IndexError):
            outcome = json.loads(text.splitlines()[-1])
            if isinstance(outcome, dict) and ("error" in outcome or type(outcome.get("step")) is int):
                return outcome
        # Killed, perhaps: what it kept from being written over is free again.
        snapshots.clear_pins(self.segment)
        return {"step": None, "error": f"the flush process died: {text[-500:] or 'without a word'}"}
