"""What the supervisor has seen of ranks that failed, for tests of the verdict."""

from __future__ import annotations

from supervisor.core.diagnosis.diagnose import diagnose
from supervisor.core.evidence import Evidence
from supervisor.core.model import Exit, Observation, Raised, RankView, Verdict
from trainer.rundir.codes import Phase

GLOO = "Connection closed by peer [127.0.0.1]:4242"
RECV = (
    "[/w/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] "
    "Timed out waiting 2000ms for recv operation to complete"
)
WATCHDOG = (
    "[rank1]:[E124 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)",
    "terminate called after throwing an instance of 'c10::DistBackendError'",
)
FULL_DISK = "[Errno 28] No space left on device: 'model.pt'"
WORKER = "DataLoader worker (pid(s) 55) exited unexpectedly"
TRACEBACK = (
    "Traceback (most recent call last):",
    '  File "train.py", line 9, in step',
    "    loss.backward()",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
)


def seen(*exits: Exit, raised: tuple[Raised, ...] = (), now: float = 100.0) -> Observation:
    """A look at a group in which these have happened."""
    return Observation(now=now, exits=exits, raised=raised)


def error(rank: int, kind: str = "ValueError", message: str = "bad", at: float = 99.0) -> Raised:
    """An exception that a rank has recorded."""
    return Raised(rank, kind.rpartition(".")[2], message, "train.py:7 step", at, kinds=(kind,))


def kinds(*names: str, message: str = "bad", **fields: object) -> Raised:
    """An exception of rank 0, with the names of its classes."""
    return Raised(0, names[0].rpartition(".")[2], message, "t.py:1 f", 99.0, kinds=names, **fields)  # type: ignore[arg-type]


def of_one(raised: Raised, stepped: bool = True, standby_on_gpu: bool = False, **evidence: object) -> Verdict:
    """The verdict on one rank that has raised and gone."""
    exits = (Exit(raised.rank, raised.exit_code, 99.5),)
    found = diagnose(
        Observation(
            now=100.0,
            exits=exits,
            raised=(raised,),
            evidence=Evidence(**evidence),  # type: ignore[arg-type]
            standby_on_gpu=standby_on_gpu,
        ),
        stepped,
        40,
    )
    assert found is not None
    return found


def wait_in_vain(
    *exits: Exit, alive: tuple[int, ...] = (), raised: tuple[Raised, ...] = (), **lines: object
) -> Verdict:
    """The verdict on a group of which some ended and some live; `lines` is further evidence."""
    views = tuple(RankView(rank, 40, Phase.TRAIN, 90.0, True) for rank in alive)
    evidence = Evidence(**lines)  # type: ignore[arg-type]
    found = diagnose(Observation(now=100.0, ranks=views, exits=exits, raised=raised, evidence=evidence), True, 40)
    assert found is not None
    return found
