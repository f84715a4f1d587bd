"""A Slurm of one node on this machine, for one test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.supervised import until

MISSING = os.geteuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch")))
"""Whether it cannot be started here: slurmd needs root."""
KILL_WAIT = 12
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={at}/munge.socket
CredType=cred/munge
StateSaveLocation={at}/state
SlurmdSpoolDir={at}/spool
SlurmctldPidFile={at}/slurmctld.pid
SlurmdPidFile={at}/slurmd.pid
SlurmctldLogFile={at}/slurmctld.log
SlurmdLogFile={at}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait={kill_wait}
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(at: Path) -> Iterator[dict[str, str]]:
    """The environment for its commands. At the end its daemons are gone. `at` is a short path: it holds a socket."""
    at.chmod(0o755)
    for name in ("state", "spool"):
        (at / name).mkdir()
    key = at / "key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o400)
    conf = at / "slurm.conf"
    conf.write_text(_CONF.format(at=at, host=socket.gethostname(), ports=_free_ports(), kill_wait=KILL_WAIT))
    env = {**os.environ, "SLURM_CONF": str(conf)}
    munged = [f"--{name}-file={at}/{file}" for name, file in (("key", "key"), ("pid", "munged.pid"), ("log", "m.log"))]
    # --force: the folders above are not root's alone.
    started = [["munged", "--force", f"--socket={at}/munge.socket", f"--seed-file={at}/seed", *munged]]
    try:
        for command in [*started, ["slurmctld"], ["slurmd"]]:
            subprocess.run(command, env=env, check=True, capture_output=True)
        idle = ["sinfo", "--noheader", "--format=%T"]
        until(lambda: subprocess.run(idle, env=env, capture_output=True, text=True, check=False).stdout == "idle\n")
        yield env
    finally:
        pids = [int(path.read_text()) for path in at.glob("*.pid")]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def _free_ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
