"""A verdict's class comes from evidence: exception types, counters of the kernel, the last words in a log."""

from __future__ import annotations

import pytest

from supervisor.core.diagnosis.diagnose import diagnose, unlaunched
from supervisor.core.evidence import Evidence, Memory, OomKill
from supervisor.core.model import Cause, Exit, Observation, Raised, Verdict
from tests.support.failures import FULL_DISK, TRACEBACK, WATCHDOG, WORKER, kinds, of_one, wait_in_vain


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (
            kinds("torch.OutOfMemoryError", "RuntimeError", message="CUDA out of memory. Tried to allocate"),
            Cause.CUDA_OOM,
        ),
        (kinds("RuntimeError", message="CUDA error: out of memory"), Cause.CUDA_OOM),
        (kinds("torch.AcceleratorError", "RuntimeError", message="CUDA error: out of memory"), Cause.CUDA_OOM),
        (kinds("OSError", message="writing failed", errno=28), Cause.NO_SPACE),
        (kinds("OSError", message="quota", errno=122), Cause.NO_SPACE),
        (kinds("trainer.checkpoint.errors.CheckpointError", message=f"not saved: {FULL_DISK}"), Cause.NO_SPACE),
        (
            kinds("safetensors_rust.SafetensorError", message="I/O error: No space left on device (os error 28)"),
            Cause.NO_SPACE,
        ),
        (
            kinds("OSError", message=f"Caught OSError in DataLoader worker process 0. OSError: {FULL_DISK}"),
            Cause.NO_SPACE,
        ),
        (kinds("OSError", message="[Errno 98] Address already in use", errno=98), Cause.PORT_IN_USE),
        (
            kinds(
                "torch.distributed.DistNetworkError",
                "torch.distributed.DistError",
                "RuntimeError",
                message="EADDRINUSE",
            ),
            Cause.PORT_IN_USE,
        ),
        (kinds("trainer.checkpoint.errors.CheckpointMismatch", message="w: shape", exit_code=78), Cause.CHECKPOINT_BAD),
        (kinds("trainer.checkpoint.errors.NoUsableCheckpoint", message="none", exit_code=78), Cause.CHECKPOINT_BAD),
        (kinds("trainer.checkpoint.errors.ReplicasDiffer", message="w differs"), Cause.REPLICAS_DIFFER),
        (kinds("trainer.errors.NotFinite", message="loss is nan"), Cause.NAN),
        (kinds("NotFinite", message="loss is nan"), Cause.NAN),
        # Near misses: the words without the type, the type's name without the type.
        (kinds("ValueError", message="CUDA out of memory. Tried to allocate"), Cause.EXCEPTION),
        (kinds("ValueError", message=FULL_DISK), Cause.EXCEPTION),
        (kinds("__main__.OutOfMemoryError", "Exception", message="my queue is full"), Cause.EXCEPTION),
        (kinds("__main__.ConnectionError", "Exception", message="connection refused"), Cause.EXCEPTION),
        (kinds("MemoryError", message=""), Cause.EXCEPTION),
        (kinds("RuntimeError", message="out of memory"), Cause.EXCEPTION),
        (kinds("OSError", message="[Errno 2] No such file", errno=2), Cause.EXCEPTION),
        (kinds("SystemExit", message="78", exit_code=78), Cause.USER_ERROR),
    ],
    ids=lambda value: f"{value.type}-{value.message[:30]}" if isinstance(value, Raised) else value.value,
)
def test_exception_gives_cause(raised: Raised, cause: Cause) -> None:
    """The type, its errno, then its words: each class from what proves it, and nothing from words alone."""
    assert of_one(raised).cause is cause


def test_raised_from_counts() -> None:
    """An exception that wraps the real one does not hide it."""
    wrapped = kinds("__main__.SaveFailed", "Exception", because=(kinds("OSError", message=FULL_DISK, errno=28),))

    verdict = of_one(wrapped, full=("/data",))

    assert verdict.cause is Cause.NO_SPACE
    assert "SaveFailed" in verdict.reason and "/data" in verdict.reason


