"""The supervisor's side of the fork server, a helper process that forks worker groups. Nothing here blocks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.group.launch import flags, shown, stdin
from supervisor.group.seat import Seat
from supervisor.process.proctree import Process
from supervisor.run.spec import Spec
from trainer.rundir.programs import program
from trainer.rundir.records.gate import Gate


class ForkServer:
    """Starts the process when it is made. `ready`: it has imported everything. `unfit`: the reason why it cannot be
    used."""

    def __init__(self, spec: Spec, env: Mapping[str, str], modules: Path, log: Path) -> None:
        """OSError if it cannot be started. It first imports the modules in the file `modules`."""
        self.ready = False
        self.loading = False
        """Whether it is importing. If it was ready before, it can fork meanwhile, but without the new modules."""
        self.unfit = ""
        self.found: Path | None = None
        """A file with the modules that were left out because they would harm forks. It has the format of the request's
        file."""
        self.serving: int | None = None
        """The process that forks: the started process, or a descendant of it."""
        self.born: deque[tuple[str, int]] = deque()
        """(group's folder, launcher's pid) of new groups that were not handled yet."""
        self._spec = spec
        self._buffer = b""
        self._unsent = b""
        given = stdin()
        read = os.open(os.devnull, os.O_RDONLY) if given == subprocess.DEVNULL else os.dup(given)
        with log.open("ab") as file, os.fdopen(read, "rb", buffering=0) as script:
            process = subprocess.Popen(
                [sys.executable, "-u", *program("rank.engine.fork_server"), str(script.fileno()), *shown(spec)],
                env=dict(env),
                cwd=spec.cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                pass_fds=[script.fileno()],
                start_new_session=True,
            )
        assert process.stdin is not None and process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        os.set_blocking(self._stdin.fileno(), False)
        self.process = Process(process.pid)
        process.returncode = 0
        self.load(modules)

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

    def close(self) -> None:
        """Its pipes are closed. So it ends by itself, if it can."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self.process.close()

    def _take(self, answer: dict[str, Any]) -> None:
        if "unfit" in answer:
            self.unfit = str(answer["unfit"])
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
