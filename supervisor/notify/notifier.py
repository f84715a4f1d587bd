"""Sends the messages of a run. Nothing waits for a message but the very end of the run, and that not for long."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.telling.notices import Notice, Notices
from supervisor.errors import Refusal
from supervisor.notify.sender import DONE
from supervisor.notify.settings import Notify, read_notify
from supervisor.run.events import EventLog
from trainer.rundir.files.codec import encode
from trainer.rundir.files.json_lines import object_of

_SENDER = Path(__file__).with_name("sender.py")
_ENDED = "its sender was ended before it was done"
_PATIENT_S = 20.0
"""For the last messages: a container may end with the run, and the sender with it."""


@dataclass(eq=False)
class _Sending:
    kind: str
    pid: int
    out: int
    said: bytes = b""

    @property
    def alive(self) -> bool:
        """Whether its process is there. Nobody else writes into `out`, which is at its end when the process is."""
        poll = select.poll()
        poll.register(self.out, 0)
        return not poll.poll(0)

    @property
    def problem(self) -> str:
        """Why it is not sent, as far as the sender, which has ended, has told. Empty if it is sent."""
        *failed, last = self.said.decode(errors="replace").split("\n")
        # A sender that was killed, by its alarm too, has not come to its last line.
        return "; ".join(failed) if last == DONE else _ENDED


class Notifier:
    """Hears each line of the events, and sends what the person wants to be told."""

    def __init__(self, file: str, run_id: str, log: EventLog) -> None:
        """`file` has the table [notify]. If it is gone or not sound any more, a warning says so and none is sent."""
        self._log = log
        self._under_way: list[_Sending] = []
        self._settings = Notify()
        try:
            self._settings = (read_notify(Path(file)) if file else None) or self._settings
        except Refusal as refusal:
            log.emit("warning", "warning", text=str(refusal))
        wanted = self._settings.on if self._settings.urls or self._settings.command else ()
        self._notices = Notices(wanted, f"supervise status {run_id}")
        if wanted:
            log.heard = self._hear

    def pids(self) -> set[int]:
        """The senders under way. They belong to no attempt: what they have to say may be that it failed."""
        return {sending.pid for sending in self._under_way if sending.alive}

    def close(self) -> None:
        """Every message is sent, or a warning says that it is not. A sender that hangs ends by its own alarm."""
        self._log.heard = None
        until = time.monotonic() + _PATIENT_S
        while self._under_way and (left := until - time.monotonic()) > 0:
            select.select([sending.out for sending in self._under_way], [], [], left)
            self._collect()
        for sending in self._under_way:
            os.close(sending.out)
            self._failed(sending.kind, f"it took longer than {_PATIENT_S:.0f} s")
        self._under_way.clear()

    def _hear(self, line: bytes) -> None:
        event = object_of(line)
        if event is None:
            return
        self._collect()
        if notice := self._notices.of(event):
            try:
                self._send(notice, line)
            except OSError as error:
                self._failed(notice.kind, str(error))

    def _send(self, notice: Notice, line: bytes) -> None:
        child = subprocess.Popen(
            [sys.executable, str(_SENDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert child.stdin is not None and child.stdout is not None
        out = os.dup(child.stdout.fileno())
        os.set_blocking(out, False)
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError), child.stdin:
            body = [self._settings.urls, self._settings.command, notice.title, notice.body, line.decode()]
            child.stdin.write(encode(body))
        # The one reaper of the run reaps it, like all others.
        child.returncode = 0
        self._under_way.append(_Sending(notice.kind, child.pid, out))

    def _collect(self) -> None:
        """Those that have ended are told if they failed."""
        ended = []
        for sending in list(self._under_way):
            with contextlib.suppress(BlockingIOError):
                while part := os.read(sending.out, 4096):
                    sending.said += part
                self._under_way.remove(sending)
                os.close(sending.out)
                ended.append(sending)
        # Only now: what is told is heard here, and collects again.
        for sending in ended:
            if sending.problem:
                self._failed(sending.kind, sending.problem)

    def _failed(self, kind: str, why: str) -> None:
        self._log.emit("warning", "warning", text=f"the message '{kind}' was not sent: {why}"[:500])
