"""`supervise launch` on scripts that know nothing of it: each way to end has its exit code, and leaves nothing
behind."""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from supervisor.run.folder.lock import is_held
from tests.support.scripts import FOREVER, SAVES_ON_TERM, STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until
from trainer.rundir import variables as names

QUICK = "print('hello from', __name__)"
CHECKPOINTED = """
import os, torch
from trainer.checkpoint import Checkpointer
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
checkpointer = Checkpointer(model=model, optimizer=optimizer, every=5)
for step in range(checkpointer.restore(), 10):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpointer.step(step + 1)
    if step + 1 == 5:
        checkpointer.save()
        os._exit(1)
checkpointer.close()
"""
BAD_BATCH = """
    if (step, os.environ["SUPERVISE_ATTEMPT"], os.environ["RANK"]) == (4, "0", "1"):
        raise ValueError("bad batch")
"""
BUG = """
import sys
from _supervisor.commands.cli import run
from _supervisor.loop.driver import Driver
look = Driver._look
def mistaken(self, ended):
    if self._state.step >= 5:
        raise ValueError("a mistake of ours")
    return look(self, ended)
Driver._look = mistaken
sys.exit(run(sys.argv[1:]))
"""
GRANDCHILD = """
import os, subprocess, sys, time
attempt = os.environ["SUPERVISE_ATTEMPT"]
code = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code, "deaf" + attempt], start_new_session=True)
open("pid" + attempt, "w").write(str(child.pid))
while not os.path.exists("deaf" + attempt):
    time.sleep(0.01)
if attempt == "0":
    os.kill(os.getpid(), 9)
"""


def test_finished_is_0(run: Run) -> None:
    """A script that ends with 0 on every rank finishes the run, in one attempt, its output in a log a rank."""
    assert run.launch("--nproc", "2", run.script(QUICK)) == 0

    assert [e["state"] for e in run.events("run_ended")] == ["finished"]
    assert run.dir.attempts() == [0]
    for rank in range(2):
        assert run.dir.attempt(0).rank_log(rank).read_text() == "hello from __main__\n"
    assert not is_held(run.dir)
    # Launched again, there is nothing to do.
    assert run.launch("--nproc", "2", "script.py") == 0
    assert run.dir.attempts() == [0]


def test_syntax_error_is_104_at_once(run: Run) -> None:
    """A module that cannot be compiled is not tried twice, and the verdict quotes the error."""
    run.script("def broken(:", "model.py")
    assert run.launch(run.script("import model")) == 104

    assert run.dir.attempts() == [0]
    assert run.verdicts() == [("user_error", 0)]
    assert "SyntaxError" in run.events("verdict")[0]["reason"]


def test_startup_failure_twice_is_104(run: Run) -> None:
    """A failure before the first step gets one more try, then it is the script's own."""
    assert run.launch("--nproc", "2", run.script("raise RuntimeError('no data')")) == 104

    assert run.dir.attempts() == [0, 1]
    assert [cause for cause, _ in run.verdicts()] == ["startup_error"] * 2
    record = json.loads(run.dir.attempt(0).error(run.verdicts()[0][1] or 0).read_bytes())
    assert (record["type"], record["message"]) == ("RuntimeError", "no data")
    assert "script.py:1" in record["frame"] and "no data" in record["traceback"]
    # It is told at the end, whichever rank's it was, without the frames that are not the script's.
    assert record["traceback"].rstrip() in (run.folder / "stderr").read_text().replace("\n  ", "\n")


def test_exit_78_is_104(run: Run) -> None:
    """A script may say that no restart can help."""
    assert run.launch(run.script("import sys; sys.exit(78)")) == 104

    assert run.verdicts() == [("user_error", 0)]


def test_budget_is_100(run: Run) -> None:
    """Killed once more than the budget allows, the run ends with 100, after max_restarts + 1 attempts."""
    script = run.script("import os; os.kill(os.getpid(), 9)")
    assert run.launch("--max-restarts", "2", "--no-progress-limit", "9", script) == 100

    assert run.dir.attempts() == [0, 1, 2]
    assert run.verdicts() == [("killed", 0)] * 3
    assert [e["signal"] for e in run.events("verdict")] == [9] * 3


