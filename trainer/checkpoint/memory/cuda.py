"""How state on GPUs is copied into shared memory, and when the optimizer's next step must wait.

    training streams   optimizer.step | ready ....... forward, backward ....... gate: waits for `done` | step
    two side streams                    '-> chunk, chunk, chunk, … in turn, each after the one before -> done
    copying thread     issues all of them, copies what lies on the CPU, sleeps until `done`, commits

Each chunk waits on the device for the one before it, which is on the other stream. So the copy engine looks at other
streams in between: a loop's loss.item() waits for one chunk (0.3 ms), and not for all of 3.6 GB (67 ms).

Held: everything is first copied aside on its device, in take() (4.5 ms for 3.6 GB, where the way to shared memory takes
67 ms), and nothing waits for the rest. That is done if the copy would be later than the next optimizer's step and the
memory is there, and if optimizers step unseen: a CUDA graph calls no hook. Without memory for it, an unseen step waits
for the copy on the device.

The shared memory is registered with the driver, on the rank's own device. That, and making it, takes a second for 3.6
GB: snapshots are left out meanwhile, and no step waits. While the driver registers, whatever else calls it waits (1.1 s
for 3.6 GB that nobody has touched, measured). So it is touched first, and registered in pieces with rests between; no
copy reaches over the edge of a piece.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Any

import torch

from .copier import BlockingCopier, Copier, bring
from .image import Pair, copy_here, device_of, is_on_gpu
from .segment import Buffer

_libc = ctypes.CDLL(None)
_CHUNK = 16 << 20
_PIECE = 64 << 20
_REST_S = 0.01
_LATE_S = 0.0005
"""The state is held once a copy was later than the optimizer's next step by so much."""
_KEPT_FREE = 0.1
"""Of the device's memory, beside what one more process like this one needs: the standby comes first."""
_ON_CPU = 64 << 20
"""More than this of the state on the CPU (offloaded) is not copied aside."""
_PORTABLE = 1
_RELAXED = 2
_MADV_POPULATE_WRITE = 23
_KNOWN_STREAMS = 8
_TICKS = 64

Batch = tuple[list[torch.Tensor], list[torch.Tensor]]
"""Destinations and sources of about a chunk."""


def devices_of(tensors: Iterable[torch.Tensor]) -> list[torch.device]:
    """The GPUs that `tensors` lie on."""
    return list(dict.fromkeys(device_of(tensor) for tensor in tensors if is_on_gpu(tensor)))


