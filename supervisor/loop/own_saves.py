"""The script's own saves, as the supervisor looks after them: each is synced by a helper once it is done, and what an
attempt has left half written is out of the way before the next one begins."""

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
"""Seconds that the helper has for the last saves of a run that is over; the kernel writes them in half a minute
anyhow."""
_LONGEST = 4000
"""Bytes of a line that goes into a pipe as a whole, or not at all."""
_MOST_STARTS = 3
_EVERY = 1.0


class OwnSaves:
    """Of one run. Nothing here holds the loop up, and nothing that fails here fails the run."""

    def __init__(self, run: RunDir, spec: Spec, log: EventLog, reaper: Reaper) -> None:
        self._run, self._spec, self._log, self._reaper = run, spec, log, reaper
        self._helper: subprocess.Popen[bytes] | None = None
        self._late: subprocess.Popen[bytes] | None = None
        """A helper that was killed, and has not gone yet."""
        self._starts = 0
        self._told: dict[str, float] = {}
        """By path, when the save was done of which the helper has been told last."""
        self._newest: tuple[int, Saves] | None = None
        """What is known of the newest attempt, with its number."""
        self._ended: set[int] = set()

    def tick(self, attempt: int, saves: Saves) -> None:
        """The helper knows of every save that `attempt` is done with; `saves` is all that is known of it."""
        self._newest = attempt, saves
        self._pass_on(attempt, saves, _EVERY)

    def _pass_on(self, attempt: int, saves: Saves, every: float) -> None:
        """A path is synced once in so many seconds: a save that replaces one which is being synced waits for that."""
        now, never = time.monotonic(), float("-inf")
        told = {path: self._told.get(path, never) for path in saves.done}
        news = [save for path, save in saves.done.items() if told[path] < save.at and now >= told[path] + every]
        for save in news:
            if not self._tell(attempt, save):
                return
            self._told[save.path] = save.at

    def _tell(self, attempt: int, save: Save) -> bool:
        """Whether it is told; later, if its pipe is full."""
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
            # Reaped with all others, in one place.
            helper.returncode = 0
            self._helper = helper
        return self._helper is not None

    def _forget(self) -> None:
        if self._helper is not None and self._helper.stdin is not None:
            with contextlib.suppress(OSError):
                self._helper.stdin.close()
        self._helper = None

    def pids(self) -> set[int]:
        """Of the helper, which is no process of an attempt."""
        return {helper.pid for helper in (self._helper, self._late) if helper is not None}

    def close(self) -> None:
        """The run is over, and so are its attempts, also those that another supervisor began. The last saves are
        durable, as far as there is time for it; the helper has been told to go."""
        if self._newest is not None:
            self._pass_on(*self._newest, every=0.0)
        attempts = sorted(self._run.attempts())
        for number in set(attempts[:-1]) - self._ended:
            own_saves.sweep(own_saves.saves_of(self._run, number), self._spec.mark)
        self.over(max(attempts, default=-1))
        helper = self._helper
        self._forget()
        # One that still waits for the disk after its SIGKILL goes when that answers. Nobody has to wait for it, and it
        # holds nothing.
        self._late = helper if helper is not None and not self._gone(helper) else None

    def _gone(self, helper: subprocess.Popen[bytes]) -> bool:
        """Whether it has ended, in its own time or by SIGKILL; reaped, as all others, by the one reaper."""
        try:
            process = Process(helper.pid)
        except ProcessLookupError:
            return True
        with contextlib.closing(process):
            ended = bool(select.select([process.fd], [], [], _LAST)[0]) or not kill([process], within=1.0).left
        self._reaper.reap()
        return ended

    def over(self, attempt: int) -> None:
        """Nothing of `attempt`, of which no process is alive, is half written: what is, is removed or set aside, and
        told."""
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
                text += f"it may be torn, and stays where it is, for {outcome.problem}"
            self._log.emit("checkpoint_torn", "warning", **about, text=text)
