"""What torch, NCCL and the kernel say about GPUs, as recorded: on an H100 (torch 2.11), and in public issues (torch 2.6
to 2.13)."""

from __future__ import annotations

# torch up to 2.7 raises RuntimeError; from 2.8 on it is torch.AcceleratorError, and there is a line more.
NOTES = (
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.",
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1",
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",
)
_DOCS = "https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information."


def cuda(words: str, name: str = "") -> str:
    """torch's message for a CUDA error, with the line of torch 2.8 and newer if `name` is given."""
    return "\n".join([f"CUDA error: {words}", *([f"Search for `{name}' in {_DOCS}"] if name else []), *NOTES, ""])


ASSERT = cuda("device-side assert triggered", "cudaErrorAssert")
ILLEGAL = cuda("an illegal memory access was encountered", "cudaErrorIllegalAddress")
ECC = cuda("uncorrectable ECC error encountered")
CONTAINED = cuda("Invalid access of peer GPU memory over nvlink or a hardware error")
TENSOR_MEMORY = cuda("tensor memory not completely freed")
BUSY = cuda("CUDA-capable device(s) is/are busy or unavailable")
OLD_BUSY = cuda("all CUDA-capable devices are busy or unavailable")
TRITON = "Triton Error [CUDA]: an illegal memory access was encountered"
CUBLAS = (
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, &alpha, a, lda, "
    "b, ldb, &beta, c, ldc)`"
)
CUDNN_NO_MEMORY = "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"
TAKEN = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.12 GiB is "
    "free. Process 3228 has 61.50 GiB memory in use. Including non-PyTorch memory, this process has 16.52 GiB memory "
    "in use. Of the allocated memory 15.90 GiB is allocated by PyTorch, and 112.00 MiB is reserved by PyTorch but "
    "unallocated."
)
_NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, "
DUPLICATE = (
    f"{_NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.28.9\n"
    "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
    "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
)
REMOTE = (
    f"{_NCCL}remote process exited or there was a network error, NCCL version 2.28.9\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer node-2<47326>"
)
SYSTEM = (
    f"{_NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
    "Last error:\nsocketStartConnect: Connect to 10.0.0.2<45763> failed : Software caused connection abort"
)
SHM = (
    f"{_NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-7aXkQ2 (size 33030528)"
)
NCCL_OOM = (
    f"{_NCCL}unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
NCCL_ILLEGAL = NCCL_OOM.replace("2 'out of memory'", "700 'an illegal memory access was encountered'")

_TRACE = (
    "Exception raised from c10_cuda_check_implementation at /pytorch/c10/cuda/CUDAException.cpp:44 (most recent call "
    "first):",
    *(f"frame #{i}: c10d::ProcessGroupNCCL::watchdogHandler() + 0x{i}da (0x7f2b54d772ba)" for i in range(12)),
)


def of_the_watchdog(words: str) -> tuple[str, ...]:
    """The last lines of a rank that NCCL's watchdog has aborted for `words`, and Python's stacks after them."""
    said = "[PG ID 0 PG GUID 0(default_pg) Rank 0] Process group watchdog thread terminated with exception: " + words
    return (
        *f"[rank0]:[E1127 03:10:09.5 ProcessGroupNCCL.cpp:2068] {said}".splitlines(),
        *_TRACE,
        "terminate called after throwing an instance of 'c10::DistBackendError'",
        *f"  what():  {said}".splitlines(),
        *_TRACE,
        "Fatal Python error: Aborted",
        *(f'  File "/usr/lib/python3.12/threading.py", line {line} in wait' for line in range(40)),
    )


TIMEOUT = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=42, OpType=ALLREDUCE, NumelIn=4096, "
    "NumelOut=4096, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
)

MONITOR = (
    "ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress in monitoring enqueued work. ",
    "Terminating the process after attempting to dump debug info, due to ProcessGroupNCCL watchdog hang.",
    "Terminating the process after attempting to dump debug info, due to collective timeout or exception.",
)


def of_the_monitor(words: str) -> tuple[str, ...]:
    """The last lines of a rank that the monitor of NCCL's watchdog has aborted for `words`."""
    said = f"[PG ID 0 PG GUID 0(default_pg) Rank 0] {words}"
    return (f"[rank0]:[F1127 03:10:09.5 ProcessGroupNCCL.cpp:1557] {said}", *_TRACE, "Fatal Python error: Aborted")


PRINTED = (
    "/pytorch/aten/src/ATen/native/cuda/Indexing.cu:1515: indexSelectSmallIndex: block: [0,0,0], thread: [3,0,0] "
    "Assertion `srcIndex < srcSelectDimSize` failed."
)

XID_OFF_THE_BUS = (
    "NVRM: GPU at PCI:0000:b3:00: GPU-2b3c0d4e-8a11-4c62-b8b7-5b0f1c9e7a55",
    "NVRM: Xid (PCI:0000:b3:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
)
OFF_THE_BUS = ("NVRM: The NVIDIA GPU 0000:b3:00.0 (PCI ID: 10de:26b5) installed in this system has fallen off the bus",)
XID_MMU = (
    "NVRM: Xid (PCI:0000:00:06): 31, pid=757, name=python, channel 0x0000005a, intr 00000000. MMU Fault: ENGINE "
    "GRAPHICS GPC1 GPCCLIENT_T1_8 faulted @ 0x0_00000000. Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_WRITE",
)
XID_CONTAINED = ("NVRM: Xid (PCI:0000:87:00): 94, pid=4242, name=python, Contained: SM (0x1). RST: No, D-RST: No",)
XID_UNCONTAINED = ("NVRM: Xid (PCI:0000:87:00): 95, pid=4242, name=python, Uncontained: LTC TAG (0x2,0x0)",)
_ECC_OF_TWO_BITS = (
    "NVRM: Xid (PCI:0000:52:00): 48, pid='<unknown>', name=<unknown>, An uncorrectable double bit error (DBE) has been "
    "detected on GPU in the framebuffer at partition 4, subpartition 0.",
    "NVRM: Xid (PCI:0000:52:00): 63, pid='<unknown>', name=<unknown>, Row Remapper: New row (0x000000000a5c6e3a) "
    "marked for remapping, reset gpu to activate.",
)
XID_ECC_CONTAINED = (
    *_ECC_OF_TWO_BITS,
    "NVRM: Xid (PCI:0000:52:00): 94, pid='<unknown>', name=<unknown>, Contained: SM (0x1). RST: No, D-RST: No",
)
XID_ECC_THEN_CHANNEL = (*XID_ECC_CONTAINED, "NVRM: Xid (PCI:0000:52:00): 45, pid=4242, name=python, Ch 00000008")
XID_ECC_UNCONTAINED = (
    *XID_ECC_CONTAINED,
    "NVRM: Xid (PCI:0000:52:00): 95, pid='<unknown>', name=<unknown>, Uncontained: LTC TAG (0x2,0x0)",
)
XID_ECC_ELSEWHERE = (*_ECC_OF_TWO_BITS, *XID_CONTAINED)
XID_OF_A_MONITOR = (
    "NVRM: Xid (PCI:0000:61:00): 119, pid=1346198, name=nvidia-smi, Timeout waiting for RPC from GSP! Expected "
    "function 103 (GSP_RM_ALLOC) (0x80 0x38).",
)
XID_MIG = (
    "NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: No, D-RST: No",
    "NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:02): 94, pid=7194, Contained: SM (0x1). RST: No, D-RST: No",
)
