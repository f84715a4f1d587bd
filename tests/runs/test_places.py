"""Where people run it: no shared memory, or somebody who cleans it; a resolver that never answers; an address to meet
at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import TINY
from tests.support.supervised import SUPERVISE, Run, environment
from tests.support.waiting import until
from trainer.checkpoint.memory import snapshots
from trainer.rundir.layout import committed_steps
from trainer.rundir.machine.shm import segment_of

as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can have mounts, a network and a host name of its own"
)
READ_ONLY = 'mount -t tmpfs -o ro none /dev/shm && exec "$@"'
ABSENT = """
mkdir -p "$HERE/dev" && for node in null zero full random urandom tty; do cp -a /dev/$node "$HERE/dev/"; done &&
mount --rbind "$HERE/dev" /dev && exec "$@"
"""
SILENT = """
hostname nowhere.invalid && ip link set lo up && ip addr add 10.87.6.7/24 dev lo || exit 99
echo 'nameserver 127.0.0.1\noptions timeout:30 attempts:2' > "$HERE/resolv.conf"
echo > "$HERE/hosts"
mount --bind "$HERE/resolv.conf" /etc/resolv.conf && mount --bind "$HERE/hosts" /etc/hosts || exit 99
exec 8< <(exec "$PYTHON" -c 'import socket, time
hole = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
hole.bind(("127.0.0.1", 53))
print(flush=True)
time.sleep(600)')
hole=$!; read -r _ <&8; "$@" & launch=$!
wait $launch; code=$?; kill $hole; exit $code
"""
"""A host whose name nobody knows, with a server of names that takes every question and answers none."""
ADDRESS = """
import os
open("address" + os.environ["RANK"], "w").write(os.environ["MASTER_ADDR"])
exec(open("trains.py").read())
"""
TRAINS = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False) if MEETS else None
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(20):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""


def _in(place: str, run: Run, *flags: str) -> list[str]:
    """How to start something in namespaces of its own, after `place`; skips where there are none."""
    through = [
        "unshare",
        "-m",
        *flags,
        "env",
        f"HERE={run.folder}",
        f"PYTHON={sys.executable}",
        "bash",
        "-c",
        place,
        "bash",
    ]
    if subprocess.run([*through, "true"], check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("no such namespaces here")
    return through


@as_root
@pytest.mark.parametrize("kind", ["read-only, forks", pytest.param("absent, cold", marks=pytest.mark.long)])
def test_without_shared_memory(run: Run, kind: str) -> None:
    """A run with a kill goes on from the disk and trains to its end; one line, at launch, says what is missing."""
    place, options = (READ_ONLY, []) if "forks" in kind else (ABSENT, ["--no-standby"])
    run.start(
        *("--nproc", "2", *options, "--inject", "kill:rank=1@step=12"),
        *("--", *TINY, "--steps", "20", "--checkpoint-every", "5"),
        through=_in(place, run),
    )
    assert run.wait() == 0
    assert run.verdicts() == [("killed", 1), ("finished", None)]
    assert [e["step"] for e in run.events("resumed")] == [0, 10]
    assert committed_steps(run.dir.checkpoints)[-1] == 20
    (warning,) = run.events("warning")
    assert warning["text"].startswith(f"/dev/shm is {'not there' if options else 'read-only'}: no snapshots")
    looked = subprocess.run(
        [*_in(place, run), SUPERVISE, "doctor", "--json"],
        cwd=run.folder,
        env=environment(),
        capture_output=True,
        check=False,
    )
    found = {check["name"]: check for check in json.loads(looked.stdout)["checks"]}["shm"]
    assert found["verdict"] == "warn" and found["text"] in warning["text"]


def remove(segment: Path) -> None:
    """It is gone at once, though somebody may just make a file in it."""
    gone = segment.rename(segment.with_name(f"{segment.name}-gone"))
    shutil.rmtree(gone)


def test_somebody_cleans_shared_memory(run: Run) -> None:
    """Training goes on, with new snapshots; a kill before there are any goes on from the disk, and that is said."""
    run.start("--nproc", "2", "--", *TINY, "--steps", "100000", "--checkpoint-every", "off", "--snapshot-every", "1")
    assert run.process is not None
    run.until_event("standby_ready")
    segment = segment_of(run.mark())
    before = until(lambda: snapshots.newest_snapshot(segment))
    remove(segment)
    again = until(lambda: snapshots.newest_snapshot(segment))
    saved = until(lambda: committed_steps(run.dir.checkpoints))[-1]
    assert before <= saved <= again

    # The supervisor, too: it would find the ranks that are stopped, and go on from what is about to be removed.
    pids = [run.process.pid, *run.events("group_ready")[0]["pids"]]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    remove(segment)
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    run.process.send_signal(signal.SIGCONT)
    run.until_event("first_step", 2)
    until(lambda: snapshots.newest_snapshot(segment))
    run.cli("stop", "run")
    assert run.wait() == 103
    assert run.events("resumed")[1]["step"] == saved
    # On a busy machine it is also said, and rightly, that a snapshot at every step costs much.
    told = [line for line in run.warnings().splitlines() if "of the time" not in line]
    assert ["another program has removed" in line for line in told] == [True, True]


@as_root
@pytest.mark.parametrize("option", [[], pytest.param(["--no-standby"], marks=pytest.mark.long)], ids=["forks", "cold"])
def test_a_resolver_that_never_answers(run: Run, option: list[str]) -> None:
    """No start and no restart waits for it, and the ranks meet, at the address that was asked for, if one was."""
    run.script("MEETS = 0" + TRAINS, "trains.py")
    where = ["--local-addr", "10.87.6.7"] if option else []
    run.start(
        *("--nproc", "2", *option, *where, "--inject", "kill:rank=1@step=10", run.script(ADDRESS)),
        through=_in(SILENT, run, "-n", "-u"),
    )
    assert run.wait() == 0
    # A question is given up after a minute.
    began = [event["mono"] for event in run.events("attempt_started")]
    ready = [event["mono"] for event in run.events("group_ready")]
    assert len(ready) == 2 and all(b - a < 25 for a, b in zip(began, ready, strict=True))
    assert {(run.folder / f"address{rank}").read_text() for rank in range(2)} == {where[1] if where else "127.0.0.1"}


@pytest.mark.parametrize("address", ["192.0.2.77", "0.0.0.0", "::", "no.such.name.invalid", "a" * 300, ""])
def test_an_address_that_is_not_here(run: Run, address: str) -> None:
    """One line, exit code 2, and nothing is left."""
    run.script("print(1)")
    for options in (["--run-dir", "run"], []):
        done = run.cli("launch", "--local-addr", address, *options, "script.py", check=2)
        assert done.stderr.count("\n") == 1 and "--local-addr" in done.stderr
    assert sorted(path.name for path in run.folder.iterdir()) == ["script.py"]


@as_root
@pytest.mark.parametrize("mount", ["ro", "size=4k", "size=8k", "nr_inodes=2", "nr_inodes=4", "nr_inodes=6"])
def test_a_folder_that_takes_nothing(run: Run, mount: str) -> None:
    """Read-only, or full at one moment of a launch or another: one line, exit code 2, and nothing is left."""
    (run.folder / "small").mkdir()
    script = run.folder / run.script("print(1)")
    place = f'mount -t tmpfs -o {mount} none "$HERE/small" && cd "$HERE/small" && "$@"; code=$?; ls -A; exit $code'
    launch = [SUPERVISE, "launch", "--inject", "kill@step=5", "--no-standby", str(script)]
    done = subprocess.run([*_in(place, run), *launch], env=environment(), capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done
    assert "cannot be" in done.stderr


def test_a_folder_that_is_gone(run: Run) -> None:
    """Who launches where there is no folder any more is told so."""
    gone = run.folder / "gone"
    gone.mkdir()
    command = ["sh", "-c", f'rmdir {gone} && "$@"', "sh", SUPERVISE, "launch", str(run.folder / run.script("print(1)"))]
    done = subprocess.run(
        command, cwd=gone, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "current folder has been removed" in done.stderr
    assert sorted(Path(run.folder).iterdir()) == [run.folder / "script.py"]


def test_a_user_that_nobody_knows(run: Run) -> None:
    """Without a passwd entry and a HOME: a launch with a kill, status, gc and stop work."""
    nobody = ["unshare", "--user", "--map-user=4242", "--map-group=4242", "env", "-u", "HOME", "-u", "XDG_STATE_HOME"]
    if subprocess.run([*nobody, "true"], check=False, capture_output=True, timeout=120).returncode:
        pytest.skip("no user namespaces here")
    run.script(TRAINS.replace("MEETS", "0"))
    run.start("--nproc", "2", "--inject", "kill:rank=1@step=10", "script.py", through=nobody)
    assert run.wait() == 0
    assert run.verdicts() == [("killed", 1), ("finished", None)]
    for command in ("status", "stop", "gc"):
        subprocess.run([*nobody, SUPERVISE, command, "run"], cwd=run.folder, env=environment(), check=True, timeout=120)
