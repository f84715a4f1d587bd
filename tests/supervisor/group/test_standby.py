"""The warm standby: recoveries find a group that waits, whatever dies meanwhile; and a fork is as good as a fresh
start."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.support.scripts import STEPPING
from tests.support.supervised import Run
from tests.support.waiting import until
from tests.support.without_forks import WITHOUT_FORKS

ENDLESS = ("100000", "0.05")
"""Steps and seconds of each: the test ends it, however slow the machine is."""


def stop(run: Run) -> None:
    """The run is over, because it was told to be; nothing of it is left."""
    run.cli("stop", "run", "--now")
    assert run.wait() == 103


def kinds(run: Run) -> list[str]:
    """How each attempt's group was made."""
    return [event["kind"] for event in run.events("attempt_started")]


def test_recovery_takes_the_group_that_waits(run: Run) -> None:
    """After a kill the next attempt is the very group that stood by; the standby after it is made, and goes in the
    end."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    standby = run.until_standby()
    run.cli("inject", "run", "kill:rank=1")
    run.until_standby(standby)
    stop(run)

    started = run.events("attempt_started")
    assert kinds(run) == ["fork", "fork"]
    assert started[1]["launcher_pid"] == standby["launcher_pid"]
    assert run.events("group_ready")[1]["pids"] == standby["pids"]
    assert not run.dir.standby.exists()


def test_two_kills_within_a_second(run: Run) -> None:
    """The second kill comes before the next standby is there; it is recovered from by a fork all the same."""
    inject = ["--inject", "kill:rank=0@step=30", "--inject", "kill:rank=1@step=2"]
    assert run.launch("--nproc", "2", *inject, run.script(STEPPING), "40", "0.05") == 0

    assert kinds(run) == ["fork"] * 3
    # Rank 1 dies at step 2 of the first attempt, rank 0 at step 30 of the second.
    assert run.verdicts() == [("killed", 1), ("killed", 0), ("finished", None)]


def test_dead_fork_server_is_replaced(run: Run) -> None:
    """The fork server is killed while the run trains: nobody notices but the events, and the next recovery is warm
    again."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    standby = run.until_standby()
    os.kill(standby["forkserver_pid"], signal.SIGKILL)
    run.until_event("standby_lost")
    run.cli("inject", "run", "kill:rank=0")
    replaced = run.until_standby(standby)
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 3)
    stop(run)

    assert replaced["forkserver_pid"] != standby["forkserver_pid"]
    assert [cause for cause, _ in run.verdicts()] == ["killed", "killed"]
    assert run.events("attempt_started")[2]["launcher_pid"] == replaced["launcher_pid"]


def test_stopped_fork_server_is_replaced(run: Run) -> None:
    """It is stopped, and the run fails twice: the second recovery finds no group, and does not wait for ever."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    standby = run.until_standby()
    os.kill(standby.get("serving_pid", standby["forkserver_pid"]), signal.SIGSTOP)
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 2)
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 3)
    stop(run)

    assert any("stands still" in event["reason"] for event in run.events("standby_lost"))


def test_dead_standby_is_replaced(run: Run) -> None:
    """A rank of the waiting group is killed: the attempt that trains is left alone, and another group takes its
    place."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    standby = run.until_standby()
    os.kill(standby["pids"][1], signal.SIGKILL)
    replaced = run.until_standby(standby)
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 2)
    stop(run)

    assert replaced["launcher_pid"] != standby["launcher_pid"]
    assert run.events("attempt_started")[1]["launcher_pid"] == replaced["launcher_pid"]
    assert [cause for cause, _ in run.verdicts()] == ["killed"]


def test_no_standby(run: Run) -> None:
    """--no-standby: every group is started cold, and nothing stands by."""
    # It needs no torch: two imports of it less.
    failing = "import os\nassert os.environ['SUPERVISE_ATTEMPT'] == '1'"
    assert run.launch("--no-standby", run.script(failing)) == 0

    assert kinds(run) == ["exec", "exec"]
    assert run.events("standby_ready") == []


