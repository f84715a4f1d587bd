"""The supervisor is killed, at moments by name and at random ones: the ranks train on, and the next one adopts them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.run.folder.lock import holder
from tests.support.adopted import adopted, assert_told_once, claim, exists, living, step_of
from tests.support.jobs import TINY, final_state, same
from tests.support.scripts import PACED, STEPPING
from tests.support.supervised import DYING, SUPERVISE, Run, environment
from tests.support.undisturbed import undisturbed
from tests.support.waiting import until
from trainer.rundir.layout import committed_steps

STEPS = 200
JOB = ["paced.py", *TINY, "--steps", str(STEPS), "--snapshot-every", "1", "--checkpoint-every", "40", "--keep", "2"]
UNTIL_TOLD = """
import os, sys, time, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(int(sys.argv[1])):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    while not os.path.exists("finish"):
        time.sleep(0.02)
"""
"""Makes one step, and the others of its argument once the file `finish` is there."""
BUDGET = ("--max-restarts", "1000", "--no-progress-limit", "1000", "--backoff", "1ms:1ms")
SEED = 20261124


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The final state of a run that nobody disturbed."""
    return undisturbed(tmp_path_factory, "adopt", STEPS, JOB, lambda run: run.script(PACED, "paced.py"))


def start(run: Run, pace: str = "0.2") -> None:
    """The job runs, some five steps a second; hurry() ends that."""
    run.script(PACED, "paced.py")
    run.script(pace, "pace")
    run.start("--nproc", "2", *BUDGET, *JOB)


def hurry(run: Run) -> None:
    for name in ("pace", "hold"):
        (run.folder / name).unlink(missing_ok=True)