@pytest.mark.parametrize(
    ("full", "lines", "cause"),
    [(("/data",), (), Cause.NO_SPACE), ((), (), Cause.STARTUP_ERROR), (("/data",), ("usage: x",), Cause.STARTUP_ERROR)],
)
def test_speechless_on_a_full_disk(full: tuple[str, ...], lines: tuple[str, ...], cause: Cause) -> None:
    """A rank that ends at its start and has not even left a log has found no room for one, if a disk is full."""
    evidence = Evidence(full=full, lines={1: lines})
    look = Observation(100.0, exits=(Exit(1, 1, 99.0),), evidence=evidence)

    verdict = diagnose(look, False, -1)

    assert verdict is not None and verdict.cause is cause


def killed(memory: Memory, rank: int | None = 1) -> Verdict:
    evidence = Evidence(memory=memory, pids={None: 40, 0: 41, 1: 42})
    found = diagnose(Observation(now=100.0, exits=(Exit(rank, -9, 99.0),), evidence=evidence), True, 40)
    assert found is not None
    return found


def test_oom_kill_is_told_with_its_numbers() -> None:
    """The kernel's log names the pid, or else the counter of the memory group has risen: host_oom, and how full it
    was."""
    logged = Memory(1, (OomKill(42, "python", int(23.8e9), 24 * 10**9, 24 * 10**9),))
    counted = Memory(1, None, 24 * 10**9, 24 * 10**9)

    for verdict in (killed(logged), killed(counted)):
        assert (verdict.cause, verdict.rank, verdict.signal) == (Cause.HOST_OOM, 1, 9)
        assert (
            "rank 1 was killed by the kernel's OOM killer" in verdict.reason and "24.0 GB of 24.0 GB" in verdict.reason
        )
    assert "23.8 GB" in killed(logged).reason


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (Memory(0, ()), False),
        (Memory(0, None), False),
        # It killed somebody else: by the log, which names whom, whatever the counter says.
        (Memory(1, (OomKill(77),)), False),
        (Memory(None, None), True),
    ],
)
def test_any_other_sigkill_is_killed(memory: Memory, said: bool) -> None:
    """A person's SIGKILL, or a fault's, stays what it is; where nothing could be read, the reason says so."""
    verdict = killed(memory)

    assert verdict.cause is Cause.KILLED
    assert ("nothing here tells" in verdict.reason) is said


def test_launcher_killed_by_the_oom_killer() -> None:
    """It is host_oom too, not a launcher that died of nobody knows what."""
    oom = Memory(1, (OomKill(40, "python", 10**9),))

    assert killed(oom, None).cause is Cause.HOST_OOM
    assert killed(Memory(0, ()), None).cause is Cause.LAUNCHER_DIED


def test_dataloader_worker_is_named() -> None:
    """The rank raises, but the worker died: of the OOM killer, of somebody's SIGKILL, or by itself."""
    from_kill = kinds("RuntimeError", message="DataLoader worker (pid 55) is killed by signal: Killed. ")
    raised = kinds("RuntimeError", message=WORKER, because=(from_kill,))

    oom = of_one(raised, memory=Memory(1, (OomKill(55, "pt_data_worker", 10**9),)))
    shot = of_one(raised, memory=Memory(0, ()))
    crashed = of_one(
        kinds("RuntimeError", message="DataLoader worker (pid 55) is killed by signal: Segmentation fault. ")
    )
    left = of_one(kinds("RuntimeError", message=WORKER))

    assert [v.cause for v in (oom, shot, crashed, left)] == [
        Cause.HOST_OOM,
        Cause.KILLED,
        Cause.SEGFAULT,
        Cause.EXCEPTION,
    ]
    for verdict in (oom, shot, crashed):
        assert "rank 0's DataLoader worker (pid 55)" in verdict.reason and verdict.signal is None
    assert "(pid(s) 55)" in left.reason