def test_internal_error_is_1(run: Run) -> None:
    """A bug of the supervisor ends it, not the training: the ranks go on, it says what to do, and `resume` adopts
    them."""
    program = [sys.executable, "-c", BUG]
    script = run.script(STEPPING + "    if os.path.exists('enough'):\n        break\n")
    process = run.start("--nproc", "2", script, "100000", "0.03", program=program)

    assert process.wait(120) == 1

    pids = run.events("group_ready")[0]["pids"]
    assert all(Path(f"/proc/{pid}/exe").exists() for pid in pids)
    assert run.events("supervisor_failed")[0]["error"] == "ValueError: a mistake of ours"
    name = json.loads(run.dir.run_json.read_bytes())["run"]
    said = (run.folder / "stderr").read_text()
    assert f"2 of its ranks train on: supervise resume {name}" in said and "Traceback" not in said
    assert "a mistake of ours" in run.dir.supervisor_log.read_text()
    with ThreadPoolExecutor(1) as pool:
        resumed = pool.submit(run.cli, "resume", "run")
        run.until_event("adopted")
        (run.folder / "enough").touch()
        resumed.result()
    run.assert_nothing_left()
    assert run.dir.attempts() == [0] and run.verdicts() == [("finished", None)]


def test_internal_error_before_any_rank(run: Run) -> None:
    """Also where the mistake is an error of the system: 1, one line, and no word of ranks that train."""
    bug = BUG.replace("_look", "_take_up").replace("(self, ended)", "(self, pace)").replace("ValueError", "OSError")
    program = [sys.executable, "-c", bug.replace("self._state.step >= 5", "True")]
    run.start(run.script("pass"), program=program)
    assert run.wait() == 1
    last = (run.folder / "stderr").read_text().splitlines()[-1]
    assert "a mistake of ours" in last and "none of its ranks is alive" in last


def test_no_progress_is_105(run: Run) -> None:
    """Attempts that leave no checkpoint end the run with 105, whatever is left of the budget."""
    script = run.script("import os; os.kill(os.getpid(), 9)")
    assert run.launch("--max-restarts", "9", "--no-progress-limit", "2", script) == 105

    assert run.dir.attempts() == [0, 1]


def test_exit_75_restarts_for_free(run: Run) -> None:
    """A script that asks to be started again is, and no budget is spent on it."""
    text = "import os, sys\nif not os.path.exists('again'):\n    open('again', 'w')\n    sys.exit(75)"
    assert run.launch("--max-restarts", "0", run.script(text)) == 0

    assert run.verdicts() == [("preempted", 0), ("finished", None)]


@pytest.mark.parametrize(
    ("number", "code", "state"),
    [(signal.SIGINT, 103, "stopped"), (signal.SIGTERM, 75, "preempted"), (signal.SIGHUP, 75, "preempted")],
)
def test_signals_stop_politely(run: Run, number: signal.Signals, code: int, state: str) -> None:
    """Ctrl-C stops with 103, TERM and a lost terminal with 75; each rank gets one TERM and the time to act on it,
    though the other has gone by then."""
    process = run.start("--nproc", "2", run.script(SAVES_ON_TERM), "2")
    until(lambda: all((run.folder / f"up{rank}").exists() for rank in range(2)))

    process.send_signal(number)

    assert run.wait() == code
    assert [(e["state"], e["exit_code"]) for e in run.events("run_ended")] == [(state, code)]
    for rank in range(2):
        assert (run.folder / f"terms{rank}").read_text() == "x"
        assert (run.folder / f"saved{rank}").exists()


def test_second_ctrl_c_is_now(run: Run) -> None:
    """A script that ignores TERM keeps its whole grace, unless the user insists."""
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('up', 'w')\n"
    text += "while True: time.sleep(0.05)"
    process = run.start("--grace", "10m", run.script(text))
    until((run.folder / "up").exists)
    process.send_signal(signal.SIGINT)
    run.until_event("stop_requested")

    process.send_signal(signal.SIGINT)

    assert run.wait() == 103


def test_stop_command(run: Run) -> None:
    """`stop` waits until the run is over; --now does not wait for a script that ignores TERM."""
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen('up', 'w')\n"
    text += "while True: time.sleep(0.05)"
    run.start("--grace", "10m", run.script(text))
    until((run.folder / "up").exists)

    run.cli("stop", "run", "--now")

    assert run.wait() == 103
    run.cli("stop", "run")


def test_second_launch_is_108(run: Run) -> None:
    """A run that is held is refused, and the refusal says who holds it; the first one does not notice."""
    process = run.start(run.script(FOREVER))
    until((run.folder / "up").exists)

    second = run.cli("launch", "--run-dir", "run", "script.py", check=108)

    assert f"pid {process.pid}" in second.stderr
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert run.wait() == 103
    assert run.dir.attempts() == [0]