def assert_undisturbed(run: Run, reference: Any) -> None:
    """The end is the reference's, bit for bit; each step has one line of metrics; what is on disk was told of."""
    assert same(final_state(run.dir.path, STEPS), reference)
    steps = [json.loads(line)["step"] for line in run.dir.metrics.read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert_told_once(run)
    told = {event["step"] for event in run.events("checkpoint_committed")}
    assert set(committed_steps(run.dir.checkpoints)) <= told


def test_living_attempt_is_adopted(run: Run, reference: Any) -> None:
    """Detached this time: the same ranks train on under a new supervisor, and no step is done twice. A rank that is
    killed afterwards is recovered from memory as ever."""
    start(run)
    run.until_event("first_step")
    before = living(run)
    run.kill_supervisor()
    at = step_of(run)
    until(lambda: step_of(run) > at + 5)

    run.cli("launch", "--run-dir", "run", "-d", "--quiet")
    event = adopted(run)
    status = json.loads(run.cli("status", "run", "--json").stdout)

    assert living(run) == before == {0: event["pids"]}
    assert status["state"] == "running" and status["attempt"] == 0
    assert status["supervisor_pid"] == holder(run.dir)["pid"] and exists(status["supervisor_pid"])
    assert [worker["pid"] for worker in status["workers"]] == event["pids"]
    assert status["launcher_pid"] == run.events("attempt_started")[0]["launcher_pid"]

    # In this order: in a hurry it may come to its end before the kill.
    os.kill(event["pids"][1], signal.SIGKILL)
    hurry(run)
    until(lambda: run.events("run_ended"))
    until(lambda: not run.dir.standby.exists())
    run.assert_nothing_left()
    assert run.verdicts() == [("killed", 1), ("finished", None)]
    assert run.events("verdict")[0]["signal"] == signal.SIGKILL
    assert [event["source"] for event in run.events("resumed")] == ["start", "memory"]
    assert run.events("takeover") == []
    assert_undisturbed(run, reference)


def test_adopted_twice_then_stopped(run: Run, reference: Any) -> None:
    """Two supervisors of one attempt are killed; the third stops it with a checkpoint: 103, and the run can go on."""
    start(run, "0.5")
    for count in (1, 2):
        until(lambda: living(run) and step_of(run) > 0)
        before = living(run)
        run.kill_supervisor()
        run.start()
        adopted(run, count)
        assert living(run) == before
    run.cli("stop", "run")

    assert run.wait() == 103
    stopped = committed_steps(run.dir.checkpoints)[-1]
    assert 0 < stopped < STEPS
    hurry(run)
    assert run.launch() == 0
    assert [event["step"] for event in run.events("resumed")] == [0, stopped]
    assert_undisturbed(run, reference)


def test_every_moment(run: Run, reference: Any) -> None:
    """One supervisor after another kills itself at a moment between two things that belong together: never two groups,
    no word said twice, and in the end nothing has happened."""
    moment = run.folder / "moment"
    run.program = [sys.executable, DYING]

    def dies(*arguments: str, at: str, first: str | None = None, blow: str | None = None) -> None:
        """A supervisor goes on with the run, once it has said `first` a `blow` falls, and it dies at that moment."""
        said = len(run.events(first)) if first else 0
        if first is None:
            moment.write_text(at)
        process = run.start(*arguments)
        if first is not None:
            run.until_event(first, said + 1)
            moment.write_text(at)
        if blow == "kill":
            os.kill(next(iter(living(run).values()))[1], signal.SIGKILL)
        elif blow == "stop":
            run.cli("stop", "run", "--no-wait")
        assert process.wait(60) == -signal.SIGKILL, at
        assert not moment.exists()
        assert len(living(run)) <= 1, at

    run.script(PACED, "paced.py")
    run.script("0.2", "pace")
    # Three attempts begin before the hurry. None of them comes to the end, however long all that takes.
    run.script("60", "hold")
    dies("--nproc", "2", *BUDGET, "--hang-timeout", "60s", *JOB, at="after event:first_step")
    dies(at="before event:verdict", first="adopted", blow="kill")
    dies(at="after event:verdict")
    dies(at="after event:group_gone")
    dies(at="after event:relaunch_scheduled")
    dies(at="after supervisor.attempt.attempt:create_beats")
    dies(at="after supervisor.group.group:WorkerGroup.release")
    # The group that waited was let go, and nobody was told.
    dies(at="after supervisor.group.group:WorkerGroup.release", first="standby_ready", blow="kill")
    released = run.events("standby_ready")[-1]
    dies(at="after supervisor.loop.flush:Flusher._start")
    assert run.events("adopted")[-1]["launcher_pid"] == released["launcher_pid"]
    dies(at="after supervisor.attempt.attempt:Attempt.send", first="adopted", blow="stop")
    hurry(run)
    dies(at="before supervisor.loop.flush:Flusher.finish")
    dies(at="before event:run_ended")

    assert run.launch() == 0
    causes = [cause for cause, _ in run.verdicts()]
    assert causes == ["killed", "killed", "preempted", "finished"], run.events("verdict")
    assert_undisturbed(run, reference)


@pytest.mark.long
def test_random_moments(run: Run, reference: Any) -> None:
    """Five supervisors in a row are killed whenever it may be, and sometimes a rank with them."""
    pick = random.Random(SEED)
    start(run)
    until(lambda: living(run))
    for _ in range(5):
        time.sleep(pick.choice([0.1, 0.5, 2.5]) * pick.random())
        ranks = [pid for pids in living(run).values() for pid in pids]
        run.kill_supervisor()
        assert len(living(run)) <= 1
        if ranks and pick.random() < 0.5:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pick.choice(ranks), signal.SIGKILL)
        run.start()
        until(lambda: holder(run.dir).get("pid") == run.process.pid)  # type: ignore[union-attr]

    hurry(run)
    assert run.wait() == 0
    assert_undisturbed(run, reference)


