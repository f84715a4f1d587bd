"""However a rank ends, its end is seen, as it is; and what it leaves to the end is done."""

from __future__ import annotations

import re

import pytest

from tests.support.supervised import Run

WAYS = """
import os, sys
rank = int(os.environ["RANK"])
if rank == 1 and "AGAIN" not in os.environ:
    os.environ["AGAIN"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.argv])
import atexit, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()

class Last:
    write = staticmethod(os.write)
    def __del__(self):
        self.write(self.fd, b"deleted")

if rank == 2:
    os.closerange(3, 4096)
file = open(f"done{rank}", "w")
file.write("written,")
atexit.register(lambda: print("exit function,", file=file, flush=True, end=""))
last = Last()
last.fd = os.dup(file.fileno())
if rank == 0:
    file.flush()
    os._exit(0)
if rank == 3:
    unclosed = open("unclosed", "w")
    unclosed.write("not flushed by the script")
    import weakref
    stands_for_nothing = weakref.proxy(type("Gone", (), {})())
"""


@pytest.mark.parametrize("option", ["--standby", pytest.param("--no-standby", marks=pytest.mark.long)])
def test_every_way_to_end_is_seen(run: Run, option: str) -> None:
    """os._exit, another program in the same process, all descriptors closed, files left open: the run is finished."""
    assert run.launch("--nproc", "4", "--max-restarts", "0", option, run.script(WAYS)) == 0

    assert run.verdicts() == [("finished", None)]
    done = [(run.folder / f"done{rank}").read_text() for rank in range(4)]
    assert done == ["written,", *["written,exit function,deleted"] * 3]
    assert (run.folder / "unclosed").read_text() == "not flushed by the script"


FEEDS = """
import select, subprocess, threading, time, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
before = open("before", "w")
readers = [subprocess.Popen(["sleep", "9999"], stdin=subprocess.PIPE, text=text) for text in (False, True)]

def feed(reader, words):
    while True:
        reader.stdin.write(words)

for reader, words in zip(readers, (b"x" * 100_000, "x" * 100_000)):
    threading.Thread(target=feed, args=(reader, words), daemon=True).start()
for step in range(5):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
after = open("after", "w")
while select.select([], [reader.stdin.fileno() for reader in readers], [], 0)[1]:
    time.sleep(0.01)
for file in (before, after):
    file.write("not flushed by the script")
"""


def test_a_thread_that_is_stuck_in_a_write_holds_nobody_up(run: Run) -> None:
    """Nobody reads what a daemon thread writes: the rank ends as under plain Python, and its other files are whole."""
    assert run.launch("--max-restarts", "0", run.script(FEEDS)) == 0

    assert run.verdicts() == [("finished", None)]
    for name in ("before", "after"):
        assert (run.folder / name).read_text() == "not flushed by the script"


HOOKED = """
import os, signal, sys, time
sys.excepthook = lambda kind, error, trace: open("told", "w").write(trace.tb_frame.f_code.co_filename)
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_an_interrupt_is_one(run: Run) -> None:
    """SIGINT is a KeyboardInterrupt; the script's own hook is told, of its own frames alone; the rank dies of the
    signal."""
    assert run.launch("--max-restarts", "0", run.script(HOOKED)) != 0

    verdict = run.events("verdict")[0]
    assert (verdict["cause"], verdict["signal"], verdict["exit_code"]) == ("killed", 2, None)
    assert (run.folder / "told").read_text() == str(run.folder / "script.py")


LEAVING = """
import datetime, os, signal, sys, time, torch, torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store, _store_based_barrier
from torch.utils.file_baton import FileBaton
dist.init_process_group("gloo")
rank, attempt = dist.get_rank(), int(os.environ["SUPERVISE_ATTEMPT"])
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(30):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
torch.save(model.state_dict(), f"saved{rank}")
if attempt == 0:
    if rank == 1:
        os._exit(0)
    # Nothing tells this rank of the loss, as with NCCL.
    _store_based_barrier(0, _get_default_store(), "key", 2, datetime.timedelta(seconds=900))
if attempt == 1:
    open("stale.lock", "a")
    FileBaton("stale.lock").wait()
if attempt == 2 and rank == 0:
    # Long enough to be asked what it waits for, and let be.
    time.sleep(6)
    os.kill(os.getppid(), signal.SIGSTOP)
"""


def test_who_is_missed_and_who_is_not(run: Run) -> None:
    """A rank that left with 0 while it was needed, and a lock file that nobody removes: found and named in seconds. To
    leave early is fine, and so is a launcher that stands still at the end."""
    assert run.launch("--nproc", "2", run.script(LEAVING)) == 0

    left, locked, finished = run.events("verdict")
    assert (left["cause"], left["rank"], left["exit_code"], left["step"]) == ("exception", 1, 0, 30)
    assert left["reason"].startswith("rank 1 left with 0 at step 30; rank 0 waits for it")
    assert locked["cause"] == "hang" and "wait (file_baton.py" in locked["reason"]
    # By the evidence: without it, half a minute would be the least. Time without a CPU does not count.
    found = re.search(r"\(limit (\d+\.\d) s, looking again and again\)", locked["reason"])
    assert found is not None and float(found[1]) < 30.0
    assert finished["cause"] == "finished" and "launcher" in finished["reason"]
