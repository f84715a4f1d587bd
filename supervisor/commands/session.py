"""The session of a supervisor with one run, from the lock to the end, in the foreground or detached."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from supervisor.checkup import checks, installed, space
from supervisor.checkup.script import spawning
from supervisor.commands import background, nodes, slurm
from supervisor.commands.console import Console, closing_words, name_anywhere, opening_words
from supervisor.commands.nodes import Located
from supervisor.core.actions import End
from supervisor.core.model import History, StopKind
from supervisor.errors import HeldByAnother, InternalError, Refusal
from supervisor.live.shared_numbers import SharedNumbers
from supervisor.loop.driver import Driver
from supervisor.notify.notifier import Notifier
from supervisor.process import loopback
from supervisor.process.descriptors import enough
from supervisor.process.own_session import start_in_own_session
from supervisor.process.place import here
from supervisor.process.proctree import remember_inherited
from supervisor.reading.plain import plain_lines
from supervisor.run import spec as specs
from supervisor.run import status as statuses
from supervisor.run.events import EventLog
from supervisor.run.folder.anchor import Moved
from supervisor.run.folder.epoch import Epoch
from supervisor.run.folder.lock import RunLock, describe, holder
from supervisor.run.folder.registry import register
from supervisor.run.folder.stops import HandedOver, signals
from supervisor.run.previous import Previous, previous_of
from supervisor.run.runs import load
from supervisor.run.spec import Spec
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode
from trainer.rundir.layout import RunDir
from trainer.rundir.records import faults

_STARTS_WITHIN = 30.0
"""Seconds that a supervisor in the background may take to be ready, and then to hold its run."""


def arm_faults(run: RunDir, spec: Spec) -> None:
    """Every fault of --inject is armed, once in a run. The same words again are the same fault."""
    known = {fault.text for fault in faults.armed(run.faults)}
    for text in dict.fromkeys(spec.inject):
        if text not in known:
            faults.arm(run.faults, faults.parse_fault(text))


@dataclass(frozen=True, slots=True)
class Stopping:
    """Launches nothing. The processes of a dead supervisor must end, `now` or after their last checkpoint."""

    now: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What a supervisor in the background is told beside the run's folder."""

    command: tuple[str, ...]
    resume_args: str
    """Both with their secrets."""
    located: Located | None
    """Its place, if it leads other nodes."""


def drive(
    run: RunDir,
    spec: Spec,
    as_json: bool = False,
    quiet: bool = False,
    stopping: Stopping | None = None,
    located: Located | None = None,
) -> int:
    """The run is over. Returns the exit code of `launch`. The caller holds the lock. `located`: this node leads others.
    HandedOver: its ranks go on, and somebody must take them over at once."""
    remember_inherited()
    if stopping is None:
        nodes.refuse_alone(spec, located)
    enough(spec.nproc)
    loopback.needed(spec.local_addr)
    register(run)
    previous = previous_of(run)
    log = _opened(run, spec, previous, located)
    lead = None
    if located is not None:
        from supervisor.commands import several

        lead = several.leader_of(run, spec, previous, log, located)
    _log_begin(log, spec, previous, begins=stopping is None)
    notifier = Notifier(spec.notify, spec.run, log)
    history, environ = _history(run), dict(os.environ)
    driver = Driver(run, spec, log, environ, previous, history, lead=lead, senders=notifier.pids)
    if stopping is not None:
        driver.stops.ask(StopKind.USER, stopping.now)
        driver.why = stopping.why
    console = Console(run, quiet, spec.policy.grace)
    if stopping is None and not quiet:
        console.say(opening_words(run, spec))
    # Until all is said: a signal that comes late must not kill us, for the run has its end and its exit code.
    with signals(driver.stops):
        try:
            leaves = background.on_ctrl_z(driver.stops, console.say, name_anywhere(run))
            paused = leaves if located is None else background.never_paused(console.say)
            with console, _numbers(run, spec, log), paused:
                end = driver.drive()
        except Moved as moved:
            _close(log, notifier)
            why = f"its folder was moved to {moved.path} while it ran"
            return drive(dataclasses.replace(run, path=moved.path), spec, as_json, quiet, Stopping(now=True, why=why))
        except (Refusal, HandedOver):
            _close(log, notifier)
            raise
        except Exception as error:
            # An error of ours is like a SIGKILL of the supervisor: the ranks train on, and another supervisor can adopt
            # them.
            log.emit("supervisor_failed", "error", error=f"{type(error).__name__}: {error}", ranks=driver.living())
            _close(log, notifier)
            raise _internal(run, spec, error, driver.living()) from error
        _close(log, notifier)
        _say_end(run, console, log, driver, end)
        if as_json:
            try:
                print_status(run)
            except (OSError, Refusal) as error:
                console.say(f"  its status cannot be printed: {error}")
    return end.exit_code