def test_grandchild_that_ignores_term_is_gone(run: Run) -> None:
    """What a rank has started in a session of its own, deaf to TERM, ends with the attempt."""
    assert run.launch(run.script(GRANDCHILD)) == 0

    for attempt in range(2):
        assert not psutil.pid_exists(int((run.folder / f"pid{attempt}").read_text()))


def test_environment_of_the_ranks(run: Run) -> None:
    """Ranks get the run's name for us and for trackers, and nothing stale from an outer launcher."""
    text = "import json, os\njson.dump(dict(os.environ), open('env' + os.environ['RANK'] + '.json', 'w'))"
    stale = {
        "PET_MAX_RESTARTS": "3",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "old",
        "RANK": "7",
        "SUPERVISE_ATTEMPT": "9",
    }
    assert run.launch("--nproc", "2", run.script(text), **stale) == 0

    spec = json.loads(run.dir.run_json.read_bytes())
    for rank in range(2):
        env = json.loads((run.folder / f"env{rank}.json").read_bytes())
        assert env[names.RUN_ID] == env["WANDB_RUN_ID"] == spec["run"]
        assert env["WANDB_RESUME"] == "allow"
        assert env[names.ATTEMPT] == "0" and env[names.RUN_DIR] == str(run.dir.path)
        assert (env["RANK"], env["WORLD_SIZE"]) == (str(rank), "2")
        assert env["MASTER_PORT"] != "1" and env["TORCHELASTIC_RUN_ID"] != "old"
        assert "PET_MAX_RESTARTS" not in env


def test_arguments_and_resume_arguments(run: Run) -> None:
    """The script gets its own flags untouched, and the resume arguments only when it is launched again."""
    text = (
        "import json, os, sys\n"
        "n = os.environ['SUPERVISE_ATTEMPT']\njson.dump(sys.argv[1:], open('argv' + n, 'w'))\n"
        "if n == '0': os.kill(os.getpid(), 9)"
    )
    own = ["--nproc", "9", "-m", "--flag=x", "--", "y z"]
    assert run.launch("--resume-args", "--init_from=resume --n 1", run.script(text), *own) == 0

    assert json.loads((run.folder / "argv0").read_text()) == own
    assert json.loads((run.folder / "argv1").read_text()) == [*own, "--init_from=resume", "--n", "1"]


def test_users_module_named_trainer(run: Run) -> None:
    """A script's own modules are found, also those that are called like ours."""
    run.script("where = 'the user\\'s'", "trainer.py")
    run.script("where = 'the user\\'s too'", "supervisor.py")
    text = "import trainer, supervisor\nopen('where', 'w').write(trainer.where + ', ' + supervisor.where)"
    assert run.launch(run.script(text)) == 0

    assert (run.folder / "where").read_text() == "the user's, the user's too"


def test_steps_of_a_script_that_does_not_tell(run: Run) -> None:
    """Steps are counted by the optimizer hook; an exception in the middle is told with rank and frame, and cured."""
    assert run.launch("--nproc", "2", run.script(STEPPING + BAD_BATCH), "8", "0.02") == 0

    assert run.verdicts() == [("exception", 1), ("finished", None)]
    first, last = run.events("verdict")
    assert first["step"] == 5 and "ValueError: bad batch" in first["reason"]
    assert last["step"] == 8


def test_steps_of_an_optimizer_that_does_not_count(run: Run) -> None:
    """SGD without momentum has no state to tell a resume by; its Checkpointer has: nothing is said to be lost."""
    assert run.launch(run.script(CHECKPOINTED)) == 0

    _, resumed = run.events("resumed")
    _, first = run.events("first_step")
    assert resumed["step"] == first["from_step"] >= 5
    assert first["lost_steps"] == 0
    run.assert_nothing_left()


def test_detached(run: Run) -> None:
    """-d returns at once, its supervisor has no terminal, and `stop` ends it."""
    done = run.cli("launch", "--run-dir", "run", "--json", "-d", run.script(FOREVER))
    until((run.folder / "up").exists)
    pid = json.loads(done.stdout)["supervisor_pid"]

    assert os.getsid(pid) == pid
    assert is_held(run.dir)
    run.cli("stop", "run", "--now")
    until(lambda: not is_held(run.dir))
    run.assert_nothing_left()


def test_run_directory_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    """It is refused in one line, without a traceback."""
    blocker = tmp_path / "blocker"
    blocker.write_text("a file where the run's folder should be")

    done = run.cli("launch", "--run-dir", "blocker/run", run.script(QUICK), check=2)

    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
