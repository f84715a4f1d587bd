"""The symptoms: an exception, or a rank's last words, shows its cause. A table; the first match wins.

A symptom checks the type first. A message alone proves little, because anybody may raise or print anything.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.core.diagnosis import gpu
from supervisor.core.diagnosis.gist import continues
from supervisor.core.model import Cause, Raised

_ENOSPC, _EDQUOT, _EADDRINUSE = 28, 122, 98


@dataclass(frozen=True, slots=True)
class Symptom:
    """An exception of one of `kinds` (or derived from one). Its errno is one of `errnos`, or its message holds
    `text`."""

    cause: Cause
    kinds: frozenset[str]
    errnos: frozenset[int] = frozenset()
    text: str = ""

    def fits(self, raised: Raised) -> bool:
        if not self.kinds & set(kinds_of(raised)):
            return False
        if not self.errnos and not self.text:
            return True
        said = self.text and re.search(self.text, raised.message, re.IGNORECASE | re.MULTILINE)
        return raised.errno in self.errnos or bool(said)


_LOSS = ("NotFinite", "LossSpike")
_CHECKPOINT = ("NoUsableCheckpoint", "CheckpointMismatch")
_DISTRIBUTED = ("torch.distributed.", "torch._C._distributed_c10d.")
# If only the last line of a traceback is known, the base classes of the error are unknown.
_TORCH = frozenset(
    {"RuntimeError", "torch.AcceleratorError", *(f"torch.distributed.Dist{n}Error" for n in ("", "Backend"))}
    | {"torch.cuda.CudaError", "torch.cuda.DeferredCudaCallError"}
)
_NETWORK = frozenset(
    {"OSError", "RuntimeError", "torch.distributed.DistNetworkError", "torch.distributed.DistStoreError"}
)
_FILES = frozenset(
    {
        "OSError",
        "RuntimeError",
        "safetensors_rust.SafetensorError",
        "safetensors._safetensors_rust.SafetensorError",
        "torch.distributed.checkpoint.api.CheckpointException",
        "trainer.checkpoint.errors.CheckpointError",
        "CheckpointError",
    }
)

SYMPTOMS = (
    Symptom(Cause.STARTED_OVER, frozenset({"trainer.errors.StartedOver"})),
    Symptom(
        Cause.NAN,
        frozenset({*_LOSS, *(f"{where}.{name}" for name in _LOSS for where in ("trainer.errors", "__main__"))}),
    ),
    Symptom(
        Cause.CHECKPOINT_BAD, frozenset({*_CHECKPOINT, *(f"trainer.checkpoint.errors.{name}" for name in _CHECKPOINT)})
    ),
    Symptom(Cause.REPLICAS_DIFFER, frozenset({"ReplicasDiffer", "trainer.checkpoint.errors.ReplicasDiffer"})),
    Symptom(Cause.CUDA_OOM, frozenset({"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "OutOfMemoryError"})),
    Symptom(Cause.CUDA_OOM, _TORCH, text=gpu.MEMORY),
    Symptom(Cause.GPU_ASSERT, _TORCH, text=gpu.ASSERT),
    Symptom(Cause.GPU_LOST, _TORCH, text=gpu.LOST),
    Symptom(Cause.GPU_BUSY, _TORCH, text=gpu.BUSY),
    Symptom(Cause.GPU_FAULT, _TORCH, text=gpu.FAULT),
    Symptom(Cause.NO_SPACE, _FILES, frozenset({_ENOSPC, _EDQUOT}), r"no space left on device|disk quota exceeded"),
    Symptom(Cause.PORT_IN_USE, _NETWORK, frozenset({_EADDRINUSE}), r"EADDRINUSE|address already in use"),
    Symptom(Cause.NCCL_ERROR, _TORCH, text=gpu.NCCL),
)
"""The causes that an exception proves by itself."""

# The words of a rank that has waited for the others in vain. They are the first cause only if no rank has another.
_TIMED_OUT = re.compile(
    r"timed out waiting \d+ms for (recv|send) operation|failed to pass monitoredBarrier"
    r"|application timeout caused pair closure|caught collective operation timeout"
    r"|milliseconds before timing out|wait timeout after \d+ms|socket timeout"
    # Where the ranks meet: a FileStore's words, those that NCCL wraps, and those of a store that counts its members.
    r"|(^|error: )wait timeout(?=\.|$)|timeout waiting for key: \S+|client socket has timed out"
    r"|timed out (initializing process group in store based barrier|after \d+ seconds waiting for clients)"
    # NCCL's monitor of the watchdog, which aborts: another rank has not come, or has told that it gives up.
    r"|watchdog got stuck for \d+ seconds|due to (collective timeout or exception|ProcessGroupNCCL watchdog hang)",
    re.IGNORECASE | re.MULTILINE,
)
# The words of a rank that has lost a peer. This is always a consequence.
_LOST_PEER = re.compile(
    r"connection closed by (remote )?peer|connection reset by peer|connection refused|broken pipe|connection was closed"
    r"|ncclRemoteError|proxy call to rank \d+ failed"
    r"|remote process exited or there was a network error|failed to recv, got 0 bytes|connectFullMesh failed"
    r"|(nccl )?communicator was aborted|another rank (has )?(failed|terminated)",
    re.IGNORECASE,
)
# The words of torch.save and numpy about a write that was cut short. They do not tell why.
_CUT_SHORT = re.compile(
    r"inline_container\.cc.*(unexpected pos|failed writing)|iostream error|\d+ requested and \d+ written"
)
# The words of torch about shared memory that it could not get: a worker's SIGBUS, or a refusal.
_SHM = re.compile(
    r"(allocate|open|map|resize|unlink) shared memory|out of shared memory|killed by signal: Bus error"
    r"|shared memory segment \S*/dev/shm/nccl"
)
_FOLLOWS = frozenset(
    {"KeyboardInterrupt", "subprocess.CalledProcessError", "torch.multiprocessing.spawn.ProcessException"}
)
_WATCHDOG = re.compile(r"ProcessGroup(NCCL|Gloo)|c10::Dist\w*Error|NCCL watchdog", re.IGNORECASE)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (?P<pids>[\d, ]+)\) "
    r"(?:is killed by signal: (?P<signal>[\w ]+)|exited unexpectedly)"
)
_SIGNALS = {"Killed": 9, "Segmentation fault": 11, "Bus error": 7, "Aborted": 6, "Terminated": 15}
_PREFIX = re.compile(r"^\[rank\d+\]:\s?")
_PLACE = re.compile(r'^\s+File "(.+)", line (\d+), in (.+)$')
_THROWN = re.compile(r"terminate called after throwing an instance of 'c10::(\w+)'")
_THROWN_KINDS = {"DistBackendError": "torch.distributed.DistBackendError", "AcceleratorError": "torch.AcceleratorError"}
_LAST_LINE = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")


class Blame(enum.IntEnum):
    """The likelihood that a failure is the first cause: the lowest value wins."""

    OWN = 0
    WAITED = 1
    """It waited for others until its own time limit."""
    VICTIM = 2
    """It lost a peer, or was ended by the launcher's TERM."""


