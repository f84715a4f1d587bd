"""The supervisor's side of the fork server, a helper process that forks worker groups. Nothing here blocks."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from msgspec import to_builtins

from supervisor.group import kept
from supervisor.group.launch import flags, shown, stdin
from supervisor.group.seat import Seat
from supervisor.process.proctree import Process
from supervisor.run.spec import Spec
from trainer.rundir.programs import program
from trainer.rundir.records.gate import Gate
from trainer.rundir.records.kept import Stay


class Fork(NamedTuple):
    """A program of ours that was ordered from a fork server. `out`: a file in memory that it prints to, open as long as
    it may still begin: it finds the file by the number of the descriptor. `pid` tells its pid: None while nobody knows,
    0 if it will not run."""

    out: IO[bytes]
    pid: Callable[[], int | None]


class ForkServer:
    """Starts the process when it is made. `ready`: it has imported everything. `unfit`: the reason why it cannot be
    used."""

    def __init__(self, spec: Spec, env: Mapping[str, str], modules: Path, log: Path) -> None:
        """OSError if it cannot be started. It first imports the modules in the file `modules`. With --keep-warm it is
        one that has stayed after an earlier run, if there is one for this run."""
        self.ready = False
        self.loading = False
        """Whether it is importing. If it was ready before, it can fork meanwhile, but without the new modules."""
        self.unfit = ""
        self.stayed = False
        """Whether it has stayed after an earlier run. Then it and its forks are not our descendants."""
        self.why_cold = ""
        """Why the one that has stayed was not taken."""
        self.found: Path | None = None
        """A file with the modules that were left out because they would harm forks. It has the format of the request's
        file."""
        self.serving: int | None = None
        """The process that forks: the started process, or a descendant of it."""
        self.stays: int | None = None
        """The process that stays after this run. 0: none does, and `why_gone` says why."""
        self.why_gone = ""
        self.born: deque[tuple[str, int]] = deque()
        """(group's folder, launcher's pid) of new groups that were not handled yet. 0: there was no room for it."""
        self._ran: dict[str, int] = {}
        """For each file that a program of ours prints to: its pid, or 0."""
        self._spec = spec
        self._buffer = b""
        self._unsent = b""
        given = stdin()
        read = os.open(os.devnull, os.O_RDONLY) if given == subprocess.DEVNULL else os.dup(given)
        with log.open("ab") as file, os.fdopen(read, "rb", buffering=0) as script:
            taken = self._taken(env, script.fileno(), file.fileno()) if spec.keep_warm else None
            self.process, self._stdin, self._stdout = taken or _started(spec, env, script.fileno(), file)
        self.stayed = taken is not None
        os.set_blocking(self._stdout.fileno(), False)
        os.set_blocking(self._stdin.fileno(), False)
        self.load(modules)

    def _taken(self, env: Mapping[str, str], script: int, log: int) -> tuple[Process, IO[bytes], IO[bytes]] | None:
        """One that has stayed, and our ends of its pipes."""
        (requests, stdin), (stdout, answers) = os.pipe(), os.pipe()
        try:
            process = kept.take(self._spec, env, [script, requests, answers, log])
        except kept.Cold as cold:
            self.why_cold = str(cold)
            os.close(stdin)
            os.close(stdout)
            return None
        finally:
            os.close(requests)
            os.close(answers)
        return process, os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0)

    @property
    def pid(self) -> int:
        return self.process.pid

    def load(self, modules: Path, gently: bool = False) -> None:
        """It will import the modules in the file `modules`. `gently`: with little CPU, beside a training."""
        self.loading = True
        self._ask({"import": str(modules), "gently": gently})

    def fork(self, gate: Gate, seat: Seat) -> None:
        """It will fork a group at `gate`, with the ranks of `seat`. The launcher's pid comes in `born`."""
        self._ask({"group": str(gate.path), "flags": flags(self._spec, gate, seat)})

    def run(self, name: str, arguments: list[str], mark: str) -> Fork:
        """It will run that program of ours in a fork."""
        # In memory: what it has to say may be that the disk is full.
        out = os.fdopen(os.memfd_create(name, os.MFD_CLOEXEC), "rb")
        path = f"/proc/{os.getpid()}/fd/{out.fileno()}"
        self._ask({"run": name, "arguments": arguments, "out": path, "mark": mark})

        def pid() -> int | None:
            self.listen()
            return self._ran.pop(path, 0 if self.unfit else None)

        return Fork(out, pid)

    def stay(self, within: float) -> None:
        """It was asked to stay after this run, and has answered, or has not for `within` seconds. The answer is in
        `stays`."""
        try:
            order = Stay(str(kept.place(self._spec)), self._spec.keep_warm, self._spec.command[0])
        except kept.Cold as cold:
            self.stays, self.why_gone = 0, str(cold)
            return
        self._ask({"stay": to_builtins(order)})
        self._wait(lambda: self.stays is not None, within)

    def imported(self, within: float) -> None:
        """It is not `loading` any more, or still is after `within` seconds."""
        self._wait(lambda: not self.loading, within)

    def fds(self) -> list[int]:
        """The descriptors that are readable when there is an answer, or when it has died."""
        return [] if self.unfit else [self._stdout.fileno(), self.process.fd]

    def listen(self) -> None:
        """All its answers so far are handled."""
        if self.unfit:
            return
        self._send()
        try:
            data = self._stdout.read()
        except OSError as error:
            self.unfit = str(error)
            return
        if data == b"":
            self.unfit = "it has died; see standby/fork_server.log"
            return
        *lines, self._buffer = (self._buffer + (data or b"")).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _wait(self, until: Callable[[], bool], within: float) -> None:
        end = time.monotonic() + within
        while not until() and not self.unfit and (left := end - time.monotonic()) > 0:
            select.select(self.fds(), [], [], left)
            self.listen()

    def close(self) -> None:
        """Its pipes are closed. So it ends by itself, if it can."""
        self.unfit = self.unfit or "it is closed"
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self.process.close()

    def _take(self, answer: dict[str, Any]) -> None:
        if "unfit" in answer:
            self.unfit = str(answer["unfit"])
        elif "ran" in answer:
            self._ran[str(answer["ran"])] = int(answer["pid"])
        elif "stays" in answer:
            self.stays, self.why_gone = int(answer["stays"]), str(answer["why"])
        elif "group" in answer:
            self.born.append((str(answer["group"]), int(answer["pid"])))
        else:
            self.ready, self.loading = True, False
            self.serving, self.found = int(answer["pid"]), Path(answer["found"])

    def _ask(self, request: dict[str, Any]) -> None:
        self._unsent += json.dumps(request).encode() + b"\n"
        self._send()

    def _send(self) -> None:
        """Requests are sent as far as the pipe takes them. The rest is sent at the next look."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            pass  # It is importing, and will read later.
        except OSError as error:
            self.unfit = f"it does not listen: {error}"


def _started(spec: Spec, env: Mapping[str, str], script: int, log: IO[bytes]) -> tuple[Process, IO[bytes], IO[bytes]]:
    """A new one, and our ends of its pipes."""
    process = subprocess.Popen(
        [sys.executable, "-u", *program("rank.engine.fork_server"), str(script), *shown(spec)],
        env=dict(env),
        cwd=spec.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        pass_fds=[script],
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    process.returncode = 0
    return Process(process.pid), process.stdin, process.stdout
