"""Fork servers that stay (--keep-warm), and who takes them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.group import kept
from supervisor.run.spec import Spec
from tests.support.waiting import until
from trainer.rundir.programs import program


@contextmanager
def stays(spec: Spec, env: dict[str, str], seconds: float = 600.0) -> Iterator[int]:
    """A fork server, which has imported next to nothing, has stayed. At the end it is gone."""
    path = kept.place(spec)
    with subprocess.Popen(
        [sys.executable, *program("rank.engine.fork_server")],
        env=env,
        cwd=spec.cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        order = {"path": str(path), "seconds": seconds, "script": spec.command[0]}
        said, _ = process.communicate(json.dumps({"stay": order}).encode() + b"\n", timeout=60)
    answer = json.loads(said)
    assert answer["stays"], answer
    try:
        yield answer["stays"]
    finally:
        if not gone(answer["stays"]):
            os.kill(answer["stays"], signal.SIGKILL)
            until(lambda: gone(answer["stays"]))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Taker:
    """Takes a fork server as a supervisor does, and asks it."""

    def __init__(self, spec: Spec, env: dict[str, str]) -> None:
        script, log = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)
        (requests, self.stdin), (self.stdout, answers) = os.pipe(), os.pipe()
        try:
            self.process = kept.take(spec, env, [script, requests, answers, log])
        except kept.Cold:
            self.close()
            raise
        finally:
            for fd in (script, log, requests, answers):
                os.close(fd)

    def ask(self, request: dict[str, Any]) -> Any:
        os.write(self.stdin, json.dumps(request).encode() + b"\n")
        assert select.select([self.stdout], [], [], 60)[0]
        return json.loads(os.read(self.stdout, 65536))

    def close(self) -> None:
        os.close(self.stdin)
        os.close(self.stdout)


def refused(spec: Spec, env: dict[str, str]) -> str:
    with pytest.raises(kept.Cold) as cold:
        Taker(spec, env)
    return str(cold.value)
