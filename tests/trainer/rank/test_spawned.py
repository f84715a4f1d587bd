"""Scripts that start their ranks themselves: these are seen as ranks, by their own numbers, whatever started them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from supervisor.core.diagnosis.diagnose import diagnose
from supervisor.core.model import SCRIPT, Cause, Exit
from tests.support.failures import error, seen
from tests.support.supervised import Run
from tests.support.waiting import until
from trainer.rundir.codes import Phase
from trainer.rundir.records.beats import Role, Source, claim, create_beats, last_beats

TRAINING = '''
import os, signal, sys, time, torch, torch.distributed as dist
FAULTS = dict(part.split("=") for part in os.environ.get("FAULTS", "").split(",") if part)

def train(rank, world, steps=30):
    """Trains on from its file; rank 1 meets the fault of this attempt at step 12."""
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    start = 0
    if os.path.exists("state.pt"):
        state = torch.load("state.pt")
        model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); start = state["step"]
    open(f"rank{rank}.attempt" + os.environ["SUPERVISE_ATTEMPT"], "w").write(f"{os.getpid()} {start}")
    for step in range(start + 1, steps + 1):
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(step * world + rank))
        optimizer.zero_grad(); model(data).square().mean().backward(); optimizer.step()
        if rank == 0 and step % 5 == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "new.pt")
            os.replace("new.pt", "state.pt")
        time.sleep(0.02)
        if rank == 1 and step == 12:
            fault(FAULTS.get(os.environ["SUPERVISE_ATTEMPT"]))
    if rank == 0:
        torch.save(model.state_dict(), "final.pt")
    dist.barrier()
    dist.destroy_process_group()

def fault(kind):
    if kind == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stop": os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "raise": raise ValueError("in my own words")
    if kind == "absent": time.sleep(10000)
    while kind == "seen" and not os.path.exists("seen"): time.sleep(0.02)

def free_port():
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
'''

MP_SPAWN = """
# As PyTorch's imagenet example with --multiprocessing-distributed.
import sys, torch.distributed as dist, torch.multiprocessing as mp
from training import free_port, train

def main_worker(gpu, world, url):
    dist.init_process_group("gloo", init_method=url, world_size=world, rank=gpu)
    train(gpu, world)

if __name__ == "__main__":
    mp.spawn(main_worker, nprocs=2, args=(2, f"tcp://127.0.0.1:{free_port()}"))
    open("spawned", "w").close()
"""

FORKED = """
# multiprocessing.Process by fork; each rank has a DataLoader whose workers are forks, too.
import os, sys, multiprocessing as mp, torch, torch.distributed as dist
from training import free_port, train

class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return torch.ones(1) * os.getpid()

def worker(rank, world, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    loader = iter(torch.utils.data.DataLoader(Numbers(), num_workers=1))
    list(loader)
    train(rank, world)

if __name__ == "__main__":
    port = free_port()
    ranks = [mp.get_context("fork").Process(target=worker, args=(rank, 2, port)) for rank in range(2)]
    for rank in ranks: rank.start()
    for rank in ranks: rank.join()
    sys.exit(max(abs(rank.exitcode) for rank in ranks))
"""

POPEN = """
# As Lightning's own launcher: the script is rank 0, and starts itself again as the others.
import json, os, subprocess, sys, torch.distributed as dist
from training import free_port, train

if "LOCAL_RANK" not in os.environ:
    ours = ("RANK", "WORLD", "MASTER", "TORCHEL")
    told = {name: value for name, value in os.environ.items() if name.startswith(ours)}
    open("told", "a").write(json.dumps(told) + "\\n")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE="2", LOCAL_RANK="0", RANK="0")
    env = {**os.environ, "LOCAL_RANK": "1", "RANK": "1"}
    subprocess.Popen([sys.executable, *sys.argv], env=env)
dist.init_process_group("gloo")
train(dist.get_rank(), dist.get_world_size())
"""

TOLERANT = """
# Workers that each train by themselves, one of which the script does without, and another one that it ends: once all
# of them were seen.
import multiprocessing as mp, os, signal, sys, time, torch