def test_without_the_kernels_word(run: Run) -> None:
    """Before Linux 6.15 a pidfd does not tell how its process ended. A rank's status is found all the same, and the end
    of a launcher that is nobody's child is known by its report."""
    code = (
        "import sys, _supervisor.process.reaper as reaper\n"
        "reaper._pidfd_status = lambda fd: None\n"
        "from _supervisor.commands.cli import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    run.program = [sys.executable, "-c", code]
    run.start("--nproc", "2", run.script(UNTIL_TOLD), "3")
    for count in (1, 2):
        run.until_event("first_step", count)
        run.until_event("group_ready", count)  # told once both ranks are there; a step is told of the first one
        run.kill_supervisor()
        run.start()
        event = adopted(run, count)
        if count == 1:
            os.kill(event["pids"][1], signal.SIGKILL)
    (run.folder / "finish").touch()

    assert run.wait() == 0
    assert run.verdicts() == [("killed", 1), ("finished", None)]
    assert run.events("verdict")[0]["signal"] == signal.SIGKILL
    assert run.events("verdict")[1]["exit_code"] == 0


def test_two_at_once(run: Run) -> None:
    """While a supervisor lives there is no other; of two that want to adopt at the same instant one does, one is
    refused."""
    run.start("--nproc", "2", run.script(STEPPING), "4000", "0.02")
    run.until_event("first_step")
    run.until_event("group_ready")
    run.cli("launch", "--run-dir", "run", check=108)
    before = living(run)
    run.kill_supervisor()

    both = [
        subprocess.Popen([SUPERVISE, "launch", "--run-dir", "run", *more], cwd=run.folder, env=environment())
        for more in ([], ["-d"])
    ]
    adopted(run)
    assert living(run) == before
    # Only then: one that comes to a run that was stopped goes on with it.
    until(lambda: 108 in [process.poll() for process in both])
    run.cli("stop", "run", "--now")
    ends = [process.wait(60) for process in both]
    assert ends in ([103, 108], [108, 0])
    assert len(run.events("adopted")) == 1
    run.assert_nothing_left()


def test_another_command_and_an_end_that_nobody_saw(run: Run) -> None:
    """Launched anew with other arguments, the old attempt is ended before the new one begins. That one ends well under
    no supervisor: the next says so, and starts nothing again; whoever has the pid of one of its ranks by then is a
    stranger, and lives on."""
    run.start("--nproc", "2", run.script(UNTIL_TOLD), "4000")
    run.until_event("first_step")
    before = living(run)[0]
    run.kill_supervisor()

    run.start("--nproc", "2", "script.py", "40")
    run.until_event("first_step", 2)
    assert not any(map(exists, before))
    assert run.events("adopted") == [] and run.events("takeover")[0]["killed"] >= 3

    run.kill_supervisor()
    (run.folder / "finish").touch()
    until(lambda: not living(run) and any(run.dir.standby.glob("*/launcher.json")))
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        claim(run.dir.attempt(1).beats, 1, stranger.pid)
        run.cli("resume", "run", "--quiet")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert [event["attempt"] for event in run.events("attempt_started")] == [0, 1]
    assert run.verdicts() == [("finished", None)]
    assert run.events("verdict")[-1]["step"] == 40
    run.assert_nothing_left()


def test_what_cannot_be_adopted_is_ended(run: Run) -> None:
    """Supervisor and launcher are killed, the ranks live: the next launch ends them first, and counts attempts on."""
    text = (
        "import os, time, pathlib\n"
        "n = os.environ['SUPERVISE_ATTEMPT']\n"
        # A zombie that nobody has reaped yet has no exe.
        "others = [p for p in pathlib.Path('.').glob('alive*') if os.path.exists('/proc/' + p.read_text() + '/exe')]\n"
        "open('overlap', 'a').write(str(others)) if others and n != '0' else None\n"
        "open('alive' + n + os.environ['RANK'], 'w').write(str(os.getpid())) if n == '0' else None\n"
        "while n == '0': time.sleep(0.05)"
    )
    run.start("--nproc", "2", run.script(text))
    pids = [int(until(lambda rank=rank: _text(run.folder / f"alive0{rank}"))) for rank in (0, 1)]
    launcher = run.until_event("attempt_started")["launcher_pid"]
    run.kill_supervisor()
    os.kill(launcher, signal.SIGKILL)
    assert all(psutil.pid_exists(pid) for pid in pids)
    assert json.loads(run.cli("status", "run", "--json").stdout)["state"] == "lost"

    assert run.launch() == 0

    assert not (run.folder / "overlap").exists()
    assert run.dir.attempts() == [0, 1]
    assert run.events("takeover")[0]["killed"] >= 2


def _text(path: Path) -> str:
    """What is in that file; nothing before there is one."""
    return path.read_text() if path.exists() else ""
