"""A standby that waits in Checkpointer.restore(): bits, log, environment, changed code, and a program that cannot wait
there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.supervised import ROOT, Run
from tests.support.waiting import until
from trainer.rundir.machine.priority import LOWEST

SCRIPT = """
import hashlib, os, socket, sys, time, torch, torch.distributed as dist
from pathlib import Path
from supervise import Checkpointer
import part

attempt, rank = int(os.environ["SUPERVISE_ATTEMPT"]), int(os.environ["RANK"])
print("built", attempt, part.VERSION, flush=True)
if attempt == 3:
    raise ValueError("in my own words")
seen = open(os.environ["SUPERVISE_RUN_DIR"] + "/mine", "a"), socket.create_server(("127.0.0.1", 0))
dist.init_process_group("gloo")
torch.manual_seed(1)
nn = torch.nn
inner = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Linear(32, 1))
model = torch.nn.parallel.DistributedDataParallel(inner)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7)
torch.manual_seed(rank)

def train(x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    scheduler.step()

def warm_up():
    Path(f"warmed{attempt}.{rank}").touch()
    train(torch.rand(4, 8))

ckpt = Checkpointer(
    model=model, optimizer=optimizer, scheduler=scheduler, park=True, warm_up=warm_up, every=None,
    snapshot_every=1 if attempt else None,
)
start = ckpt.restore()
told = [os.environ[f"SUPERVISE_{name}"] for name in ("RESUME_STEP", "MARK")]
print("restored", attempt, start, told[0], told[1][-2:], flush=True)
for step in range(start, 60):
    train(torch.rand(4, 8))
    state = [*inner.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
    state += [torch.get_rng_state(), torch.tensor(scheduler.last_epoch)]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state)).hexdigest()
    with open(f"trace{attempt}.{rank}", "a") as file:
        file.write(f"{step + 1} {digest}\\n")
    ckpt.step(step + 1)
    while step + 1 == 20 * attempt + 20:
        time.sleep(0.02)
"""
"""Attempt N waits for its end after step 20 * (N + 1)."""


def trace(run: Run, attempt: int, rank: int) -> dict[int, str]:
    """The digest of the state after each step that the rank has made in that attempt."""
    path = run.folder / f"trace{attempt}.{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(step): digest for step, digest in map(str.split, lines)}


def parked(run: Run, attempt: int) -> dict[str, Any] | None:
    """standby_ready of the group that waits in restore() beside that attempt, and will not give way."""
    seen = [e for e in run.events("standby_ready", "standby_lost") if e["attempt"] == attempt]
    # The first one gives way as soon as the script's modules are imported.
    settled = bool(seen) and seen[-1].get("at") == "restore" and time.monotonic() > seen[-1]["mono"] + 1.0
    return seen[-1] if settled else None


def kill_when_parked(run: Run, attempt: int) -> dict[str, Any]:
    """A rank of the attempt is killed when it has come to where it waits, and so has the standby; standby_ready."""
    last = 20 * (attempt + 1)
    until(lambda: all(last in trace(run, attempt, rank) for rank in range(2)))
    standby: dict[str, Any] = until(lambda: parked(run, attempt))
    if attempt == 1:
        (run.folder / "part.py").write_text("VERSION = 'new'")
    ready = [e for e in run.events("group_ready") if e["attempt"] == attempt][-1]
    os.kill(ready["pids"][1], signal.SIGKILL)
    return standby


def log(run: Run, attempt: int) -> list[str]:
    path = run.dir.attempt(attempt).rank_log(0)
    return path.read_text().splitlines() if path.exists() else []


def test_parked_at_the_restore(run: Run) -> None:
    """A standby of a program that asks for it waits in restore(). After a warm-up, a restore that finds nothing gives
    the first bits, and one that finds a snapshot the bits of that step. What it printed is the head of the attempt's
    log. Changed code is run anew. A program that fails on the way waits at its first line, after the second time."""
    run.script("VERSION = 'old'", "part.py")
    run.start("--nproc", "2", "--hang-timeout", "off", run.script(SCRIPT))
    first = kill_when_parked(run, 0)
    kill_when_parked(run, 1)

    started = until(lambda: run.events("attempt_started")[2:])
    assert run.events("attempt_started")[1]["launcher_pid"] == first["launcher_pid"]
    assert started[0]["launcher_pid"] not in [e["launcher_pid"] for e in run.events("standby_ready")]
    assert until(lambda: log(run, 2)[1:])[0].split()[:2] == ["restored", "2"]

    # Another one may have waited there before, on its way to restore().
    at = until(lambda: [e for e in run.events("standby_ready") if e["attempt"] == 2 and "why_start" in e])[-1]
    assert at["at"] == "start" and "ValueError (in my own words)" in at["why_start"]
    assert [e["attempt"] for e in run.events("standby_lost") if "in my own words" in e["reason"]] == [2, 2]
    assert json.loads(run.cli("status", "run", "--json").stdout)["standby"]["at"] == "start"
    until(lambda: all(60 in trace(run, 2, rank) for rank in range(2)))
    run.cli("stop", "run", "--now")
    run.wait()

    # Then it may be told what its snapshots cost here.
    assert log(run, 1)[:2] == ["built 1 old", "restored 1 0 -1 .1"]
    assert log(run, 2)[0] == "built 2 new"
    assert (run.folder / "warmed1.0").exists() and not (run.folder / "warmed0.0").exists()
    for rank in range(2):
        traces = [trace(run, attempt, rank) for attempt in range(3)]
        assert min(traces[1]) == 1 and min(traces[2]) > 1
        assert traces[1].items() >= traces[0].items()
        assert all(digest == traces[1].get(step, digest) for step, digest in traces[2].items())
        assert 40 in traces[1]
    assert (
        f"opens {run.dir.path / 'mine'} for writing" in run.warnings() and "listens at ('127.0.0.1'" in run.warnings()
    )
    assert {cause for cause, _ in run.verdicts()} <= {"killed", "stopped"}


TRAINS = """
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ckpt = Checkpointer(model=model, optimizer=optimizer, park=True, every=None)
for step in range(ckpt.restore(), 10**6):
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    ckpt.step(step + 1)
    stepped()
    time.sleep(0.02)
