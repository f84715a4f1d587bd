"""Nobody else gets in: where a run listens, and what another user of the machine can do with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.supervised import SUPERVISE, Run, environment
from tests.support.without_forks import WITHOUT_FORKS

NOBODY = 65534
ADDRESS = "10.87.6.5"
HOST = f"""
hostname nobody.knows.invalid && ip link set lo up && ip link add one type veth peer name other &&
ip addr add {ADDRESS}/24 dev one && ip link set one up && ip link set other up &&
{{ test ! -e /etc/resolv.conf || mount --bind /dev/null /etc/resolv.conf; }} && exec "$@"
"""
"""A host of its own: a name that nobody resolves, a loopback interface, and one that leads out. Its name server is
its own 127.0.0.1: the socket of a query to one out of reach would stay at 0.0.0.0 until it is closed."""
UNSHARED = ["unshare", "-n", "-u", "-m", "sh", "-c", HOST, "sh"]
MEETS = """
import os, socket, time, torch, torch.distributed as dist
rank, address = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
for meeting in range(2):
    dist.init_process_group("gloo")
    assert dist.get_world_size() == 2
    told = [os.getpid()]
    dist.broadcast_object_list(told, src=0)
    dist.barrier(dist.new_group([0, 1]))
    if meeting == 0:
        dist.destroy_process_group()
port = [0]
if rank == 0:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = [free.getsockname()[1]]
dist.broadcast_object_list(port, src=0)
said = os.environ.pop("TORCHELASTIC_USE_AGENT_STORE")
own, _, _ = next(dist.rendezvous(f"tcp://127.0.0.1:{port[0]}", rank, 2))
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = said
theirs = dist.TCPStore(*address, is_master=False)
for store in (own, theirs):
    store.set(f"here{rank}", "yes")
    store.wait([f"here{1 - rank}"])
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
while True:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    time.sleep(0.05)
    # Both leave in the same round, or one waits for the other.
    done = torch.tensor(float(os.path.exists("finish")))
    dist.all_reduce(done)
    if done:
        break
"""
"""Meets the other rank in every way there is: twice as a group, at a store of its own, and at the launcher's port."""
ATTACK = """
import base64, datetime, os, pickle, sys, torch.distributed as dist
ports, files, proof = eval(sys.argv[1]), eval(sys.argv[2]), sys.argv[3]
os.setgroups([]); os.setgid(65534); os.setuid(65534)
class Bomb:
    def __reduce__(self):
        return os.system, ("touch " + proof,)
bomb = pickle.dumps(Bomb())
written = 0
for port in ports:
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=60))
    keys = set(store.list_keys()) if hasattr(store, "list_keys") else set()
    keys |= {f"default_pg/0//cpu//{name}{rank}" for rank in range(2) for name in ("0/", "rank_")}
    for key in keys:
        store.set(key, bomb if "rdzv" not in key and "rendezvous" not in key else base64.b64encode(bomb))
        written += 1
for path in files:
    try:
        open(path, "r+b")
    except PermissionError:
        continue
    raise SystemExit(f"{path} is open to others")
print(written)
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, or have a network of its own")


def _network() -> bool:
    tools = all(map(shutil.which, ("unshare", "nsenter", "ip", "hostname", "mount")))
    return tools and subprocess.run([*UNSHARED, "true"], check=False).returncode == 0


class Place(NamedTuple):
    """Where something listens."""

    table: str
    address: str
    """In hex, or the name of a socket of the unix kind."""
    port: int


def _sockets(net: Path) -> dict[str, Place]:
    """What listens there, by inode."""
    found = {}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in (net / table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].rpartition(":")
            if fields[3] == ("0A" if table.startswith("tcp") else "07"):
                found[fields[9]] = Place(table, address, int(port, 16))
    for line in (net / "unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & 0x10000:
            found[fields[6]] = Place("unix", " ".join(fields[7:]) or "unnamed", 0)
    return found


def _descriptors(pid: int) -> Iterator[str]:
    """What they lead to."""
    yield from _opened(pid).values()


def _opened(pid: int) -> dict[str, str]:
    """What the descriptors of that process lead to, by their paths."""
    found = {}
    # It may end, or close one of them, while we look.
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[str(fd)] = str(fd.readlink())
    return found


def _listening(run: Run) -> set[Place]:
    """Where processes of the run listen. It has a network of its own, as soon as that is there."""
    assert run.process is not None
    theirs, ours = Path(f"/proc/{run.process.pid}"), Path("/proc/self")
    if (theirs / "ns/net").readlink() == (ours / "ns/net").readlink():
        return set()
    return set(_sockets(theirs / "net").values())


class Watch:
    """Looks all the time, in a thread, where the run listens; `seen` is everything."""

    def __init__(self, run: Run) -> None:
        self.seen: set[Place] = set()
        self._run, self._over = run, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        before: set[Place] = set()
        while not self._over.wait(0.02):
            try:
                now = _listening(self._run)
            except OSError:
                return  # the launch is over
            # One of UDP that is being connected is at 0.0.0.0 for a moment: of those, what stays there listens.
            self.seen |= (now & before) | {place for place in now if not place.table.startswith("udp")}
            before = now

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _outside(seen: set[Place]) -> set[Place]:
    """What of it can be reached from elsewhere, or by anybody under a name."""
    inside = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
    return {place for place in seen if place.address not in inside}


@as_root
@pytest.mark.parametrize("kind", ["fork", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("exec", "cold"))])
def test_a_run_listens_on_loopback_alone(run: Run, kind: str) -> None:
    """At no time, from launch to recovery, does anything of a run listen where others could reach it; and it trains
    where its host's name leads nowhere."""
    if not _network():
        pytest.skip("no network namespaces here")
    temporary = run.folder / "temporary"
    temporary.mkdir()
    program = {"exec": WITHOUT_FORKS}.get(kind)
    options = ["--no-standby"] if kind == "cold" else []
    run.start(
        *("--nproc", "2", "--grace", "5s", *options, run.script(MEETS)),
        program=program,
        through=UNSHARED,
        USE_LIBUV="0" if kind == "exec" else "1",
        TMPDIR=str(temporary),
    )
    watch = Watch(run)
    try:
        run.until_event("first_step")
        if kind != "cold":
            assert run.until_event("standby_ready")["kind"] == kind
        run.cli("inject", "run", "kill:rank=1")
        run.until_event("first_step", 2)
        ports = {place.port for place in _listening(run) if place.port}
        assert run.process is not None
        reach = (
            "import socket, sys\nfor port in eval(sys.argv[2]): print(socket.socket().connect_ex((sys.argv[1], port)))"
        )
        inside = ["nsenter", "-t", str(run.process.pid), "-n", sys.executable, "-c", reach]
        told = [
            subprocess.run([*inside, where, repr(ports)], capture_output=True, text=True, check=True).stdout.split()
            for where in ("127.0.0.1", ADDRESS)
        ]
        (run.folder / "finish").touch()
        assert run.wait() == 0
    finally:
        watch.stop()
    assert _outside(watch.seen) == set() and len(watch.seen) >= 8
    assert set(told[0]) == {"0"} and "0" not in told[1] and len(told[1]) == len(ports)
    assert [p.name for p in temporary.iterdir() if not p.name.startswith("torchinductor_")] == []


