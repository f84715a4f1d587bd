"""The supervisor's care for the script's own saves. A helper syncs each one when it is done. Half-written saves of an
ended attempt are moved away before the next attempt begins."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time

from supervisor.core.own_saves.saves import Save, Saves
from supervisor.process.kill import kill
from supervisor.process.proctree import Process
from supervisor.process.reaper import Reaper
from supervisor.run import own_saves, torn
from supervisor.run.events import EventLog
from supervisor.run.spec import Spec
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir
from trainer.rundir.programs import program
from trainer.rundir.variables import MARK

_LAST = 5.0
"""Seconds that the helper has for the last saves of a finished run. The kernel writes them within half a minute
anyway."""
_LONGEST = 4000
"""The most bytes of a line. Up to this size a pipe takes a line as a whole, or not at all."""
_MOST_STARTS = 3
_EVERY = 1.0


class OwnSaves:
    """The own saves of one run. Nothing here holds the loop up. An error here does not fail the run."""

    def __init__(self, run: RunDir, spec: Spec, log: EventLog, reaper: Reaper) -> None:
        self._run, self._spec, self._log, self._reaper = run, spec, log, reaper
        self._helper: subprocess.Popen[bytes] | None = None
        self._late: subprocess.Popen[bytes] | None = None
        """A helper that was killed but is not gone yet."""
        self._starts = 0
        self._told: dict[str, float] = {}
        """By path: the time of the last save that the helper was told."""
        self._newest: tuple[int, Saves] | None = None
        """The newest attempt: its number and its saves."""
        self._ended: set[int] = set()

    def tick(self, attempt: int, saves: Saves) -> None:
        """The helper is told every finished save of `attempt`. `saves` are all its known saves."""
        self._newest = attempt, saves
        self._pass_on(attempt, saves, _EVERY)

    def _pass_on(self, attempt: int, saves: Saves, every: float) -> None:
        """Each path is synced at most once in `every` seconds. A newer save of the same path waits until then."""
        now, never = time.monotonic(), float("-inf")
        told = {path: self._told.get(path, never) for path in saves.done}
        news = [save for path, save in saves.done.items() if told[path] < save.at and now >= told[path] + every]
        for save in news:
            if not self._tell(attempt, save):
                return
            self._told[save.path] = save.at

    def _tell(self, attempt: int, save: Save) -> bool:
        """Whether this save is settled. False if the pipe is full: then try again later."""
        journal = str(self._run.attempt(attempt).durable)
        line = encode({"rank": save.rank, "n": save.number, "path": save.path, "journal": journal}) + b"\n"
        if len(line) > _LONGEST or not self._start():
            return True
        assert self._helper is not None and self._helper.stdin is not None
        try:
            os.write(self._helper.stdin.fileno(), line)
        except BlockingIOError:
            return False
        except OSError:
            self._forget()
        return True

    def _start(self) -> bool:
        if self._helper is not None:
            return True
        if self._starts >= _MOST_STARTS:
            return False
        self._starts += 1
        with contextlib.suppress(OSError):
            helper = subprocess.Popen(
                [sys.executable, *program("rundir.syncer")],
                env={**os.environ, MARK: f"{self._spec.mark}.sync"},
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert helper.stdin is not None
            os.set_blocking(helper.stdin.fileno(), False)
            # The one reaper reaps it, like all others.
            helper.returncode = 0
            self._helper = helper
        return self._helper is not None

    def _forget(self) -> None:
        if self._helper is not None and self._helper.stdin is not None:
            with contextlib.suppress(OSError):
                self._helper.stdin.close()
        self._helper = None

    def pids(self) -> set[int]:
        """The pids of the helper. It does not belong to an attempt."""
        return {helper.pid for helper in (self._helper, self._late) if helper is not None}

    def close(self) -> None:
        """Call it when the run is over. Nothing of its attempts is half written, not even of an earlier supervisor's.
        The last saves are durable, if there was time for it. The helper has been told to end."""
        if self._newest is not None:
            self._pass_on(*self._newest, every=0.0)
        attempts = sorted(self._run.attempts())
        for number in set(attempts[:-1]) - self._ended:
            own_saves.sweep(own_saves.saves_of(self._run, number), self._spec.mark)
        self.over(max(attempts, default=-1))
        helper = self._helper
        self._forget()
        # If it still waits for the disk after its SIGKILL, it ends when the disk answers. Nobody has to wait for it,
        # and it holds nothing.
        self._late = helper if helper is not None and not self._gone(helper) else None

    def _gone(self, helper: subprocess.Popen[bytes]) -> bool:
        """Whether it has ended, by itself or by SIGKILL. The one reaper reaps it, like all others."""
        try:
            process = Process(helper.pid)
        except ProcessLookupError:
            return True
        with contextlib.closing(process):
            ended = bool(select.select([process.fd], [], [], _LAST)[0]) or not kill([process], within=1.0).left
        self._reaper.reap()
        return ended

    def over(self, attempt: int) -> None:
        """No process of `attempt` is alive. Its half-written saves are removed or set aside, and told."""
        if attempt < 0 or attempt in self._ended:
            return
        self._ended.add(attempt)
        number, known = self._newest or (-1, Saves())
        saves = known if number == attempt else own_saves.saves_of(self._run, attempt)
        own_saves.sweep(saves, self._spec.mark)
        for outcome in torn.clear(self._run, attempt, saves, [self._spec.cwd]):
            about = {"path": outcome.path, "moved_to": outcome.moved_to, "step": outcome.step}
            text = "an attempt ended while it was saving into this folder: "
            if outcome.moved_to:
                text += f"it is no checkpoint now (supervise ckpt restore-torn {self._run.path} would make it one)"
            else:
                text += f"it may be torn, and stays where it is, because {outcome.problem}"
            self._log.emit("checkpoint_torn", "warning", **about, text=text)
