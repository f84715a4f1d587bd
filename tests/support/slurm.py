"""A Slurm for one test: of one node, on this machine, or of several, on machines of their own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.machines import Machine
from tests.support.ports import free_port
from tests.support.waiting import until

MISSING = os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch")))
"""Whether it cannot be started here: slurmd needs root."""
KILL_WAIT = 12
_CONF = """
ClusterName=test
SlurmctldHost={controller}({address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
CredType=cred/munge
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool-%n
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd-%n.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait={kill_wait}
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(at: Path) -> Iterator[dict[str, str]]:
    """The environment for its commands, of a Slurm whose one node is this machine. At the end its daemons are gone.
    `at` is a short path: it holds a socket."""
    here = socket.gethostname()
    env = _configured(at, (here, "127.0.0.1"), {here: "127.0.0.1"}, [free_port(), free_port()])
    with _daemons(at, env, {here: []}, []):
        yield env


@contextmanager
def slurm_over(at: Path, controller: Machine, nodes: Sequence[Machine]) -> Iterator[dict[str, str]]:
    """The same, with a node on each of `nodes`. Its commands are asked on the machine `controller`."""
    env = _configured(at, (controller.name, controller.address), {m.name: m.address for m in nodes}, [6817, 6818])
    with _daemons(at, env, {node.name: node.inside for node in nodes}, controller.inside):
        yield env


def _configured(at: Path, controller: tuple[str, str], nodes: Mapping[str, str], ports: list[int]) -> dict[str, str]:
    at.chmod(0o755)
    (at / "state").mkdir()
    for name in nodes:
        (at / f"spool-{name}").mkdir()
    key = at / "key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    lines = "\n".join(f"NodeName={name} NodeAddr={address} CPUs=2 RealMemory=1000" for name, address in nodes.items())
    where = {"controller": controller[0], "address": controller[1], "ports": ports}
    conf = at / "slurm.conf"
    conf.write_text(_CONF.format(at=at, nodes=lines, names=",".join(nodes), kill_wait=KILL_WAIT, **where))
    return {**os.environ, "SLURM_CONF": str(conf)}


@contextmanager
def _daemons(at: Path, env: dict[str, str], nodes: Mapping[str, list[str]], controller: list[str]) -> Iterator[None]:
    """They are up and the nodes idle. `nodes` and `controller` are what stands before a command that runs there."""
    munged = [f"--{name}-file={at}/{file}" for name, file in (("key", "key"), ("pid", "munged.pid"), ("log", "m.log"))]
    # --force: the folders above are not root's alone.
    commands = [["munged", "--force", f"--socket={at}/munge.socket", f"--seed-file={at}/seed", *munged]]
    commands += [[*controller, "slurmctld"], *([*through, "slurmd", "-N", name] for name, through in nodes.items())]
    try:
        for command in commands:
            subprocess.run(command, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        until(lambda: _states(controller, env) == ["idle"] * len(nodes))
        yield
    finally:
        daemons = [process for process in psutil.process_iter() if _is_of(process, str(at))]
        for process in daemons:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(daemons, 10)
        for process in alive:
            process.kill()


def _states(controller: list[str], env: dict[str, str]) -> list[str]:
    command = [*controller, "sinfo", "--noheader", "--Node", "--format=%T"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.split()


def _is_of(process: psutil.Process, at: str) -> bool:
    """Whether it is a daemon of the Slurm in that folder."""
    with contextlib.suppress(psutil.Error):
        known = process.name() in ("munged", "slurmctld", "slurmd", "slurmstepd")
        return known and (at in " ".join(process.cmdline()) or process.environ().get("SLURM_CONF", "").startswith(at))
    return False
