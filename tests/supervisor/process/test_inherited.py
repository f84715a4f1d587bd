"""What a process had below it before a run is not the run's: neither killed nor waited for."""

from __future__ import annotations

from tests.support.pids import said

BELOW = """
from supervisor.attempt.ending import Ending
from supervisor.process.proctree import Process, members, remember_inherited, inherited
from supervisor.process.reaper import Reaper

SLEEP, PIPES = ["sleep", "600"], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
reaper, marked = Reaper(), {**os.environ, "SUPERVISE_MARK": "this-run.0"}
job = subprocess.Popen(["bash", "-c", "read; sleep 600 & echo $!; read"], **PIPES)
gone, kin = subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, env=marked)
remember_inherited()
known = subprocess.Popen(SLEEP)
ending = Ending("this-run", dict, foreign=False)
remember_inherited()  # of no effect: what we have started since is ours

def seen():
    return [sorted(ending.members(set())), sorted(each.pid for each in members("this-run", set()))]

found = {"first": seen(), "ours": sorted([kin.pid, known.pid])}

# The job starts another one, which is seen once, and then ends.
job.stdin.write(b"\\n"), job.stdin.flush()
late = int(job.stdout.readline())
inherited("this-run")
job.stdin.write(b"\\n"), job.stdin.flush()
until(lambda: reaper.reap() or stat(job.pid) is None)
found["orphan"] = [stat(late).parent == os.getpid(), seen()]

# One of ours has the pid of one that is gone.
gone.kill()
until(lambda: stat(gone.pid).state == "Z")
old = stat(gone.pid).started
found["zombie"] = seen()
reaper.reap()
next_is(gone.pid, old)
other = subprocess.Popen(SLEEP)
found["reused"] = [other.pid == gone.pid, [other.pid in each for each in seen()]]
# Another one has lost its parent, and dropped its environment.
dropped = subprocess.Popen(["bash", "-c", "env -i setsid sleep 600 & echo $!"], stdout=subprocess.PIPE)
orphan = int(dropped.stdout.readline())
dropped.wait()
found["dropped"] = [stat(orphan).parent == os.getpid(), orphan in seen()[0], orphan in seen()[1]]

found["killed"] = ending.force(set(), time.monotonic())
until(lambda: reaper.reap() or not ending.alive(set()))
found["left"] = [seen(), stat(late).state]
print(json.dumps(found))
"""


def test_what_was_there_before_is_not_the_runs() -> None:
    """Nor what it has started since. What carries the run's mark is, and what a rank leaves, with any environment; so
    is a process that has the pid of another one."""
    found = said(BELOW)

    ours = found["ours"]
    assert found["first"] == [ours, ours]
    assert found["orphan"] == [True, [ours, ours]]
    assert found["zombie"] == [ours, ours]
    assert found["reused"] == [True, [True, True]]
    assert found["dropped"] == [True, True, True]
    assert found["killed"] == 4
    assert found["left"] == [[[], []], "S"]
