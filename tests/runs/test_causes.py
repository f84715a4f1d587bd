"""Causes with their evidence, in real runs: the kernel's OOM killer, full disks, taken ports, dead workers, waits in
vain."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.attempt.evidence import Case
from tests.support.supervised import Run
from trainer.rundir.machine import cgroup

MISFORTUNES = """
import datetime, os, sys, time, torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

attempt, rank, port, full = int(os.environ["SUPERVISE_ATTEMPT"]), int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2]

class Deadly(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 2:
            # Not while the rank is still fetching what came before: then it only sees a connection that broke.
            while not os.path.exists(f"fetched{attempt}"):
                time.sleep(0.01)
            self.die()
        return index

class Shot(Deadly):
    def die(self):
        os.kill(os.getpid(), 9)

class Greedy(Deadly):
    def die(self):
        from trainer.rundir.machine import cgroup
        cgroup.enter(cgroup.make(os.environ["SUPERVISE_MARK"], 64 << 20))
        hoard = [b"x" * (4 << 20) for _ in range(32)]

def writes():
    open("/dev/full", "w").write("x" * 9999)
def saves():
    torch.save({"w": torch.zeros(1 << 20)}, full + "/model.pt")
def binds():
    dist.TCPStore("127.0.0.1", port, 1, True)
def loads(dataset):
    for count, _ in enumerate(DataLoader(dataset, num_workers=1), start=1):
        if count == 2:
            open(f"fetched{attempt}", "w").close()
def catches():
    try:
        writes()
    except OSError:
        import traceback
        traceback.print_exc()
        sys.exit(3)
def waits():
    # Both give up at the same moment, however late one of them comes.
    end = torch.tensor(time.monotonic() + 1, dtype=torch.float64)
    dist.broadcast(end, 0)
    in_vain(end.item() - time.monotonic())
def in_vain(seconds):
    dist.irecv(torch.ones(1), 1 - rank).wait(datetime.timedelta(seconds=max(seconds, 0.01)))

# Longer than this machine may stand still: a rank is not to give up because the other one is late.
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
todo = [writes, saves, binds, lambda: loads(Shot()), lambda: loads(Greedy()), catches,
        waits, lambda: time.sleep(60)]
if attempt < len(todo):
    print("\\x1b[2Jattempt", attempt)
    if rank == 1:
        todo[attempt]()
    elif attempt == 6:
        waits()
    elif attempt == 7:
        in_vain(1)
    dist.all_reduce(torch.ones(1))
"""

STEPS = """
import time, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(6):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.02)
"""


def no_memory_group() -> str:
    """Why no memory group can be made here, or nothing."""
    try:
        group = cgroup.make("test.0", 64 << 20)
    except cgroup.NoGroup as error:
        return str(error)
    assert cgroup.remove(group.path)
    return ""


REFUSED = no_memory_group()
can_run_out_of_memory = pytest.mark.skipif(bool(REFUSED), reason=f"no memory group can be made: {REFUSED}")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    place = tmp_path / "full"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=False, capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def case(run: Run, attempt: int) -> dict[str, Any]:
    """The attempt's evidence.json, which has the fields of Case and no others."""
    body: dict[str, Any] = json.loads(run.dir.attempt(attempt).evidence.read_bytes())
    assert set(body) == set(Case.__dataclass_fields__)
    return body


