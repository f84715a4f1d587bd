"""The supervisor's end of the nursery: one helper process that forks worker groups; asked and heard without blocking."""

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

from supervisor.group.launch import flags
from supervisor.process.proctree import Process
from supervisor.run.spec import Spec
from trainer.rundir.gate import Gate
from trainer.rundir.programs import program


class Nursery:
    """Starting from the moment it is made; `ready` once it has imported everything; `unfit` says why it is of no use."""

    def __init__(self, spec: Spec, env: Mapping[str, str], modules: list[str], log: Path) -> None:
        """OSError if it cannot be started."""
        self.ready = False
        self.unfit = ""
        self.culprit = ""
        """The module whose import made it unfit, if it was one."""
        self.failed: list[str] = []
        self.born: deque[tuple[str, int]] = deque()
        """(gang's folder, launcher's pid) of forks that nobody has taken note of yet."""
        self._spec = spec
        self._buffer = b""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *program("rank.fork_server")],
                env=dict(env),
                cwd=spec.cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
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

    def load(self, modules: list[str]) -> None:
        """It will import `modules`, and is not ready until it has."""
        self.ready = False
        self._ask({"import": modules})

    def fork(self, gate: Gate) -> None:
        """It will fork a gang at `gate`; its launcher's pid comes in `born`."""
        self._ask({"gang": str(gate.path), "flags": flags(self._spec, gate)})

    def fds(self) -> list[int]:
        """Readable when there is an answer, or when it has died."""
        return [] if self.unfit else [self._stdout.fileno(), self.process.fd]

    def listen(self) -> None:
        """Its answers so far are known."""
        if self.unfit:
            return
        try:
            data = self._stdout.read()
        except OSError as error:
            self.unfit = str(error)
            return
        if data == b"":
            self.unfit = "it has died; see standby/nursery.log"
            return
        *lines, self._buffer = (self._buffer + (data or b"")).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def close(self) -> None:
        """Its pipes are closed: it goes away by itself, if it can."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._stdout.close()
        self.process.close()

    def _take(self, answer: dict[str, Any]) -> None:
        if "unfit" in answer:
            self.unfit, self.culprit = str(answer["unfit"]), str(answer.get("module", ""))
        elif "gang" in answer:
            self.born.append((str(answer["gang"]), int(answer["pid"])))
        else:
            self.ready, self.failed = True, [str(name) for name in answer["failed"]]

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
        except OSError as error:
            self.unfit = f"it does not listen: {error}"
