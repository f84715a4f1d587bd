"""What starts a command on several nodes, and what its variables say of this one: srun, JobSet, torchrun's own.

Seen with Slurm 22.05 (srun(1), OUTPUT ENVIRONMENT VARIABLES); read for Kubernetes in JobSet 0.8 and Kubeflow Trainer
2.0, for torchrun in torch 2.13 (torch/distributed/run.py: PET_ before an option's name is its default).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from supervisor.core.nodes.hostlist import expand

Environ = Mapping[str, str]
ALONE = "to train on this node alone, give --nnodes 1"
_NO_STEPS = frozenset(str((1 << 32) - back) for back in range(2, 7))
"""Numbers of the shells and containers of a Slurm job, which are no steps that srun began (slurm.h: SLURM_BATCH_SCRIPT,
SLURM_INTERACTIVE_STEP and others)."""
_MPI = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "an MPI launcher"}
_NNODES = re.compile(r"(\d{1,6})(?::(\d{1,6}))?")
_BRACKET = re.compile(r"\[([^\[\]\s]+)\](?::(\d{1,9}))?")
_HOST = re.compile(r"([^:\[\]\s/]+)(?::(\d{1,9}))?")
_IPV6 = re.compile(r"[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(?:%\w+)?")


@dataclass(frozen=True, slots=True)
class Engine:
    """What gives a run its nodes and starts one supervisor on each, and what it says of this node. None: nothing."""

    name: str
    nnodes: tuple[int, int] | None = None
    """The least and the most nodes."""
    node: int | None = None
    host: str | None = None
    """The name or address of the node that leads."""
    port: int | None = None
    job: str = ""
    """What tells this job from another one on the same nodes; "" if nothing does."""
    incarnation: int = 0
    """How often the engine has started this job before."""


def engine_of(environ: Environ) -> Engine | None:
    """The engine that started this process, as one of several; None if none did.

    ValueError, in a sentence, if it was started in a way in which the nodes cannot train together.
    """
    return next((engine for asked in _ENGINES if (engine := asked(environ)) is not None), None)


def nodes_of(text: str, name: str) -> tuple[int, int]:
    """Least and most, from N or MIN:MAX. ValueError names the option or variable `name`."""
    found = _NNODES.fullmatch(text.strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if least < 1:
        raise ValueError(f"{name} {text}: write a number of nodes, or MIN:MAX, as in 2 or 1:2")
    if least > most:
        raise ValueError(f"{name} {text}: the minimum is above the maximum")
    return least, most


def endpoint_of(text: str, name: str) -> tuple[str, int | None]:
    """Host and port, from HOST[:PORT]; an IPv6 address with a port is written [ADDR]:PORT. Port 0 is none, as for
    torchrun. ValueError names `name`."""
    found = _BRACKET.fullmatch(text) or _HOST.fullmatch(text)
    host, port = text, None
    if found:
        host, port = found[1], int(found[2] or 0) or None
    elif not _IPV6.fullmatch(text):
        raise ValueError(f"{name} {text}: write HOST or HOST:PORT, as in node1:29400")
    if port is not None and port >= 1 << 16:
        raise ValueError(f"{name} {text}: a port is at most 65535")
    return host, port


ENGINES = ("srun", "JobSet", "PET_NNODES")
"""The names of those that end a node's part with the command that they have started."""


def _srun(environ: Environ) -> Engine | None:
    """A step of srun: one task on each of its nodes, the first of which leads."""
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")
    if not job or not step or step in _NO_STEPS:
        if (count := _number(environ, "SLURM_JOB_NUM_NODES", 1)) > 1:
            one = f"this Slurm job has {count} nodes (SLURM_JOB_NUM_NODES), and this is a shell on one of them"
            raise ValueError(f"{one}: put srun --ntasks-per-node=1 before supervise launch; {ALONE}")
        return None
    count, tasks = _number(environ, "SLURM_STEP_NUM_NODES", 1), _number(environ, "SLURM_STEP_NUM_TASKS", 1)
    if tasks != count:
        many = f"srun starts this command {tasks} times on {count} node{'s' * (count > 1)} (SLURM_STEP_NUM_TASKS)"
        raise ValueError(f"{many}, and it is one for each node: srun --ntasks-per-node=1; {ALONE}")
    if count == 1:
        return None
    hosts = expand(environ.get("SLURM_STEP_NODELIST", ""))
    if len(hosts) != count:
        raise ValueError(f"SLURM_STEP_NODELIST names {len(hosts)} nodes, and SLURM_STEP_NUM_NODES is {count}; {ALONE}")
    return Engine(
        "srun",
        (count, count),
        _number(environ, "SLURM_NODEID"),
        hosts[0],
        job=f"{job}.{step}",
        incarnation=_number(environ, "SLURM_RESTART_COUNT", 0),
    )


def _jobset(environ: Environ) -> Engine | None:
    """A pod of a JobSet, whose manifest hands its own name down. How many pods there are, no variable of it says."""
    name = environ.get("JOBSET_NAME")
    if not name or "JOB_COMPLETION_INDEX" not in environ:
        return None
    return Engine(
        "JobSet",
        node=_number(environ, "JOB_COMPLETION_INDEX"),
        host=f"{name}-{environ.get('REPLICATED_JOB_NAME', 'node')}-0-0.{name}",
        job=name,
        incarnation=_number(environ, "JOBSET_RESTART_ATTEMPT", 0),
    )


def _torchrun(prefix: str, environ: Environ) -> Engine | None:
    """The variables that torchrun reads (PET_NNODES …), or that people hand to it ("": NNODES …)."""
    text = environ.get(f"{prefix}NNODES", "")
    if not text or (not prefix and not _NNODES.fullmatch(text)):
        # A NNODES that is no number is not torchrun's.
        return None
    if (nnodes := nodes_of(text, f"{prefix}NNODES"))[1] == 1:
        return None
    host, port = environ.get(f"{prefix}MASTER_ADDR"), environ.get(f"{prefix}MASTER_PORT")
    place = f"{host}:{port}" if host and port and ":" not in host else host
    endpoint = environ.get(f"{prefix}RDZV_ENDPOINT") or place
    leader, listens = endpoint_of(endpoint, f"{prefix}MASTER_ADDR") if endpoint else (None, None)
    rank = environ.get(f"{prefix}NODE_RANK", "auto")
    node = None if rank in ("", "auto") else _number(environ, f"{prefix}NODE_RANK")
    return Engine(f"{prefix}NNODES", nnodes, node, leader, listens, environ.get(f"{prefix}RDZV_ID", ""))


def _pet(environ: Environ) -> Engine | None:
    return _torchrun("PET_", environ)


def _plain(environ: Environ) -> Engine | None:
    return _torchrun("", environ)


def _mpi(environ: Environ) -> Engine | None:
    """What starts a command once for each rank is no engine."""
    for name, who in _MPI.items():
        if (count := environ.get(name, "")).isdecimal() and int(count) > 1:
            raise ValueError(
                f"{who} starts this command {count} times ({name}), and it starts the ranks of a node itself: give "
                f"--nnodes, --node-rank and --rdzv-endpoint on each node; {ALONE}"
            )
    return None


_ENGINES: tuple[Callable[[Environ], Engine | None], ...] = (_srun, _jobset, _pet, _plain, _mpi)
"""The first one that answers is believed: what is nearest to the process comes first."""


def _number(environ: Environ, name: str, default: int | None = None) -> int:
    """ValueError if the variable is no number, or is missing and has no default."""
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch(r"\d{1,9}", text):
        raise ValueError(f"{name} is {text!r}, which is no number; {ALONE}")
    return int(text)
