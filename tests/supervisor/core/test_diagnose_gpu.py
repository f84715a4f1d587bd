"""Faults of a GPU have names, by torch's, NCCL's and the kernel's own words; each text is a recorded one."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.attempt.records import exception_of
from supervisor.core.diagnosis.gpu import xids
from supervisor.core.evidence import Xid
from supervisor.core.model import Cause, Do, Exit, Ground, History, Policy, Raised, Verdict
from supervisor.core.policy import decide, learn
from tests.support import gpu_messages as said
from tests.support.failures import kinds, of_one, wait_in_vain
from trainer.rundir.codes import ExitCode
from trainer.rundir.files.codec import encode
from trainer.rundir.records.errors import Described, ErrorRecord

NEW, OLD = ("torch.AcceleratorError", "RuntimeError"), ("RuntimeError",)
NCCL = ("torch.distributed.DistBackendError", "torch.distributed.DistError", "RuntimeError")


@pytest.mark.parametrize(
    ("types", "message", "cause"),
    [
        (NEW, said.ASSERT, Cause.GPU_ASSERT),
        (OLD, said.cuda("device-side assert triggered"), Cause.GPU_ASSERT),
        (NEW, said.ILLEGAL, Cause.GPU_FAULT),
        (OLD, said.TRITON, Cause.GPU_FAULT),
        (OLD, said.CUBLAS, Cause.GPU_FAULT),
        (NEW, said.cuda("unspecified launch failure"), Cause.GPU_FAULT),
        (OLD, said.cuda("misaligned address"), Cause.GPU_FAULT),
        (NEW, said.ECC, Cause.GPU_LOST),
        (NEW, said.CONTAINED, Cause.GPU_FAULT),
        (OLD, said.TENSOR_MEMORY, Cause.GPU_FAULT),
        (NEW, said.BUSY, Cause.GPU_BUSY),
        (OLD, said.OLD_BUSY, Cause.GPU_BUSY),
        (NEW, said.TAKEN, Cause.CUDA_OOM),
        (OLD, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Cause.CUDA_OOM),
        (OLD, said.CUDNN_NO_MEMORY, Cause.CUDA_OOM),
        (OLD, said.CUDNN_NO_MEMORY.replace("DEVICE", "HOST"), Cause.CUDA_OOM),
        (NCCL, said.DUPLICATE, Cause.NCCL_ERROR),
        (NCCL, said.SYSTEM, Cause.NCCL_ERROR),
        (NCCL, said.REMOTE, Cause.NCCL_ERROR),
        (NCCL, said.NCCL_OOM, Cause.CUDA_OOM),
        (
            NCCL,
            said.NCCL_OOM.replace("Cuda failure 2 'out of memory'", "Failed to CUDA calloc 4 bytes"),
            Cause.CUDA_OOM,
        ),
        (OLD, "Triton Error [CUDA]: out of memory", Cause.CUDA_OOM),
        (OLD, "CUDA driver error: out of memory", Cause.CUDA_OOM),
        (NCCL, said.NCCL_ILLEGAL, Cause.GPU_FAULT),
        # Near misses: the words without the type, or as somebody else's talk.
        (("ValueError",), said.ASSERT, Cause.EXCEPTION),
        (OLD, "my device-side assert triggered", Cause.EXCEPTION),
        (OLD, "CUDA error: invalid device ordinal", Cause.EXCEPTION),
        (OLD, "my queue is out of memory", Cause.EXCEPTION),
        # It is said of a full device, and of one on which a kernel has failed before.
        (OLD, "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", Cause.EXCEPTION),
    ],
)
def test_words_give_the_cause(types: tuple[str, ...], message: str, cause: Cause) -> None:
    """The same on record, as the last thing in a log, and with a crash of torch's threads after the exception."""
    raised = kinds(*types, message=message)
    head, *more = f"{types[0]}: {message}".splitlines()
    log = ("Traceback (most recent call last):", '  File "t.py", line 1, in f', head, *more)

    assert of_one(raised).cause is cause
    assert "Compile with" not in of_one(raised).reason and "\n" not in of_one(raised).reason
    assert wait_in_vain(Exit(0, 1, 99.0), lines={0: log}).cause is cause
    assert wait_in_vain(Exit(0, 1, 99.0), lines={0: tuple(f"[rank0]: {line}" for line in log)}).cause is cause
    assert wait_in_vain(Exit(0, -6, 99.5), raised=(raised,)).cause is cause


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (said.ILLEGAL, Cause.GPU_FAULT),
        (said.ECC, Cause.GPU_LOST),
        (said.TIMEOUT, Cause.NCCL_OR_GLOO_TIMEOUT),
        (said.REMOTE, Cause.NCCL_ERROR),
    ],
)
def test_an_abort_of_the_watchdog_is_told_by_its_words(words: str, cause: Cause) -> None:
    """They come before two traces and Python's stacks."""
    verdict = wait_in_vain(Exit(0, -6, 99.1), lines={0: said.of_the_watchdog(words)})
    assert verdict.cause is cause and "frame #" not in verdict.reason