def test_module_that_starts_a_thread(run: Run) -> None:
    """A module whose import starts a thread is imported by the ranks themselves, with what imports it; the run stays
    warm, is warm from the start the next time, and says what it costs."""
    site = run.folder / "site-packages"
    site.mkdir()
    (site / "noisy.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    (site / "around.py").write_text("import noisy")
    (site / "quiet.py").touch()
    env = {
        "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
        "XDG_CACHE_HOME": str(run.folder / "cache"),
    }
    text = (
        "import os, sys, threading\nbefore = {'noisy', 'around', 'quiet'} & sys.modules.keys()\nimport around, quiet\n"
        "open('seen' + os.environ['SUPERVISE_ATTEMPT'], 'w').write(f'{sorted(before)} {threading.active_count()}')\n"
    )
    run.start(run.script(text + STEPPING), *ENDLESS, **env)
    left_out = until(lambda: [e for e in run.events("standby_ready") if "left_out" in e])[0]["left_out"]
    shown = json.loads(run.cli("status", "run", "--json").stdout)["standby"]
    run.cli("inject", "run", "kill")
    run.until_event("first_step", 2)
    stop(run)

    assert list(left_out) == ["noisy"] and "thread" in left_out["noisy"]
    assert (shown["kind"], shown["left_out"]) == ("fork", left_out)
    assert kinds(run) == ["fork", "fork"] and not run.events("standby_lost")
    assert (run.folder / "seen1").read_text() == "['quiet'] 2"
    # What one run has found out the next one knows.
    again = Run(run.folder / "again")
    again.folder.mkdir()
    (again.folder / "run.py").symlink_to(run.folder / "script.py")
    again.start("script.py", *ENDLESS, cwd=run.folder, **env)
    waits = again.until_event("standby_ready")
    stop(again)
    assert waits["left_out"] == left_out and (run.folder / "seen0").read_text() == "['quiet'] 2"


def test_without_a_fork_server_groups_wait_cold(run: Run) -> None:
    """Where no fork server can be had, the standby is a group of fresh interpreters that have imported and wait."""
    run.start("--nproc", "1", run.script(STEPPING), *ENDLESS, program=WITHOUT_FORKS)
    standby = run.until_event("standby_ready")
    run.cli("inject", "run", "kill")
    run.until_event("first_step", 2)
    stop(run)

    assert standby["kind"] == "exec" and kinds(run) == ["exec", "exec"]
    assert run.events("attempt_started")[1]["launcher_pid"] == standby["launcher_pid"]


def test_killed_supervisor_leaves_no_standby(run: Run) -> None:
    """The waiting group goes when its supervisor is killed; the fork server too; the ranks that train stay."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    standby = run.until_standby()
    pids = run.events("group_ready")[0]["pids"]
    assert run.process is not None
    run.process.kill()
    run.process.wait()

    waiting = [*standby["pids"], standby["launcher_pid"], standby["forkserver_pid"]]
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in waiting))
    assert all(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def test_status_shows_the_standby(run: Run) -> None:
    """status names the group that waits and the memory that it and the fork server take, shared pages counted once."""
    run.start("--nproc", "2", run.script(STEPPING), *ENDLESS)
    run.until_event("standby_ready")
    # Once the script's modules are learned, another group takes the place of the first.
    shown: dict[str, Any] = until(lambda: json.loads(run.cli("status", "run", "--json").stdout)["standby"])
    ready = [(event["launcher_pid"], event["pids"]) for event in run.events("standby_ready")]
    stop(run)

    assert shown["kind"] == "fork" and (shown["launcher_pid"], shown["pids"]) in ready
    assert 10e6 < shown["pss_bytes"] < 1e9


FIDELITY = """
import atexit, json, multiprocessing, os, pickle, random, signal, sys, threading

class Thing:
    pass

def child(queue):
    queue.put(os.getppid())

if __name__ == "__main__":
    import numpy, torch
    rank = os.environ["RANK"]
    atexit.register(lambda: open("atexit" + rank, "w").write("ran"))
    threading.Thread(target=lambda: (__import__("time").sleep(0.2), open("thread" + rank, "w").write("ran"))).start()
    seen = {}
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        seen[method] = queue.get() == os.getpid()
        process.join()
    loader = torch.utils.data.DataLoader(torch.arange(8), batch_size=4, num_workers=2)
    json.dump({
        "children": seen,
        "loader": [batch.tolist() for batch in loader],
        "main": multiprocessing.current_process().name, "parent": multiprocessing.parent_process() is None,
        "pickle": type(pickle.loads(pickle.dumps(Thing()))).__module__,
        "handlers": [signal.getsignal(n) == signal.SIG_DFL for n in (signal.SIGTERM, signal.SIGHUP)],
        "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "argv": sys.argv, "path": sys.path[0], "file": __file__, "session": os.getsid(0) == os.getpid(),
        "random": [random.random(), float(numpy.random.rand()), torch.rand(1).item()],
        "mark": os.environ["SUPERVISE_MARK"].rpartition(".")[2], "stdin": sys.stdin.read(),
    }, open("seen" + rank + ".json", "w"))
    print("buffered words", end="")
    sys.exit(5)
"""


def test_fork_is_as_good_as_a_fresh_start(run: Run, tmp_path: Path) -> None:
    """A script cannot tell that it runs in a fork: exit functions, threads, child processes, handlers, seeds, argv,
    path."""
    seen = {}
    for option in ("--standby", "--no-standby"):
        one = Run(tmp_path / option)
        one.folder.mkdir()
        assert one.launch("--nproc", "2", option, "--max-restarts", "0", one.script(FIDELITY), "x", "--y") == 100
        # The first rank that leaves has torchrun end the other one: what the first has done is whole.
        rank = one.events("verdict")[0]["rank"]
        seen[option] = json.loads((one.folder / f"seen{rank}.json").read_bytes())
        seen[option]["exit"] = one.events("verdict")[0]["exit_code"]
        assert (one.folder / f"atexit{rank}").read_text() == (one.folder / f"thread{rank}").read_text() == "ran"
        assert one.dir.attempt(0).rank_log(rank).read_text().endswith("buffered words")
        assert seen[option].pop("path") == str(one.folder)
        assert seen[option].pop("file") == str(one.folder / "script.py")
        assert len({*seen[option].pop("random")}) == 3

    assert seen["--standby"] == seen["--no-standby"]
    assert seen["--standby"]["children"] == {"fork": True, "spawn": True}
    assert kinds(one) == ["exec"]


def test_forks_draw_different_numbers(run: Run) -> None:
    """Without a seed of their own the ranks draw different numbers, as fresh processes do, from each generator."""
    text = (
        "import os, random, json, numpy, torch\n"
        "numbers = [random.random(), float(numpy.random.rand()), torch.rand(1).item()]\n"
        "json.dump(numbers, open('drawn' + os.environ['RANK'], 'w'))"
    )
    assert run.launch("--nproc", "2", run.script(text)) == 0

    first, second = (json.loads((run.folder / f"drawn{rank}").read_bytes()) for rank in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))


FILLING = """
import resource, sys, torch

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(megabytes << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(30)
with open("faults", "w") as file:
    print(faults(25), file=file)
"""


def test_memory_of_a_step_is_kept_from_the_first(run: Run) -> None:
    """What a rank frees after its first step it need not have from the kernel again at the second."""
    assert run.launch("--nproc", "1", run.script(FILLING)) == 0
    assert int((run.folder / "faults").read_text()) < (25 << 20) // 4096 // 10
