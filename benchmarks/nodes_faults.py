"""How long training over two nodes stands still after a fault, under torchrun and under supervise.

    python benchmarks/nodes_faults.py [--sides torchrun] [--faults rank node …] [--seconds 60] [--json FILE]

The nodes are namespaces of this machine's kernel (tests/support/machines.py; as root): network, processes, shared
memory and clock are each node's own. One rank a node. A fault strikes the second node once both ranks have done 20
steps. `still` is the time from the fault to the first step of a process that began after it, as the ranks note it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, machine, options, write

sys.path.append(str(ROOT))

from tests.support import step_notes
from tests.support.launched import environment
from tests.support.machines import Machine, missing, network

SCRIPT = str(ROOT / "tests" / "support" / "machine_trainer.py")
SUPERVISE = str(Path(sys.executable).with_name("supervise"))
PORT = 29400


def torchrun(machines: list[Machine], node: Machine, folder: Path) -> list[str]:
    """As its documentation has it for a job that may lose a node: c10d, 1:2 nodes; last_call is the wait for more."""
    where = [f"--rdzv-endpoint={machines[0].name}:{PORT}", f"--local-addr={node.address}", "--rdzv-id=job"]
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-conf=last_call_timeout=2", *where]
    logs = [f"--log-dir={folder / 'logs' / node.name}", "--redirects=3", "--max-restarts=3", "--nproc-per-node=1"]
    torch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", *rendezvous, *logs]
    return [*torch, SCRIPT, str(folder / "notes"), "1000000", "0.03", str(folder / "checkpoints")]


def supervise(machines: list[Machine], node: Machine, folder: Path) -> list[str]:
    where = ["--node-rank", str(node.number), "--rdzv-endpoint", f"{machines[0].name}:{PORT}"]
    ours = ["--nnodes", "1:2", *where, "--lease", "1s", "--run-dir", str(folder / "run"), "--nproc", "1"]
    return [SUPERVISE, "launch", *ours, SCRIPT, str(folder / "notes"), "1000000"]


SIDES = {"torchrun": torchrun, "supervise": supervise}


def _rank(folder: Path, node: Machine) -> None:
    newest = [noted for noted in step_notes.read(folder / "notes") if noted.host == node.name][-1]
    assert node.send(newest.pid, signal.SIGKILL)


def _agent(number: int) -> Callable[[Path, Machine], None]:
    def strike(folder: Path, node: Machine) -> None:
        for pid in node.pids().values():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"torch.distributed.run" in words or words[1:3] == [SUPERVISE.encode(), b"launch"]:
                assert node.send(_inside(node, pid), number)
                return
        raise AssertionError("no agent there")

    return strike


def _inside(node: Machine, outside: int) -> int:
    return next(pid for pid, known in node.pids().items() if known == outside)


def _cut(folder: Path, node: Machine) -> None:
    node.drop("sent")
    node.drop("received")


FAULTS: dict[str, tuple[str, Callable[[Path, Machine], None]]] = {
    "rank": ("SIGKILL of a rank of the second node", _rank),
    "node": ("every process of the second node dies, its kernel lives", lambda folder, node: node.kill_all()),
    "power": ("the second node loses its power", lambda folder, node: node.power_off()),
    "partition": ("nothing passes between the nodes", _cut),
    "sent": ("what the second node sends is lost", lambda folder, node: node.drop("sent")),
    "supervisor": ("SIGKILL of the second node's supervisor (torchrun's agent)", _agent(signal.SIGKILL)),
    "stopped": ("SIGSTOP of the second node's supervisor (torchrun's agent)", _agent(signal.SIGSTOP)),
}


def tried(side: str, fault: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One fault in one job."""
    (folder / "notes").mkdir(parents=True)
    with network(2) as machines:
        started = []
        for node in machines:
            env = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="eth0", PYTHONPATH=str(ROOT))
            command = SIDES[side](machines, node, folder)
            with (folder / f"{node.name}.log").open("w") as out:
                started.append(node.popen(command, env, stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        try:
            if not _waited(lambda: _stepping(folder, 2) >= 20, 120):
                return {"side": side, "fault": fault, "still_s": None, "what": "it never trained"}
            if side == "supervise":
                _waited(lambda: "standby_ready" in (folder / "run" / "events.jsonl").read_text(), 30)
                time.sleep(1.5)
            struck = time.time()
            FAULTS[fault][1](folder, machines[1])
            _waited(lambda: _first_after(folder, struck) is not None, seconds)
            first = _first_after(folder, struck)
            still = None if first is None else round(first - struck, 2)
            change = step_notes.changes(step_notes.read(folder / "notes"))[-1:]
            lost = change[0].lost if change else None
            return {"side": side, "fault": fault, "still_s": still, "lost": lost}
        finally:
            for node in machines:
                node.power_off()
            for process in started:
                # A nsenter stops with the process that it waits for.
                process.kill()
                process.wait()


def _stepping(folder: Path, world: int) -> int:
    """The newest step that all ranks have done."""
    last = [noted.steps[-1][0] if noted.steps else 0 for noted in step_notes.read(folder / "notes")]
    return min(last) if len(last) == world else 0


def _first_after(folder: Path, struck: float) -> float | None:
    """The first step of a rank that was not yet there at that time."""
    new = [noted for noted in step_notes.read(folder / "notes") if noted.released > struck and noted.steps]
    return min((noted.steps[0][1] for noted in new), default=None)


def _waited(what: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return False


def main() -> None:
    given = options(
        __doc__,
        ("--sides", {"nargs": "+", "choices": list(SIDES), "default": list(SIDES)}),
        ("--faults", {"nargs": "+", "choices": list(FAULTS), "default": list(FAULTS)}),
        ("--seconds", {"type": float, "default": 60.0, "help": "the longest wait for a step after the fault"}),
    )
    if why := missing():
        sys.exit(f"no nodes to be had here: {why}")
    here, rows = machine(), []
    print(f"{'fault':12}{'side':12}{'still':>12}  lost")
    for fault in given.faults:
        for side in given.sides:
            with tempfile.TemporaryDirectory(prefix="nodes-") as folder:
                row = tried(side, fault, given.seconds, Path(folder))
            rows.append(row)
            still = f"> {given.seconds:.0f} s" if row["still_s"] is None else f"{row['still_s']:.2f} s"
            print(f"{fault:12}{side:12}{row.get('what') or still:>12}  {row.get('lost')}", flush=True)
    write(given.json, "nodes_faults", here, given, {"faults": {f: FAULTS[f][0] for f in given.faults}, "rows": rows})


if __name__ == "__main__":
    main()