@as_root
def test_another_user_writes_where_the_ranks_meet(run: Run) -> None:
    """Whoever writes pickles and addresses into every store that he can reach has nothing run, and does not even
    disturb."""
    proof = run.folder / "proof"
    run.folder.chmod(0o777)
    run.start("--nproc", "2", "--grace", "5s", run.script(MEETS))
    run.until_event("first_step")
    standby = run.until_standby()
    launchers = [run.events("attempt_started")[0]["launcher_pid"], standby["launcher_pid"]]
    stores = [path for pid in launchers for path, link in _opened(pid).items() if "memfd:" in link]
    sockets = _sockets(Path("/proc/self/net"))
    held = {link for pid in launchers for link in _descriptors(pid)}
    ports = [place.port for inode, place in sockets.items() if f"socket:[{inode}]" in held]
    attack = [sys.executable, "-c", ATTACK, repr(ports), repr(stores), str(proof)]
    done = subprocess.run(attack, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and int(done.stdout) >= 8, done.stderr
    assert len(ports) == len(stores) == 2

    # torch's own rendezvous would look at its state within 5 s, and the one in waiting when it is let go.
    time.sleep(6)
    run.cli("inject", "run", "kill:rank=1")
    run.until_event("first_step", 2)
    (run.folder / "finish").touch()
    assert run.wait() == 0
    assert not proof.exists()
    assert run.verdicts() == [("killed", 1), ("finished", None)]


@as_root
def test_no_loopback_interface(run: Run) -> None:
    """Where the ranks could not reach each other nothing is started, and one line says what to do."""
    run.script("print('here')")
    command = ["unshare", "-n", SUPERVISE, "launch", "--run-dir", "run", "script.py"]
    done = subprocess.run(command, cwd=run.folder, env=environment(), capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip("no network namespaces here")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "ip link set lo up" in done.stderr
    assert run.dir.attempts() == []
    code = "import sys; from _supervisor.checkup.probes import network; sys.exit(network().verdict.value)"
    asked = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert asked.stderr == "bad\n"


def test_a_choice_of_the_user_stands(run: Run) -> None:
    """The ranks' libraries use the loopback interface, unless they were told another."""
    names = [f"{library}_SOCKET_IFNAME" for library in ("GLOO", "NCCL", "TP")]
    run.script(f"import os\nopen('seen', 'w').write(' '.join(os.environ[n] for n in {names}))")
    assert run.launch("script.py", NCCL_SOCKET_IFNAME="eth7") == 0
    assert (run.folder / "seen").read_text() == "lo eth7 lo"