def _opened(run: RunDir, spec: Spec, previous: Previous, located: Located | None) -> EventLog:
    """The run's history, to go on with. Refusal if it cannot be written."""
    try:
        log = EventLog(run, spec.run, epoch=Epoch(run) if located is not None else None)
    except OSError as error:
        raise Refusal(f"{run.events} cannot be written: {error.strerror or error}") from None
    log.attempt = previous.last_attempt
    return log


def _log_begin(log: EventLog, spec: Spec, previous: Previous, begins: bool) -> None:
    """The begin is told; if the run is not only to be ended, what its user should know before it `begins`, too."""
    about = {"command": specs.typed(spec), "nproc": spec.nproc, "resume": spec.resume, "pid": os.getpid()}
    log.emit("run_started", "info", **about, boot=here()["boot"] or None, fresh_budget=not previous.goes_on)
    if not begins:
        return
    twice = spawning.warnings(spec.command, spec.module, spec.cwd, spec.nproc)
    for text in [*installed.warnings(), *space.warnings(), *twice]:
        log.emit("warning", "warning", text=text)


def _history(run: RunDir) -> History:
    """What the run's events tell of its attempts, with times by the clock of this machine since its last start. Its
    begin is told."""
    story = statuses.story_of(run)
    return dataclasses.replace(story.history, restarts=tuple(at - story.offset for at in story.history.restarts))


def _say_end(run: RunDir, console: Console, log: EventLog, driver: Driver, end: End) -> None:
    """The end is said, as far as that can be done: it changes nothing about it. A job that should run again is
    queued."""
    if log.unwritten:
        console.say(f"  {log.unwritten}")
    with contextlib.suppress(OSError):
        console.say(closing_words(run, end, driver.spec.several))
    # Nobody asked for it: nodes are missing. Whoever sends a SIGTERM knows whether the job shall run again.
    unasked = driver.stops.warned or driver.stops.kind is None
    if end.exit_code == ExitCode.PREEMPTED and unasked and (said := slurm.requeue(os.environ)):
        console.say(f"  {said}")


@contextlib.contextmanager
def _numbers(run: RunDir, spec: Spec, log: EventLog) -> Iterator[None]:
    """Keeps the files of --metrics-file and --log-restarts, if there are to be any."""
    with contextlib.ExitStack() as stack:
        if spec.metrics_file:
            # prometheus_client is loaded for this alone.
            from supervisor.pages.textfile import Textfile

            stack.enter_context(Textfile(Path(spec.metrics_file), run, log))
        if spec.log_restarts:
            stack.enter_context(SharedNumbers(run))
        yield


def _close(log: EventLog, notifier: Notifier) -> None:
    """Every message is sent, and every event is on the disk, or what is left out is told."""
    notifier.close()
    log.close()


def _internal(run: RunDir, spec: Spec, error: Exception, ranks: int) -> InternalError:
    """The message about an error of ours. Its traceback is now in the run's folder, if the folder can take it."""
    where = ""
    with contextlib.suppress(OSError), run.supervisor_log.open("a") as file:
        file.write("".join(traceback.format_exception(error)))
        where = f" with {run.supervisor_log}"
    if ranks:
        fate = f"{ranks} of its ranks train on: supervise resume {spec.run} goes on with them"
    else:
        fate = f"none of its ranks is alive; to start them again: supervise resume {spec.run}"
    return InternalError(f"internal error ({type(error).__name__}: {error}), please report it{where}; {fate}")