@dataclass(frozen=True, slots=True)
class Workers:
    """DataLoader workers of a rank that have died: their pids, and the signal if it is told."""

    pids: tuple[int, ...]
    signal: int | None


def kinds_of(raised: Raised) -> tuple[str, ...]:
    """The type and its base types, qualified unless built in. Only the bare name if nothing else was recorded."""
    return raised.kinds or (raised.type,)


def chain(raised: Raised) -> Iterator[Raised]:
    """The exception, then those that it was raised from."""
    yield raised
    yield from raised.because


def cause_of(raised: Raised) -> Cause | None:
    """The cause that the exception proves, or one that it was raised from."""
    return next((symptom.cause for each in chain(raised) for symptom in SYMPTOMS if symptom.fits(each)), None)


def cut_short(raised: Raised) -> bool:
    """Whether a file could not be written whole. The reason is a full disk, if one is full."""
    return any(set(kinds_of(each)) & _FILES and _CUT_SHORT.search(each.message) for each in chain(raised))


def short_of_shm(raised: Raised) -> bool:
    """Whether /dev/shm was too small for the rank."""
    return any(_SHM.search(each.message) for each in chain(raised))


def blame_of(raised: Raised) -> Blame:
    """The blame of an exception. An interrupt is a consequence; so is a message that a started process has failed.

    Otherwise only torch's own words count: a plain RuntimeError, or an error of torch.distributed. A type that a user
    has derived does not count."""
    kind = kinds_of(raised)[0]
    if _FOLLOWS & set(kinds_of(raised)):
        return Blame.VICTIM
    if cause_of(raised) not in (None, Cause.NCCL_ERROR) or (
        kind != "RuntimeError" and not kind.startswith(_DISTRIBUTED)
    ):
        return Blame.OWN
    return _blame(raised.message)