def test_a_remote_error_is_no_first_cause() -> None:
    """A rank whose peer has died says so later than the peer; and it may be seen first."""
    lost = Raised(0, "DistBackendError", said.REMOTE, "t.py:1 f", 98.0, kinds=NCCL)
    fault = Raised(1, "AcceleratorError", said.ILLEGAL, "t.py:1 f", 99.0, kinds=NEW)

    verdict = wait_in_vain(Exit(0, 1, 98.1), Exit(1, 1, 99.1), raised=(lost, fault))

    assert (verdict.cause, verdict.rank, verdict.collateral) == (Cause.GPU_FAULT, 1, (0,))
    duplicate = Raised(1, "DistBackendError", said.DUPLICATE, "t.py:1 f", 99.0, kinds=NCCL)
    verdict = wait_in_vain(Exit(0, 1, 98.1), Exit(1, 1, 99.1), raised=(lost, duplicate))
    assert (verdict.cause, verdict.rank) == (Cause.NCCL_ERROR, 1) and "Duplicate GPU detected" in verdict.reason


def test_the_kernel_of_an_assert_is_quoted() -> None:
    verdict = of_one(kinds(*NEW, message=said.ASSERT), lines={0: (said.PRINTED, *said.NOTES)})
    assert "`srcIndex < srcSelectDimSize`" in verdict.reason


def test_memory_of_a_dead_process() -> None:
    """An "out of memory" whose memory a dead process holds is the device's, not the script's."""
    raised = kinds("torch.OutOfMemoryError", "RuntimeError", message=said.TAKEN)
    assert of_one(raised).cause is Cause.CUDA_OOM
    verdict = of_one(raised, gone=frozenset({3228}))
    assert verdict.cause is Cause.GPU_BUSY and "process 3228 is dead" in verdict.reason
    verdict = of_one(raised, standby_on_gpu=True)
    assert verdict.cause is Cause.GPU_BUSY and "the standby holds memory there" in verdict.reason


@pytest.mark.parametrize(
    ("lines", "message", "cause"),
    [
        (said.XID_OFF_THE_BUS, said.cuda("unknown error"), Cause.GPU_LOST),
        (said.OFF_THE_BUS, said.ILLEGAL, Cause.GPU_LOST),
        (said.XID_UNCONTAINED, said.ECC, Cause.GPU_LOST),
        (said.XID_CONTAINED, said.ECC, Cause.GPU_FAULT),
        (said.XID_ECC_ELSEWHERE, said.ILLEGAL, Cause.GPU_LOST),
        (said.XID_OF_A_MONITOR, said.ILLEGAL, Cause.GPU_LOST),
        (said.XID_MMU, said.ILLEGAL, Cause.GPU_FAULT),
        (said.XID_MMU, said.ASSERT, Cause.GPU_ASSERT),
    ],
)
def test_the_kernel_has_the_last_word(lines: tuple[str, ...], message: str, cause: Cause) -> None:
    found = tuple(xids(lines))
    verdict = of_one(kinds(*NEW, message=message), xids=found, pids={0: 4242, 1: 757})
    assert verdict.cause is cause
    assert (str(found[0]) in verdict.reason) is (cause is not Cause.GPU_ASSERT)


def test_a_lost_device_explains_a_crash_and_nothing_else() -> None:
    found = tuple(xids(said.XID_OFF_THE_BUS))
    assert found == (Xid("0000:b3:00", 79, None, "pid='<unknown>', name=<unknown>, GPU has fallen off the bus."),)
    assert wait_in_vain(Exit(0, -11, 99.0), xids=found).cause is Cause.GPU_LOST
    assert wait_in_vain(Exit(0, -9, 99.0), xids=found).cause is Cause.KILLED
    assert of_one(kinds("ValueError"), xids=found).cause is Cause.EXCEPTION
    neighbour = of_one(kinds(*NEW, message=said.ILLEGAL), xids=tuple(xids(said.XID_MMU)), pids={0: 4242})
    assert neighbour.cause is Cause.GPU_FAULT and "Xid" not in neighbour.reason


def test_an_ecc_error_that_was_contained_is_no_loss() -> None:
    """The driver tells it as one of two bits first, and of the channels that it has ended afterwards."""

    def verdict(lines: tuple[str, ...]) -> Verdict:
        return of_one(kinds(*NEW, message=said.ECC), xids=tuple(xids(lines)), pids={0: 4242})

    for lines in (said.XID_ECC_CONTAINED, said.XID_ECC_THEN_CHANNEL):
        found = verdict(lines)
        assert found.cause is Cause.GPU_FAULT and str(tuple(xids(lines))[2]) in found.reason
        assert wait_in_vain(Exit(0, -11, 99.0), xids=tuple(xids(lines))).cause is Cause.SEGFAULT
    found = verdict(said.XID_ECC_UNCONTAINED)
    assert (found.cause, found.device) == (Cause.GPU_LOST, "0000:52:00")