def print_status(run: RunDir, **more: Any) -> None:
    """The run's `status --json` has been written to stdout. Refusal if the run is not there any more."""
    known = load(run.path)
    if known is None:
        raise Refusal(f"no run in {run.path}")
    click.echo(encode({**statuses.status(known), **more}))


def begin(
    run: RunDir,
    wanted: Callable[[], Spec | None],
    detached: bool = False,
    as_json: bool = False,
    quiet: bool = False,
    located: Located | None = None,
) -> int:
    """The exit code of a launch. `wanted` is asked under the run's lock. None: there is nothing to do. A run that is
    driven here may be left to the background."""
    before = _stop_file(run)
    with RunLock(run) as lock:
        spec = wanted()
        if spec is None:
            return ExitCode.FINISHED
        if _stop_file(run) == before:
            # Of an earlier supervisor. Another one is for us: we hold the lock since.
            run.stop.unlink(missing_ok=True)
        specs.save(run, spec)
        if not detached:
            with contextlib.suppress(HandedOver):
                return drive(run, spec, as_json=as_json, quiet=quiet, located=located)
            return _hand_over(run, spec, lock)
    return detach(run, spec, as_json=as_json, quiet=quiet, located=located)


def _stop_file(run: RunDir) -> tuple[int, int] | None:
    """Which request to stop the run there is, if any."""
    with contextlib.suppress(OSError):
        found = run.stop.stat()
        return found.st_ino, found.st_mtime_ns
    return None


def _hand_over(run: RunDir, spec: Spec, lock: RunLock) -> int:
    """A supervisor in the background goes on with the ranks that live. InternalError if there is none."""
    name = name_anywhere(run)
    try:
        detach(run, spec, quiet=True, lock=lock)
    except (Refusal, OSError) as error:
        raise InternalError(f"{error}; its ranks train on: supervise resume {name} goes on with them") from error
    background.say_left(name)
    return ExitCode.FINISHED


def detach(
    run: RunDir,
    spec: Spec,
    as_json: bool = False,
    quiet: bool = False,
    lock: RunLock | None = None,
    located: Located | None = None,
) -> int:
    """A supervisor of the run lives in its own session, and leads other nodes if it is `located`. It does not depend on
    this terminal. If we hold the `lock`, we give it away when the other one can take it: so nobody sees a run without a
    supervisor."""
    enough(spec.nproc)
    loopback.needed(spec.local_addr)
    told = encode(Told(spec.command, spec.resume_args, located))
    with run.supervisor_log.open("ab") as log:
        program = Path(__file__).with_name("detached.py")
        child, _ = start_in_own_session(program, [str(run.path)], told, log, _STARTS_WITHIN)
    if lock is not None:
        lock.give_back()
    until = time.monotonic() + _STARTS_WITHIN
    while time.monotonic() < until and child.poll() is None and holder(run).get("pid") != child.pid:
        time.sleep(0.02)
    holds = holder(run).get("pid") == child.pid
    if not holds and child.poll() == HeldByAnother.exit_code:
        raise HeldByAnother(f"{run.path} is {describe(run)}")
    if not holds and child.poll() not in (None, 0):
        raise Refusal(f"the supervisor did not start; see {run.supervisor_log}")
    child.returncode = 0
    if not quiet:
        print(plain_lines(opening_words(run, spec, detached=True)), file=sys.stderr)
        logout = checks.linger(checks.Host(run.path))
        if logout.verdict is not checks.Verdict.OK:
            print(plain_lines(f"  {logout.text}; to prevent it: {logout.next}"), file=sys.stderr)
    if as_json:
        print_status(run, supervisor_pid=child.pid)
    return 0