def test_abort_of_the_watchdog() -> None:
    """NCCL's watchdog aborts the process and leaves only words; an abort without them is one."""
    alone = Exit(1, -6, 99.1)

    assert wait_in_vain(alone, lines={1: WATCHDOG}).cause is Cause.NCCL_OR_GLOO_TIMEOUT
    assert (
        wait_in_vain(alone, lines={1: ("watchdog caught collective operation timeout, I dreamt",)}).cause is Cause.ABORT
    )
    assert wait_in_vain(alone, lines={1: ("free(): invalid pointer",)}).cause is Cause.ABORT


@pytest.mark.parametrize(
    ("status", "lines", "cause"),
    [
        (1, TRACEBACK, Cause.CUDA_OOM),
        (1, tuple(f"[rank0]: {line}" for line in TRACEBACK), Cause.CUDA_OOM),
        (1, (*TRACEBACK[:3], f"OSError: {FULL_DISK}", "saving failed, giving up"), Cause.NO_SPACE),
        (75, TRACEBACK, Cause.PREEMPTED),
        # A script that got over it, and one that only talks.
        (1, (*TRACEBACK, *(f"step {step}" for step in range(9))), Cause.EXCEPTION),
        (1, ("torch.OutOfMemoryError: CUDA out of memory",), Cause.EXCEPTION),
        (1, ("Traceback (most recent call last):",), Cause.EXCEPTION),
        (-9, TRACEBACK, Cause.KILLED),
    ],
)
def test_last_words_of_a_script_that_exits_by_itself(status: int, lines: tuple[str, ...], cause: Cause) -> None:
    """A traceback that is the last thing in the log is as good as an exception on record; other talk proves nothing."""
    assert wait_in_vain(Exit(0, status, 99.0), lines={0: lines}).cause is cause


def test_talk_of_memory_is_no_failure() -> None:
    """A script that prints what a failed one would, and exits with 0, has finished."""
    exits = Exit(0, 0, 99.0), Exit(None, 0, 99.1)

    assert wait_in_vain(*exits, lines={0: TRACEBACK}).cause is Cause.FINISHED


def test_launcher_tells_what_stopped_it() -> None:
    """A launcher that could not get its port, or its folder, says so in its log."""
    words = (*TRACEBACK[:3], "torch.distributed.DistNetworkError: The server socket has failed to listen: EADDRINUSE")
    exit_ = Exit(None, 1, 99.0)

    assert wait_in_vain(exit_, lines={None: words}).cause is Cause.PORT_IN_USE
    assert wait_in_vain(exit_, lines={None: words[:3]}).cause is Cause.LAUNCHER_DIED


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)", Cause.NO_SPACE),
        (
            "DataLoader worker (pid 55) is killed by signal: Bus error. "
            "It is possible that dataloader's workers are out of shared memory. "
            "Please try to raise your shared memory limit",
            Cause.SEGFAULT,
        ),
    ],
    ids=["refused", "SIGBUS"],
)
def test_too_little_shared_memory(message: str, cause: Cause) -> None:
    """Whatever torch says of it, the reason says how to have more."""
    verdict = of_one(kinds("RuntimeError", message=message), shm=64 << 20)
    assert verdict.cause is cause and "/dev/shm has 67.1 MB" in verdict.reason and "--shm-size" in verdict.reason


def test_a_launch_that_a_full_disk_refuses() -> None:
    """What the system refuses for want of room is a cause that time may cure, and no mistake of the script's."""
    verdict = unlaunched(Observation(now=1.0, launch_error=FULL_DISK))
    assert verdict.cause is Cause.NO_SPACE
    assert unlaunched(Observation(now=1.0, launch_error="[Errno 13] Permission denied")).cause is Cause.STARTUP_ERROR
