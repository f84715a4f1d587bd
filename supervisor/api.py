"""Runs from Python: a notebook, a sweep. `from supervisor import launch, Run`.

The caller's process stays as it is: no signal handler, no subreaper, no torch, no module of ours under a name that is
the user's. What the command line does is done by the command line, in a process of its own. So a run that Python
launches is the run that a person would have launched. This module imports nothing of ours, because a caller may have a
`trainer` or a `supervisor` of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

# Without the caller's folder on the path: a file there may have the name of a library.
_PROGRAM = "import sys; sys.path[:1] = filter(None, sys.path[:1]); from _supervisor.__main__ import main; main()"
_FOLLOW = 0.2
"""Seconds between two looks at a run's files."""
_NO_SUCH_RUN, _USAGE, _INTERNAL = 102, 2, 1

Duration = str | timedelta
"""`30s`, `5m`, `2h`, or a timedelta."""
Option = str | int | float | bool | Path | timedelta | Sequence[str] | Mapping[str, str] | None
"""The value of an option. True and False are --option and --no-option; a sequence repeats it."""


class SuperviseError(Exception):
    """A request that cannot be met. The text is the line that the command line says; `exit_code` is its exit code."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Run:
    """A run on disk, by its folder. It may be over, or may have been launched by anybody."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """SuperviseError (102) if there is no run in `folder`."""
        try:
            self.dir = Path(folder).resolve()
            self.id = str(json.loads((self.dir / "run.json").read_bytes())["run"])
        except (OSError, ValueError, KeyError, TypeError):
            raise SuperviseError(f"no run in {os.fspath(folder)!r}", _NO_SUCH_RUN) from None

    @classmethod
    def find(cls, name: str | None = None, folder: str | os.PathLike[str] = ".") -> Run:
        """The run that the command line finds in `folder`: by an id, a unique prefix or a path, else the newest."""
        return cls(_asked(["status", "--json", *_named(name)], Path(folder))["run_dir"])

    def __repr__(self) -> str:
        return f"Run({str(self.dir)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.dir == self.dir

    def __hash__(self) -> int:
        return hash(self.dir)

    @property
    def running(self) -> bool:
        """Whether a living supervisor holds it."""
        locked = importlib.import_module("_supervise.rundir.files.flock").locked
        try:
            fd = os.open(self.dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        with locked(fd, wait=False, shared=True) as free:
            return not free

    def status(self) -> dict[str, Any]:
        """What `supervise status --json` says."""
        return _asked(["status", str(self.dir), "--json"])

    def report(self) -> dict[str, Any]:
        """What `supervise report --json` says: attempts, the ledger, goodput."""
        return _asked(["report", str(self.dir), "--json"])

    def events(self, follow: bool = False) -> Iterator[dict[str, Any]]:
        """The events so far. With `follow`, also those to come, until no supervisor holds the run."""
        reader = importlib.import_module("_supervise.rundir.files.json_lines").Follower(self.dir / "events.jsonl")
        while True:
            # Who asks after the end was seen, sees everything.
            over = not (follow and self.running)
            for _, event in reader.objects():
                if isinstance(event.get("msg"), str):
                    yield event
            if over:
                return
            time.sleep(_FOLLOW)

    def wait(self, timeout: float | None = None) -> int:
        """The run is over. Returns the exit code that `launch` would have given. TimeoutError after `timeout` seconds;
        the run goes on then. SuperviseError if its supervisor was killed: nobody looks after it any more."""
        until = None if timeout is None else time.monotonic() + timeout
        last: dict[str, Any] = {}
        # Twice: it may have been between two supervisors, for a moment (Ctrl-Z at a launch).
        for _ in range(2):
            while self.running:
                if until is not None and time.monotonic() >= until:
                    raise TimeoutError(f"{self.id} is running after {timeout} s")
                time.sleep(_FOLLOW)
            for event in self.events():
                if event["msg"] in ("run_started", "run_ended"):
                    last = event
            if last.get("msg") == "run_ended":
                break
            time.sleep(_FOLLOW)
        else:
            raise SuperviseError(f"{self.id} has lost its supervisor; go on with it: Run.resume()", _INTERNAL)
        return int(last["exit_code"])

    def stop(self, now: bool = False) -> None:
        """No process of the run is alive. Before that it has saved a checkpoint, unless `now`."""
        _command(["stop", str(self.dir), *(["--now"] if now else [])])

    def resume(self, env: Mapping[str, str] | None = None) -> None:
        """A stopped, failed, preempted or lost run goes on as it was launched, in the background."""
        _command(["resume", str(self.dir), "--detach", "--quiet"], env=env)


def launch(
    script: str | os.PathLike[str] | None = None,
    arguments: Sequence[object] = (),
    *,
    module: bool = False,
    nproc: int | str | None = None,
    name: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: str | None = None,
    resume_args: str | None = None,
    max_restarts: int | None = None,
    window: Duration | None = None,
    no_progress_limit: int | None = None,
    backoff: str | None = None,
    grace: Duration | None = None,
    hang_timeout: Duration | None = None,
    startup_timeout: Duration | None = None,
    standby: bool | None = None,
    inject: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
    config: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] = ".",
    env: Mapping[str, str] | None = None,
    **more: Option,
) -> Run:
    """A supervisor of its own trains `script` (a module, with `module`; the built-in GPT, without a script) in the
    background. It does not depend on this process.

    Returns once the run's folder is there. An option that is None is as on the command line: SUPERVISE_*, then
    supervise.toml, then the default. `more` are options that have no parameter here, by their names. `cwd` is the
    folder of the launch, and `env` is added to the environment. SuperviseError with the command line's words, if the
    launch is refused; then nothing was started.
    """
    given: dict[str, Option] = {
        "nproc": nproc,
        "name": name,
        "run_dir": None if run_dir is None else Path(run_dir),
        "resume": resume,
        "resume_args": resume_args,
        "max_restarts": max_restarts,
        "window": window,
        "no_progress_limit": no_progress_limit,
        "backoff": backoff,
        "grace": grace,
        "hang_timeout": hang_timeout,
        "startup_timeout": startup_timeout,
        "standby": standby,
        "inject": inject,
        "policy": policy,
        "config": None if config is None else Path(config),
        **more,
    }
    if isinstance(arguments, str | bytes):
        raise TypeError("arguments is a list of words, as in ['--lr', '1e-4']")
    words = [word for option, value in given.items() for word in _words(option, value)]
    target = [] if script is None else [*(["-m"] if module else []), "--", os.fspath(script)]
    rest = [str(each) for each in arguments]
    if script is None and rest:
        target = ["--"]
    body = _asked(["launch", "--detach", "--json", "--quiet", *words, *target, *rest], Path(cwd), env)
    return Run(body["run_dir"])


def _words(option: str, value: Option) -> list[str]:
    """The option as it is typed."""
    flag = "--" + option.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, Mapping):
        return [f"{flag}={key}={each}" for key, each in value.items()]
    if isinstance(value, timedelta):
        return [f"{flag}={value.total_seconds()}s"]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"{flag}={each}" for each in value]
    return [f"{flag}={value}"]


def _named(name: str | None) -> list[str]:
    return [] if name is None else ["--", name]


def _asked(words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The document that the command prints."""
    found: dict[str, Any] = json.loads(_command(words, cwd, env))
    return found


def _command(words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The standard output of the command. What it says besides goes to this process's standard error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, *words],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except (OSError, ValueError) as error:
        # There is no folder `cwd`, or a word holds a null byte: no program can be given that.
        raise SuperviseError(str(error), _USAGE) from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"supervise ended with {done.returncode}"]
        raise SuperviseError(said[-1].removeprefix("supervise: "), done.returncode)
    if done.stderr.strip():
        print(done.stderr.rstrip(), file=sys.stderr)
    return done.stdout