"""
"""The end of a program that tells of its steps by `stepped()`, some fifty a second."""
BUILDS = (
    """
import json, os, subprocess, threading, time, torch
from pathlib import Path
from supervise import Checkpointer

attempt, nice = os.environ["SUPERVISE_ATTEMPT"], os.getpriority(os.PRIO_PROCESS, 0)
if not Path("go").exists():
    child = subprocess.Popen(["sleep", "600"])
    thread = threading.Thread(target=time.sleep, args=(600,), daemon=True)
    thread.start()
    orphan = int(subprocess.run(["sh", "-c", "sleep 600 >&- & echo $!"], stdout=subprocess.PIPE).stdout)
    Path("new").write_text(json.dumps([nice, [os.getpid(), thread.native_id, child.pid, orphan]]))
    Path("new").replace(f"builds{attempt}")
    while not Path("go").exists():
        time.sleep(0.02)
    child.kill()
    child.wait()
    os.kill(orphan, 9)

def stepped():
    if not Path(f"pid{attempt}").exists():
        Path("newer").write_text(str(os.getpid()))
        Path("newer").replace(f"pid{attempt}")

"""
    + TRAINS
)
"""A standby of it builds, with a thread, a child and an orphan, until there is a file `go`."""


def test_a_standby_builds_at_the_lowest_priority(run: Run) -> None:
    """Beside the training it takes no core that the training wants; and what it has started is as important as
    others from the moment of its release, though it is still building."""
    asked = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from trainer.rundir.machine.priority import lower_for_now"
    if subprocess.run(
        [sys.executable, "-c", f"{asked}; sys.exit(not lower_for_now())"], start_new_session=True
    ).returncode:
        pytest.skip("this user may not give a lower niceness")

    def nice(pids: list[int]) -> set[int]:
        return {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}

    def builds() -> Any:
        path = run.folder / "builds2"
        return json.loads(path.read_text()) if path.exists() else None

    usual, go = os.getpriority(os.PRIO_PROCESS, 0), run.folder / "go"
    go.touch()
    run.start("--nproc", "1", "--hang-timeout", "off", run.script(BUILDS))
    first: dict[str, Any] = until(lambda: parked(run, 0))
    assert nice(first["pids"]) == {usual}
    go.unlink()
    os.kill(int((run.folder / "pid0").read_text()), signal.SIGKILL)
    began_with, made = until(builds)
    assert began_with == LOWEST
    os.kill(first["pids"][0], signal.SIGKILL)
    until(lambda: nice(made) == {usual})
    go.touch()
    assert int(until(lambda: (run.folder / "pid2").exists() and (run.folder / "pid2").read_text())) == made[0]
    assert nice(made[:1]) == {usual}
    run.cli("stop", "run", "--now")
    run.wait()


LATE = (
    """
import os, time, torch, torch.distributed as dist
from pathlib import Path
from supervise import Checkpointer

attempt, rank = os.environ["SUPERVISE_ATTEMPT"], os.environ["RANK"]
Path(f"new{rank}").write_text(str(os.getpid()))
Path(f"new{rank}").replace(f"builds{attempt}.{rank}")
while attempt == "1":
    time.sleep(0.02)
dist.init_process_group("gloo")
torch.manual_seed(0)
stepped = bool
"""
    + TRAINS
)
"""The standby of attempt 0 never comes to restore(): it builds until it is killed."""


def test_a_rank_that_dies_before_its_first_beat(run: Run) -> None:
    """It was released while it was building. Its launcher would tell of it after the grace, or at the others' end."""
    run.start("--nproc", "2", "--grace", "1h", "--hang-timeout", "off", run.script(LATE))
    pids: list[int] = until(lambda: [int(path.read_text()) for path in sorted(run.folder.glob("builds1.*"))][1:])
    os.kill(int((run.folder / "builds0.1").read_text()), signal.SIGKILL)
    until(lambda: run.events("attempt_started")[1:])
    os.kill(pids[0], signal.SIGKILL)
    run.until_event("first_step", 2)
    assert run.verdicts() == [("killed", 1), ("killed", 1)]
    run.cli("stop", "run", "--now")
    assert run.wait() == 103