def is_captured() -> bool:
    """Whether what this thread does now is being recorded for a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    torch._foreach_copy_(targets, sources, non_blocking=True)


def batches(pairs: Iterable[Pair], memory: int) -> list[Batch]:
    """`pairs` in their order, cut and put together so that each batch has about a chunk of bytes, and each copy is in
    one piece of the memory that begins at the address `memory`."""
    found: list[Batch] = []
    room = 0
    for target, source in pairs:
        start, size, at = 0, source.numel(), target.data_ptr() - memory
        while start < size:
            length = min(_CHUNK, _PIECE - (at + start) % _PIECE, size - start)
            if length > room:
                found.append(([], []))
                room = _CHUNK
            room -= length
            found[-1][0].append(target[start : start + length])
            found[-1][1].append(source[start : start + length])
            start += length
    return found


class CudaCopier(Copier):
    """For state of which at least a part lies on GPUs."""

    by_steps = True
    registers = True

    def __init__(self, devices: list[torch.device]) -> None:
        super().__init__()
        for device in devices:
            # The optimizer may have stepped on any stream so far.
            torch.cuda.synchronize(device)
        self._lanes = {device: _Lane(device) for device in devices}
        self._clock = _Clock(devices[0])
        self._registered: set[int] = set()
        self._cut: dict[str, tuple[list[Pair], dict[torch.device | None, list[Batch]]]] = {}
        self._was_late = False
        self._relaxed = False
        self._holds: bool | None = None
        self._known = threading.Event()
        self._known.set()
        self.making = False

    def is_for(self, devices: list[torch.device]) -> bool:
        return list(self._lanes) == devices

    def stepping(self) -> None:
        for lane in self._lanes.values():
            lane.stepping()

    def join(self) -> None:
        for lane in self._lanes.values():
            lane.join()

    def mark(self) -> None:
        super().mark()
        self._known.clear()
        self.making, self.late_s = False, 0.0
        for lane in self._lanes.values():
            lane.mark()

    def gate(self) -> None:
        for lane in self._lanes.values():
            lane.gated()
        super().gate()
        for lane in self._lanes.values():
            lane.wait()

    def is_making(self) -> bool:
        self._known.wait()
        return self.making

    def open(self) -> None:
        self.making = True
        self._free.set()
        self._known.set()

    def finish(self) -> None:
        super().finish()
        self.making = False
        self._known.set()

    def holds(self, needed: Callable[[], dict[torch.device, int]], unseen: bool) -> bool:
        if self._holds is None and (unseen or self._was_late):
            self._holds = all(_has_room(self._lanes, device, size) for device, size in needed().items())
        return bool(self._holds)

    def cannot_hold(self) -> None:
        self._holds = False

    def forget(self) -> None:
        self._cut.clear()

    def register(self, buffer: Buffer) -> None:
        if buffer.serial in self._registered:
            return
        self._relax()
        self._registered.add(buffer.serial)
        first, size = torch.frombuffer(buffer.memory, dtype=torch.uint8).data_ptr(), len(buffer.memory)
        # Pinned: a copy to pageable memory is neither asynchronous nor fast. If pinning is refused, it works, but
        # slower. On the rank's device: else each rank would make a context on the first one.
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        device = next(iter(self._lanes))
        for address in range(first, first + size, _PIECE):
            length = min(_PIECE, first + size - address)
            _touch(address, length)
            with torch.cuda.device(device):
                if not int(runtime.cudaHostRegister(address, length, _PORTABLE)):
                    buffer.releases[f"address {address}"] = functools.partial(_release, address, device)
            if self.making:
                time.sleep(_REST_S)

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair], own: list[Pair]) -> None:
        self._relax()
        self.register(buffer)
        cut = self._batches(buffer, memory, pairs)
        more = _by_device((pair for pair in own if device_of(pair[1]) in self._lanes), memory)
        for device, lane in self._lanes.items():
            lane.issue([*cut.get(device, []), *more.get(device, [])])
        for targets, sources in cut.get(None, []):
            copy_here(list(zip(targets, sources, strict=True)))
        bring(pair for pair in own if device_of(pair[1]) not in self._lanes)
        # From here on the training streams wait for `done`. The training thread does not wait.
        self._free.set()
        self.late_s = max(lane.finish() for lane in self._lanes.values())
        self._was_late |= self.late_s > _LATE_S

    def tick(self, busy: bool) -> list[tuple[float, bool]]:
        return self._clock.tick(busy)

    def _batches(
        self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]
    ) -> dict[torch.device | None, list[Batch]]:
        known = self._cut.get(buffer.slot)
        if known is None or known[0] is not pairs:
            known = self._cut[buffer.slot] = (pairs, _by_device(pairs, memory))
            # Otherwise a dropped buffer would stay mapped and keep its memory.
            buffer.releases["cut"] = functools.partial(self._cut.pop, buffer.slot, None)
        return known[1]

    def _relax(self) -> None:
        if not self._relaxed:
            self._relaxed = True
            relax()


def relax() -> None:
    """Nothing that this thread calls spoils a CUDA graph which the training thread records at that moment."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(ctypes.c_int(_RELAXED)))


def _release(address: int, device: torch.device) -> None:
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    with torch.cuda.device(device):
        runtime.cudaHostUnregister(address)