def alone(i):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    while i == 2 or not os.path.exists("seen"):
        model(torch.ones(1, 2)).sum().backward(); optimizer.step(); time.sleep(0.02)
    if i == 1: os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    workers = [mp.get_context("fork").Process(target=alone, args=(i,)) for i in range(3)]
    for worker in workers: worker.start()
    workers[0].join(); workers[1].join(); time.sleep(1.0); workers[2].terminate(); workers[2].join()
    sys.exit(0 if [w.exitcode for w in workers] == [0, -9, -15] else 1)
"""


@pytest.fixture
def started(run: Run) -> Run:
    run.script(TRAINING, "training.py")
    return run


def ranks_of(run: Run, attempt: int) -> dict[int, int]:
    """By rank, the pid that the supervisor was told of in that attempt."""
    return {e["rank"]: e["pid"] for e in run.events("rank_joined") if e["attempt"] == attempt}


def own_words(run: Run, attempt: int, rank: int) -> tuple[int, int]:
    """The pid of that rank, and the step that it went on from, as it says itself."""
    pid, start = (run.folder / f"rank{rank}.attempt{attempt}").read_text().split()
    return int(pid), int(start)


@pytest.mark.parametrize("ends", [False, pytest.param(True, marks=pytest.mark.long)])
def test_torch_multiprocessing(started: Run, ends: bool) -> None:
    """Ranks of mp.spawn are killed and raise, each as itself; restarts go on from the script's own file, to the end if
    they may."""
    run = started
    script = run.script(MP_SPAWN)

    # As on a kernel that tells how a process ended to nobody but its parent, where that is quick to ask.
    old = "import _supervisor.process.reaper as p; p._told_status = p._pidfd_status = lambda _: None\n"
    run.start(
        "--max-restarts",
        "9" if ends else "1",
        script,
        program=[sys.executable, "-c", f"{old}from _supervisor.__main__ import main; main()"],
        FAULTS="0=kill,1=raise",
        OMP_NUM_THREADS="1",
    )
    assert run.wait(240) == (0 if ends else 100)

    assert run.verdicts() == [("killed", 1), ("exception", 1), ("finished", None)][: 2 + ends]
    first, second = run.events("verdict")[:2]
    assert (first["signal"], first["step"]) == (9, 12)
    assert "ValueError: in my own words" in second["reason"] and "training.py" in second["frame"]
    assert (run.folder / "spawned").exists() is (run.folder / "final.pt").exists() is ends
    for attempt, start in enumerate((0, 10, 10)[: 2 + ends]):
        assert [own_words(run, attempt, rank)[1] for rank in range(2)] == [start, start]
        assert ranks_of(run, attempt) == {rank: own_words(run, attempt, rank)[0] for rank in range(2)}
    assert "ValueError: in my own words" in run.dir.attempt(1).rank_log(1).read_text()


def test_forked_ranks_hang(started: Run) -> None:
    """A stopped rank and one that stays away from a collective are found, with their places; a DataLoader's worker is
    no rank, nor is the script that waits for all."""
    run = started
    script = run.script(FORKED)

    run.start(script, FAULTS="0=stop,1=absent,2=seen", OMP_NUM_THREADS="1")
    until(lambda: len(ranks_of(run, 2)) == 2, 120)
    workers = until(
        lambda: [w for w in json.loads(run.cli("status", "run", "--json").stdout)["workers"] if w["step"] > 10]
    )
    (run.folder / "seen").touch()
    assert run.wait(240) == 0

    assert {worker["pid"] for worker in workers} <= set(ranks_of(run, 2).values())
    assert run.verdicts() == [("stopped", 1), ("hang", 1), ("finished", None)]
    hung = run.events("verdict")[1]
    assert "fault (training.py:" in hung["reason"] and hung["detect_s"] < 30
    groups = run.dir.attempt(1).groups.read_text()
    assert "rank 0: " in groups and "rank 1: " in groups and "rank 2" not in groups
    for attempt in range(3):
        assert ranks_of(run, attempt) == {rank: own_words(run, attempt, rank)[0] for rank in range(2)}


def test_a_launcher_of_its_own(started: Run) -> None:
    """With --spawns a script finds the environment of plain python, with what its user has said; it is rank 0 itself,
    and rank 1 that it starts is killed. The user's own sitecustomize is as it was."""
    run = started
    script = run.script(POPEN)
    (run.folder / "site").mkdir()
    run.script("import os; open('site-' + str(os.getpid()), 'w').close()", "site/sitecustomize.py")

    run.start(
        "--spawns", script, FAULTS="0=kill", OMP_NUM_THREADS="1", MASTER_PORT="123", PYTHONPATH=str(run.folder / "site")
    )
    assert run.wait(240) == 0

    assert run.verdicts() == [("killed", 1), ("finished", None)]
    assert set((run.folder / "told").read_text().split("\n")) == {'{"MASTER_PORT": "123"}', ""}
    for attempt in range(2):
        assert ranks_of(run, attempt) == {1: own_words(run, attempt, 1)[0]}
        assert (run.folder / f"site-{own_words(run, attempt, 1)[0]}").exists()
    assert run.launch("--spawns", "--nproc", "2", script) == 2