def test_memory_that_another_program_used_is_no_loss() -> None:
    """Of an error of the memory the driver names the program that used it; of another error, who has noticed it."""
    found = tuple(xids(said.XID_UNCONTAINED))
    raised = kinds(*NEW, message=said.ILLEGAL)
    assert of_one(raised, xids=found, pids={0: 4242}).cause is Cause.GPU_LOST
    assert of_one(raised, xids=found, pids={0: 757}).cause is Cause.GPU_FAULT
    assert of_one(raised, xids=tuple(xids(said.XID_OF_A_MONITOR)), pids={0: 757}).cause is Cause.GPU_LOST


def test_errors_of_a_part_of_a_device_are_read() -> None:
    """Of an instance (MIG), and of a compute instance in it."""
    assert [(xid.bus, xid.number, xid.pid) for xid in xids(said.XID_MIG)] == [("0000:01:00", 94, 7194)] * 2


def test_a_device_has_one_address() -> None:
    """With the function or without it, whichever line tells of it."""
    lines = (
        *said.XID_OFF_THE_BUS,
        *said.OFF_THE_BUS,
        "NVRM: GPU 0000:B3:00.0: GPU has fallen off the bus.",
        "NVRM: GPU at PCI:0000:b3:00: GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:b3:00.0): 79, GPU has fallen off the bus.",
    )
    assert [(xid.bus, xid.number) for xid in xids(lines)] == [("0000:b3:00", 79)] * 5


@pytest.mark.parametrize("words", said.MONITOR)
def test_an_abort_of_the_watchdogs_monitor_is_no_first_cause(words: str) -> None:
    """It has waited for a rank that hung, or heard of one that gave up; who has failed by itself is to blame."""
    lines = {0: said.of_the_monitor(words)}

    hung = wait_in_vain(Exit(0, -6, 99.1), alive=(1,), lines=lines)
    failed = wait_in_vain(Exit(0, -6, 99.1), Exit(1, -11, 99.6), lines=lines)

    assert (hung.cause, hung.rank) == (Cause.HANG, 1)
    assert (failed.cause, failed.rank) == (Cause.SEGFAULT, 1)


def test_a_record_keeps_every_line(tmp_path: Path) -> None:
    """Of the exception, and of those that it was raised from."""
    cause = Described("DistBackendError", said.DUPLICATE, NCCL)
    path = tmp_path / "error.rank1.json"
    path.write_bytes(encode(ErrorRecord("Failed", said.ASSERT, rank=1, exit_code=1, mono=9.0, because=(cause,))))

    raised = exception_of(path)

    assert raised is not None
    assert (raised.message, raised.because[0].message) == (said.ASSERT, said.DUPLICATE)
    assert of_one(raised).cause is Cause.NCCL_ERROR


def test_too_little_shared_memory_for_nccl() -> None:
    verdict = of_one(kinds(*NCCL, message=said.SHM), shm=64 << 20)
    assert verdict.cause is Cause.NCCL_ERROR and "--shm-size" in verdict.reason


def test_an_assert_twice_at_one_step_is_a_bug() -> None:
    """Whatever call has reported it: the device is asynchronous. At another step it is another failure."""

    def failed(step: int, frame: str, signal: int | None) -> Verdict:
        return Verdict(Cause.GPU_ASSERT, "", 9.0, 0, signal, None if signal else 1, step, frame)

    def then(second: Verdict) -> Do:
        before = learn(History(), failed(40, "t.py:9", None), True, 30)
        after = learn(before, second, True, 35)
        return decide(Policy(), second, before, after, Ground(), 9.0, 0.0)[0].do

    assert then(failed(40, "t.py:12", 6)) is Do.STOP
    assert then(failed(41, "t.py:9", None)) is Do.RESTART


def test_a_lost_device_stops_the_run_and_a_busy_one_is_waited_for() -> None:
    def decided(cause: Cause) -> tuple[Do, float | None, bool, ExitCode]:
        verdict = Verdict(cause, "", 9.0, 0, None, 1, 40)
        decision, _ = decide(Policy(), verdict, History(), learn(History(), verdict, True, 40), Ground(), 9.0, 0.0)
        return decision.do, decision.delay, decision.counted, decision.exit_code

    assert decided(Cause.GPU_LOST) == (Do.STOP, None, False, ExitCode.POINTLESS)
    do, delay, counted, _ = decided(Cause.GPU_BUSY)
    assert (do, counted) == (Do.UNCOUNTED, False) and delay is not None and delay > 0
