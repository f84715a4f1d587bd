"""Real runs for tests: `supervise launch` as a process, what it left, and proof that nothing of it lives."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from supervisor.process.proctree import marked
from supervisor.reading.events_file import read_events
from tests.support.launched import Launched, environment, warm_for
from tests.support.waiting import TIME_LIMIT, until
from trainer.rundir.layout import RunDir
from trainer.rundir.machine.cgroup import groups_of
from trainer.rundir.machine.shm import remove, segment_of

ROOT = Path(__file__).resolve().parents[2]
SUPERVISE = str(Path(sys.executable).with_name("supervise"))
"""The program as installed: like a user's, it does not find modules in the current folder."""
DYING = str(ROOT / "tests" / "support" / "dying_supervisor.py")
"""A supervisor that kills itself at a named moment."""


def start(
    command: list[str], cwd: Path, env: dict[str, str], out: IO[str], err: IO[str], modules: tuple[str, ...] = ()
) -> subprocess.Popen[str] | Launched:
    """The process of `command`. If that is ours and may start warm, it is a fork of one that has done its imports, and
    those of `modules`."""
    ours = command[command[0] == sys.executable :]
    forks = warm_for(env, modules) if (Run.warm or modules) and ours[0] in (SUPERVISE, "-c", DYING) else None
    if forks is not None:
        return forks.start(ours, cwd, env, out, err)
    return subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True)


class Run:
    """A `supervise launch` in a folder of its own, with its run in `run/`."""

    warm = True
    """Whether launches are forks of a process that has torch imported, where nothing speaks against it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dir = RunDir(folder / "run")
        self.process: subprocess.Popen[str] | Launched | None = None
        self.program = [SUPERVISE]
        self.modules: tuple[str, ...] = ()
        """What its ranks find imported, beside torch, as those of a script that has run before."""

    def script(self, text: str, name: str = "script.py") -> str:
        (self.folder / name).write_text(text)
        return name

    def start(
        self,
        *arguments: str,
        cwd: Path | None = None,
        program: Sequence[str] | None = None,
        through: Sequence[str] = (),
        **env: str,
    ) -> subprocess.Popen[str] | Launched:
        """The launch runs in `cwd`, started by `through`; its output goes to files."""
        command = [
            *through,
            *(program or self.program),
            "launch",
            "--run-dir",
            str(self.dir.path) if cwd else "run",
            "--backoff",
            "10ms:50ms",
            *arguments,
        ]
        with (self.folder / "stdout").open("a") as out, (self.folder / "stderr").open("a") as err:
            self.process = start(command, cwd or self.folder, environment(**env), out, err, self.modules)
        return self.process

    def wait(self, seconds: float = TIME_LIMIT) -> int:
        """The exit code of the launch; nothing of the run is alive after it."""
        assert self.process is not None
        code = self.process.wait(seconds)
        self.assert_nothing_left()
        return code

    def kill_supervisor(self) -> None:
        """It is gone, and nothing else has been touched."""
        assert self.process is not None
        self.process.kill()
        assert self.process.wait() == -signal.SIGKILL

    def launch(self, *arguments: str, **env: str) -> int:
        self.start(*arguments, **env)
        return self.wait()

    def cli(self, *arguments: str, check: int = 0) -> subprocess.CompletedProcess[str]:
        """Another command of supervise, in the run's folder, that ended with `check`."""
        command = [SUPERVISE, *arguments]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            code = start(command, self.folder, environment(), out, err, self.modules).wait(TIME_LIMIT)
            texts = [(stream.seek(0), stream.read())[1] for stream in (out, err)]
        assert code == check, (code, *texts)
        return subprocess.CompletedProcess(command, code, *texts)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The run's events, or those of these names."""
        events = read_events(self.dir.events)[0]
        return [e for e in events if not names or e["msg"] in names]

    def until_event(self, name: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th event of that name, once it is there."""
        return until(lambda: self.events(name)[count - 1 : count])[0]

    def until_standby(self, *before: dict[str, Any]) -> dict[str, Any]:
        """standby_ready of the group that stays, none of those `before`: a first one gives way as soon as the script's
        modules are imported."""
        known = [event["launcher_pid"] for event in before]

        def settled() -> dict[str, Any] | None:
            # What was asked for before they were imported may be told by the one who has.
            new = [e for e in self.events("standby_ready") if "serving_pid" in e and e["launcher_pid"] not in known]
            return new[-1] if new and time.monotonic() > new[-1]["mono"] + 1.0 else None

        return until(settled)

    def verdicts(self) -> list[tuple[str, int | None]]:
        """(cause, rank) of each verdict."""
        return [(e["cause"], e["rank"]) for e in self.events("verdict")]

    def warnings(self) -> str:
        """What the run has warned of, a line each."""
        return "\n".join(event["text"] for event in self.events("warning"))

    def mark(self) -> str:
        mark: str = json.loads(self.dir.run_json.read_bytes())["mark"]
        return mark

    def assert_nothing_left(self) -> None:
        """No process, no shared memory, no memory group, no temporary file of the run is left."""
        if not self.dir.run_json.exists():
            return
        assert marked(self.mark()) == []
        assert not segment_of(self.mark()).exists()
        assert groups_of(self.mark()) == []
        leftovers = [p for p in self.dir.path.rglob("*") if ".tmp-" in p.name or p.name.startswith(".spec")]
        assert leftovers == []

    def kill(self) -> None:
        """Whatever of the run still lives is killed: the end of a test that failed."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.dir.run_json.exists():
            for process in marked(self.mark()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            remove(segment_of(self.mark()))
