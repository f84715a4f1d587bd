"""The words of CUDA, cuBLAS, cuDNN, Triton and NCCL about a GPU, and those of the kernel's log (Xid).

Every line of a message is judged. The first one is often only NCCL's "unhandled cuda error", and what follows tells
which.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from supervisor.core.evidence import Evidence, Xid
from supervisor.core.model import Cause, Verdict

_SAYS = r"((CUDA|HIP)( driver)? error( \([^)\n]*\))?: |(Cuda|HIP) failure (\d+ )?'|Triton Error \[(CUDA|HIP)\]: )"

ASSERT = _SAYS + "device-side assert triggered"
LOST = (
    _SAYS + r"(uncorrectable ECC error encountered|uncorrectable NVLink error|.*fallen off the bus|GPU is lost)"
    r"|GPU has fallen off the bus|^GPU is lost"
)
BUSY = _SAYS + r"((all )?CUDA-capable device(s|\(s\)) (are|is|is/are) busy or unavailable|exclusive-thread device)"
FAULT = (
    _SAYS + r"(an illegal memory access|an illegal instruction|misaligned address|invalid program counter|"
    r"unspecified launch failure|hardware stack error|operation not supported on (global/shared|shared or local)|"
    r"invalid address space|the launch timed out and was terminated|unknown error|"
    r"invalid access of peer GPU memory over nvlink or a hardware error|tensor memory not completely freed|"
    r"CU(BLAS|SPARSE|SOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR))"
    r"|cuDNN error: CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
)
MEMORY = (
    r"(cuda|hip) out of memory|Failed to CUDA [cm]alloc|" + _SAYS + r"out of memory"
    r"|CU(BLAS|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED)"
)
NCCL = (
    r"nccl(System|Internal|Remote)Error|nccl(InvalidUsage|InvalidArgument|UnhandledCudaError)|Duplicate GPU detected"
    r"|\bNCCL (error|failure)\b"
)

_FAILED_ASSERT = re.compile(r"Assertion [`'\"](.+?)[`'\"] failed")
_HOLDER = re.compile(r"Process (\d+) has [\d.]+ [KMGT]iB memory in use")
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<bus>[0-9a-fA-F:.]+)[^)]*\): (?P<number>\d+)(?:, (?P<text>.*))?")
_OFF_THE_BUS = re.compile(r"NVRM: (?:The NVIDIA )?GPU(?: at PCI:| )(?P<bus>[0-9a-fA-F:.]{7,}).*fallen off the bus")
_PID = re.compile(r"\bpid='?(\d+)")

_LOST_XIDS = frozenset({48, 62, 64, 79, 95, 119, 120, 136, 140, 143, 151, 155, 156, 158})
"""Errors after which the device needs a reset, or is gone (NVIDIA's catalog of Xid errors)."""
_IN_MEMORY = frozenset({48, 95})
"""Those of them whose pid is the program that used the memory. With all others it is whoever has noticed: a monitor
asks a device that is lost, too."""
_OF_A_DEVICE = frozenset({Cause.GPU_FAULT, Cause.GPU_LOST, Cause.GPU_BUSY, Cause.NCCL_ERROR})
_BY_A_DEVICE = _OF_A_DEVICE | {Cause.HANG, Cause.SEGFAULT, Cause.ABORT, Cause.NCCL_OR_GLOO_TIMEOUT}
"""Failures that a lost device may have caused, though nothing in the rank says so."""
_CONTAINED = 94
"""An ECC error that ends only the programs that used that page. The driver puts the page out of use."""
_ECC = 48
"""An ECC error of two bits. The driver tells it also of one that it contains then."""
_MANY_STEPS = 50


def failed_assert(lines: Iterable[str]) -> str:
    """The assertion that a kernel has printed as failed: ``srcIndex < srcSelectDimSize``. Empty if there is none."""
    return next((match[1] for line in lines if (match := _FAILED_ASSERT.search(line))), "")


def holders(message: str) -> tuple[int, ...]:
    """The pids of other processes that hold memory of the device, as torch's "out of memory" names them."""
    return tuple(int(pid) for pid in _HOLDER.findall(message))


def xids(lines: Iterable[str]) -> Iterator[Xid]:
    """The errors of devices in lines of a kernel's log."""
    for line in lines:
        if match := _XID.search(line):
            text = match["text"] or ""
            pid = _PID.search(text)
            yield Xid(address(match["bus"]), int(match["number"]), int(pid[1]) if pid else None, text)
        elif match := _OFF_THE_BUS.search(line):
            yield Xid(address(match["bus"]), 79, None, "GPU has fallen off the bus.")


def address(bus: str) -> str:
    """`00000000:3B:00.0:` as most lines of the kernel's log have it, without the function: `0000:3b:00`."""
    domain, _, rest = bus.lower().rstrip(".:").partition(":")
    return f"{domain[-4:]}:{rest.partition('.')[0]}"


def lost(seen: Collection[Xid], pids: Collection[int]) -> Xid | None:
    """The first error after which a device is lost that programs with these pids may use."""
    contained = {xid.bus for xid in seen if xid.number == _CONTAINED}
    for xid in seen:
        is_ours = xid.pid is None or xid.pid in pids or xid.number not in _IN_MEMORY
        if xid.number in _LOST_XIDS and is_ours and not (xid.number == _ECC and xid.bus in contained):
            return xid
    return None


def is_outlived(before: Mapping[int, int], now: Mapping[int, int], ranks: Collection[int]) -> bool:
    """Whether an error that was seen when the ranks had made `before` steps explains nothing that happens `now`: all of
    them have made many steps since, so no device that they train on was lost by it."""
    return bool(ranks) and all(now.get(rank, 0) - before.get(rank, 0) >= _MANY_STEPS for rank in ranks)


def judged(verdict: Verdict, evidence: Evidence) -> Verdict:
    """The verdict, corrected by what the kernel says about the devices."""
    if not evidence.xids or verdict.cause not in _BY_A_DEVICE:
        return verdict
    cause, xid = verdict.cause, lost(evidence.xids, evidence.pids.values())
    if xid is not None:
        cause, verdict = Cause.GPU_LOST, replace(verdict, device=xid.bus)
    elif cause in _OF_A_DEVICE:
        # A neighbour's errors on the same device are its own.
        own = [each for each in evidence.xids if each.pid is None or each.pid in evidence.pids.values()]
        contained = [each for each in own if each.number == _CONTAINED]
        xid = own[-1] if own else None
        if cause is Cause.GPU_LOST and contained:
            # Others may come after it: the channels of the programs that it ends are torn down.
            cause, xid = Cause.GPU_FAULT, contained[-1]
    return verdict if xid is None else replace(verdict, cause=cause, reason=f"{verdict.reason}; the kernel says: {xid}")