def blame_of_abort(lines: tuple[str, ...]) -> Blame:
    """The blame of a rank that aborted with these last lines. NCCL's watchdog ends a process so, without an
    exception."""
    text = "\n".join(lines)
    return _blame(text) if _WATCHDOG.search(text) else Blame.OWN


def _blame(text: str) -> Blame:
    if _TIMED_OUT.search(text):
        return Blame.WAITED
    return Blame.VICTIM if _LOST_PEER.search(text) else Blame.OWN


def waited(text: str) -> str:
    """The words of `text` about waiting in vain."""
    found = _TIMED_OUT.search(text)
    return found[0] if found else ""


def dead_workers(raised: Raised) -> Workers | None:
    """The DataLoader workers that died, as the exception tells."""
    found = [match for each in chain(raised) if (match := _WORKER.search(each.message))]
    if not found:
        return None
    pids = {int(pid) for match in found for pid in re.findall(r"\d+", match["pids"])}
    signals = [_SIGNALS[match["signal"].strip()] for match in found if (match["signal"] or "").strip() in _SIGNALS]
    return Workers(tuple(sorted(pids)), signals[0] if signals else None)


def thrown(rank: int, lines: tuple[str, ...], at: float) -> Raised | None:
    """The C++ exception that ended a process with an abort. torch's own threads end it so: NCCL's watchdog, autograd's,
    and those that free a tensor."""
    for i, line in enumerate(lines):
        if match := _THROWN.search(line):
            text = "\n".join(lines[i + 1 :]).partition("what():")[2].strip()
            kind = _THROWN_KINDS.get(match[1], "RuntimeError")
            return Raised(rank, kind.rpartition(".")[2], text, "", at, kinds=(kind,)) if text else None
    return None


def spoken(rank: int, lines: tuple[str, ...], at: float) -> Raised | None:
    """The exception whose traceback comes last in a log. Some scripts print the traceback and exit by themselves."""
    lines = tuple(_PREFIX.sub("", line) for line in lines)
    start = max(
        (i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")), default=None
    )
    if start is None:
        return None
    for i, line in enumerate(lines[start + 1 :], start + 1):
        if match := _LAST_LINE.match(line):
            last, after = i, [(n, more) for n, more in enumerate(lines[i + 1 :], i + 1) if more.strip()]
            for n, more in after:
                if not continues(more, lines[last]):
                    break
                last = n
            # If the script said much more after the traceback, it had survived the exception.
            if sum(n > last for n, _ in after) > 3:
                return None
            kind, message = match["kind"], "\n".join([match["message"] or "", *lines[i + 1 : last + 1]])
            number = re.match(r"\[Errno (\d+)\]", message)
            places = [place for line in lines[start:i] if (place := _PLACE.match(line))]
            frame = "{0[1]}:{0[2]} {0[3]}".format(places[-1]) if places else ""
            errno = int(number[1]) if number else None
            kinds = (kind, "OSError") if number else (kind,)
            return Raised(rank, kind.rpartition(".")[2], message, frame, at, kinds=kinds, errno=errno)
    return None