def _touch(address: int, size: int) -> None:
    """All of that memory is there. What is in it need not stay."""
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _MADV_POPULATE_WRITE) != 0:
        ctypes.memset(address, 0, size)  # Linux before 5.14


def _by_device(pairs: Iterable[Pair], memory: torch.Tensor) -> dict[torch.device | None, list[Batch]]:
    """Batches by the device of their sources; None: the CPU."""
    found: dict[torch.device | None, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(device_of(pair[1]) if is_on_gpu(pair[1]) else None, []).append(pair)
    return {device: batches(some, memory.data_ptr()) for device, some in found.items()}


def _has_room(devices: Container[torch.device], device: torch.device, size: int) -> bool:
    if device not in devices:
        return size <= _ON_CPU
    free, total = torch.cuda.mem_get_info(device)
    return free - size >= torch.cuda.max_memory_reserved(device) + _KEPT_FREE * total


class _Lane:
    """The streams and events of one device."""

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self._device = device
        self._sides = [cuda.Stream(device), cuda.Stream(device)]
        self._links = [cuda.Event(), cuda.Event()]
        self._ready = cuda.Event()
        self._gate, self._done = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True, blocking=True)
        self._is_gated = False
        self._trained: deque[Any] = deque(maxlen=_KNOWN_STREAMS)
        """The streams on which optimizers have stepped."""

    def _now(self) -> Any:
        return torch.cuda.current_stream(self._device)

    def stepping(self) -> None:
        """An optimizer is about to step on the current stream."""
        if (now := self._now()) not in self._trained:
            self._trained.append(now)

    def join(self) -> None:
        """What comes on the current stream finds the state as all streams that train have left it."""
        now = self._now()
        for stream in self._trained:
            if stream != now:
                now.wait_stream(stream)

    def mark(self) -> None:
        """What is read later is as it is now on the current stream. No stream that trains overtakes it."""
        now = self._now()
        self._ready.record(now)
        for stream in self._trained:
            if stream != now:
                stream.wait_event(self._ready)
        self._is_gated = False

    def gated(self) -> None:
        if not self._is_gated:
            self._gate.record(self._now())
            self._is_gated = True

    def wait(self) -> None:
        self._now().wait_event(self._done)

    def issue(self, parts: list[Batch]) -> None:
        for side in self._sides:
            side.wait_event(self._ready)
        last = self._sides[0]
        for number, (targets, sources) in enumerate(parts):
            here, last, link = self._sides[number % 2], self._sides[1 - number % 2], self._links[number % 2]
            with torch.cuda.stream(here):
                _copy(targets, sources)
            link.record(here)
            last.wait_event(link)
        self._done.record(last)

    def finish(self) -> float:
        """Sleeps until the copies are done. Returns for how many seconds the optimizer's next step waited for them."""
        self._done.synchronize()
        if not self._is_gated or not self._gate.query():
            return 0.0
        return max(0.0, float(self._gate.elapsed_time(self._done)) / 1000)


class _Clock:
    """How long steps take on the device, which is what a snapshot costs there. The host may be far ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ticks: deque[tuple[Any, bool]] = deque(maxlen=_TICKS)

    def tick(self, busy: bool) -> list[tuple[float, bool]]:
        """A step begins; `busy`: a snapshot is copied. Returns (seconds, busy) of the steps that have ended since."""
        cuda: Any = torch.cuda
        event = cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._ticks.append((event, busy))
        found = []
        while len(self._ticks) > 1 and self._ticks[1][0].query():
            began, was_busy = self._ticks.popleft()
            found.append((began.elapsed_time(self._ticks[0][0]) / 1000, was_busy))
        return found


def copier_for(devices: list[torch.device], spare: bool) -> Copier:
    """The copier for state on these GPUs, or on the CPU alone; `spare`: whether a core is spare."""
    if devices:
        return CudaCopier(devices)
    return Copier() if spare else BlockingCopier()