@can_run_out_of_memory
def test_one_misfortune_after_another(run: Run, full_disk: Path, taken_port: int) -> None:
    """Rank 1 meets something else in every attempt, and each time the verdict says what it was; never the other
    rank."""
    budget = "--max-restarts", "99", "--no-progress-limit", "99"
    script = run.script(MISFORTUNES)

    assert run.launch("--nproc", "2", *budget, script, str(taken_port), str(full_disk)) == 0

    verdicts = run.events("verdict")
    assert [(v["cause"], v["rank"]) for v in verdicts] == [
        ("no_space", 1),
        ("no_space", 1),
        ("port_in_use", 1),
        ("killed", 1),
        ("host_oom", 1),
        ("no_space", 1),
        ("nccl_or_gloo_timeout", verdicts[6]["rank"]),
        ("hang", 1),
        ("finished", None),
    ]
    cases = [case(run, attempt) for attempt in run.dir.attempts()]
    assert [(c["cause"], c["rank"], c["reason"]) for c in cases] == [
        (v["cause"], v["rank"], v["reason"]) for v in verdicts
    ]
    (raised,) = [each for each in cases[0]["exceptions"] if each["rank"] == 1]
    assert raised["errno"] == 28 and raised["frames"]
    assert str(full_disk) in cases[1]["reason"]
    for number in (3, 4):
        assert "rank 1's DataLoader worker (pid " in cases[number]["reason"]
    # Others on this machine may meet the OOM killer at the same time.
    assert "was killed by SIGKILL" in cases[3]["reason"]
    assert [seen["status"] for seen in cases[5]["exits"] if seen["rank"] == 1] == [3]
    assert "No space left" in cases[5]["reason"]
    # Kept as it was printed, but nothing that a terminal would obey.
    assert all("\x1b" not in run.dir.attempt(n).evidence.read_text() for n in run.dir.attempts())
    assert "\x1b[2Jattempt 5" in cases[5]["last_lines"]["rank1.log"]
    status = json.loads(run.cli("status", "run", "--json").stdout)
    assert status["last_failure"]["cause"] == "hang"
    report = json.loads(run.cli("report", "run", "--json").stdout)
    assert [a["reason"] for a in report["attempts"]] == [v["reason"] for v in verdicts]


@can_run_out_of_memory
def test_oom_fault_is_the_kernels_own_kill(run: Run) -> None:
    """The `oom` fault is a real kill by the kernel, found as such with its numbers; its memory group is gone
    afterwards."""
    assert run.launch("--nproc", "2", "--inject", "oom:rank=1@step=3", run.script(STEPS)) == 0

    assert run.verdicts() == [("host_oom", 1), ("finished", None)]
    verdict = run.events("verdict")[0]
    assert verdict["signal"] == 9 and "67.1 MB" in verdict["reason"]
    assert run.events("warning") == []
    # Its peer may have left by itself before anybody looked.
    (gone,) = [seen for seen in case(run, 0)["exits"] if seen["rank"] == 1]
    assert (gone["status"], gone["signal"]) == (-9, "SIGKILL")
    assert gone["pid"] == run.events("group_ready")[0]["pids"][1]


def test_kill_stays_a_kill(run: Run) -> None:
    """What a fault kills, nobody takes for the work of the OOM killer; the attempt that finishes has its evidence
    too."""
    assert run.launch("--inject", "kill@step=3", run.script(STEPS)) == 0

    assert run.verdicts() == [("killed", 0), ("finished", None)]
    killed, finished = case(run, 0), case(run, 1)
    assert killed["machine"]["oom_kills"] in (0, None) or "OOM" not in killed["reason"]
    assert (finished["cause"], {e["status"] for e in finished["exits"]}) == ("finished", {0})
    assert {disk["path"] for disk in killed["disks"]} >= {str(run.dir.path)}
    for name in ("memory", "kernel_log"):
        assert (killed[name] is None) == (name in killed["unreadable"])


@can_run_out_of_memory
def test_gc_removes_memory_groups(run: Run) -> None:
    """A group that a dead run left is listed and removed; one of another run is not."""
    assert run.launch(run.script("")) == 0
    group = cgroup.make(f"{run.mark()}.0", 64 << 20)
    other = cgroup.make("other.0", 64 << 20)
    try:
        listed = json.loads(run.cli("gc", "run", "--json").stdout)["leftovers"]
        assert [(item["kind"], item["place"]) for item in listed] == [("cgroup", str(group.path))]
        run.cli("gc", "run", "--yes")
        assert not group.path.exists() and other.path.exists()
    finally:
        cgroup.remove(group.path)
        cgroup.remove(other.path)


LOSING = """
import os, torch
open("seen", "a").write(f"{os.environ['WORLD_SIZE']} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(3):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
if os.environ["RANK"] == "1":
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
"""


def test_a_run_without_its_lost_gpu(run: Run) -> None:
    """With one rank less, on the devices that are left; a later resume of it knows that."""
    options = ["--nproc", "2", "--policy", "gpu_lost=shrink"]
    assert run.launch(*options, run.script(LOSING), CUDA_VISIBLE_DEVICES="4,6") == 0

    assert run.verdicts() == [("gpu_lost", 1), ("finished", None)]
    assert (run.folder / "seen").read_text().splitlines()[-1] == "1 4"
    assert [event["nproc"] for event in run.events("attempt_started")] == [2, 1]
    known = json.loads(run.dir.run_json.read_bytes())
    assert (known["nproc"], known["devices"]) == (1, "4")