def test_what_the_script_does_without(run: Run) -> None:
    """Children that train alone are seen; their ends are the script's affair as long as it goes on."""
    run.start(run.script(TOLERANT), OMP_NUM_THREADS="1")
    beats = run.dir.attempt(0).beats
    until(lambda: len([beat for beat in last_beats(beats) if beat.step > 5]) == 3)
    (run.folder / "seen").touch()
    assert run.wait() == 0

    assert run.verdicts() == [("finished", None)]
    assert len(ranks_of(run, 0)) == 3


def test_numbers_are_claimed(tmp_path: Path) -> None:
    """A number is one living process's; the script gives its own up unless it trains."""
    path = tmp_path / "beats"
    create_beats(path, 1)
    me, other = os.getpid(), os.getppid()
    script = claim(path, 0, me, Role.LAUNCHED)
    assert script is not None

    child = claim(path, 0, other, Role.SPAWNED | Role.GROUPED)
    assert child is not None and not script.mine
    script.step(7, Source.HOOK)
    script.phase(Phase.TEARDOWN)
    assert [(beat.pid, beat.step, beat.phase) for beat in last_beats(path)] == [(other, 0, Phase.STARTUP)]
    assert claim(path, 0, me, Role.SPAWNED | Role.GROUPED) is None
    assert claim(path, 10**6, me, Role.SPAWNED) is None

    free = claim(path, None, me, Role.SPAWNED)
    assert free is not None and free.rank == 1
    child.leave()
    trains = claim(path, 0, me, Role.LAUNCHED)
    assert trains is not None
    trains.step(1, Source.HOOK)
    assert claim(path, 0, other, Role.SPAWNED | Role.GROUPED) is None


def test_the_script_follows_its_ranks() -> None:
    """What the script says of a rank that has failed is no cause; what it raises itself is; what it ended is no
    failure."""
    said = error(SCRIPT, "torch.multiprocessing.spawn.ProcessException", "process 1 terminated")
    rank = diagnose(seen(Exit(1, -9, 99.9), raised=(said,)), True, 5)
    assert rank is not None and (rank.rank, rank.cause) == (1, Cause.KILLED)

    ended = Exit(1, -15, 99.0, spared=True), Exit(2, -9, 99.0, spared=True)
    assert diagnose(seen(*ended), True, 5) is None

    own = diagnose(seen(*ended, Exit(SCRIPT, 1, 99.5), raised=(error(SCRIPT, "ValueError", "bad", at=98.0),)), True, 5)
    assert own is not None and own.rank is None and own.reason.startswith("the script raised ValueError: bad")
