"""`stop` of a run whose supervisor is dead: what lives of it ends as it would have under a supervisor, and nothing
else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from supervisor.process.place import elsewhere, here
from tests.support.jobs import TINY
from tests.support.supervised import SUPERVISE, Run, environment
from tests.support.waiting import until
from trainer.rundir.layout import committed_steps
from trainer.rundir.records.beats import last_beats

SAVES = """
import signal, sys, time, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def stop(*_):
    time.sleep(0.3)
    open("saved", "a").write("x")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
while True:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
"""
"""A script that saves when it gets a TERM, and takes its time for it."""


def lost(run: Run, *command: str, launcher: bool = False) -> None:
    """The supervisor of a run that trains is killed, with the launcher perhaps."""
    run.start(*command)
    started = run.until_event("first_step") and run.events("attempt_started")[0]
    run.kill_supervisor()
    if launcher:
        os.kill(started["launcher_pid"], signal.SIGKILL)
    assert json.loads(run.cli("status", "run", "--json").stdout)["state"] == "lost"


@pytest.mark.parametrize("launcher", [False, True], ids=["adopted", "its launcher killed too"])
def test_a_last_checkpoint(run: Run, launcher: bool) -> None:
    """The ranks get their TERM and save; the run is stopped with 103, nothing of it lives, a second stop finds that
    so."""
    lost(run, "--nproc", "2", "--", *TINY, "--steps", "100000", "--checkpoint-every", "off", launcher=launcher)
    run.cli("stop", "run", check=103)
    run.assert_nothing_left()
    status = json.loads(run.cli("status", "run", "--json").stdout)
    assert (status["state"], status["exit_code"]) == ("stopped", 103)
    assert committed_steps(run.dir.checkpoints)[-1] == status["step"] >= 1
    asked, ended = run.events("stop_requested", "run_ended")
    assert (asked["by"], ended["exit_code"], ended["step"]) == ("user", 103, status["step"])
    seqs = [event["seq"] for event in run.events()]
    assert seqs == list(range(1, len(seqs) + 1)) and run.events("attempt_started")[1:] == []
    run.cli("stop", "run")


@pytest.mark.parametrize("launcher", [False, True], ids=["adopted", "its launcher killed too"])
def test_a_script_has_its_grace_unless_now(run: Run, launcher: bool) -> None:
    """An unmodified script's TERM handler runs to its end; with --now nobody waits for one."""
    lost(run, run.script(SAVES), launcher=launcher)
    run.cli("stop", "run", check=103)
    run.assert_nothing_left()
    assert (run.folder / "saved").read_text() == "x"

    run.start(run.script(SAVES))
    until(lambda: len(run.events("first_step")) == 2)
    run.kill_supervisor()
    run.cli("stop", "run", "--now", check=103)
    run.assert_nothing_left()
    assert (run.folder / "saved").read_text() == "x"


def test_nobody_else_meanwhile(run: Run) -> None:
    """While `stop` waits for the ranks it holds the run: nobody takes it up. A second Ctrl-C ends the waiting. Killed
    before that, `stop` can be asked again."""
    lost(run, "--grace", "10m", run.script(SAVES.replace("time.sleep(0.3)", "time.sleep(600)")))
    stopping = subprocess.Popen([SUPERVISE, "stop", "run"], cwd=run.folder, env=environment())
    run.until_event("stop_requested")
    run.cli("resume", "run", check=108)
    stopping.kill()
    stopping.wait()
    assert last_beats(run.dir.attempt(0).beats)[0].step >= 1

    stopping = subprocess.Popen([SUPERVISE, "stop", "run"], cwd=run.folder, env=environment())
    run.until_event("stop_requested", 2)
    stopping.send_signal(signal.SIGINT)
    assert stopping.wait(60) == 103
    run.assert_nothing_left()


def test_a_supervisor_that_dies_while_it_stops(run: Run) -> None:
    """`stop` asked a living supervisor, which was killed before the ranks were gone: `stop` goes on in its place."""
    run.start("--grace", "10m", run.script(SAVES.replace("time.sleep(0.3)", "time.sleep(600)")))
    run.until_event("first_step")
    assert run.process is not None
    # Before it is asked: else it may have stopped already.
    run.process.send_signal(signal.SIGSTOP)
    stopping = subprocess.Popen([SUPERVISE, "stop", "run", "--now"], cwd=run.folder, env=environment())
    until(run.dir.stop.exists)
    run.kill_supervisor()
    assert stopping.wait(60) == 103
    run.assert_nothing_left()


@pytest.mark.parametrize(("field", "said"), [("host", "stop it there"), ("boot", "anew"), ("pids", "container")])
def test_where_a_pid_means_something(field: str, said: str) -> None:
    """On this machine, since this start of it, in this pid namespace; what is not known counts as elsewhere."""
    assert elsewhere(here(), here()) == ""
    assert said in elsewhere({**here(), field: "another"}, here())
    assert elsewhere({name: value for name, value in here().items() if name != field}, here())


def test_only_where_it_ran(run: Run) -> None:
    """A run whose supervisor ran elsewhere gets one sentence, and nothing of it is touched."""
    lost(run, run.script(SAVES))
    run.dir.holder.write_text(json.dumps({**json.loads(run.dir.holder.read_bytes()), "host": "another"}))
    rank = last_beats(run.dir.attempt(0).beats)[0].pid
    done = run.cli("stop", "run", check=2)
    assert len(done.stderr.splitlines()) == 1
    assert Path(f"/proc/{rank}/exe").exists() and run.events("run_ended") == []
