"""How bytes get from live tensors into shared memory, and what the optimizer's next step waits for.

On the CPU, where no core is spare, the thread that trains copies at once, with all the threads that it trains with: a
copying thread beside those that compute holds them all up at their barriers (see DESIGN.md). Where one is spare, the copying
thread copies while training goes on, and the optimizer waits until it has committed. On a GPU:

    compute stream   optimizer.step | mark ............ forward, backward ............ gate: waits for `done` | step
    side stream                      '-> wait for mark -> copies to pinned memory -> done
    copying thread                       launches them, copies what lies on the CPU, waits for `done`, commits

The GPU half has not been run on a GPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

import torch

from .image import Pair, copy_here
from .segment import Buffer


class Copier:
    """For state on the CPU, where a core is spare."""

    overlaps = True
    """Whether a thread of its own copies, while the one that trains goes on."""

    def __init__(self) -> None:
        self._free = threading.Event()

    def mark(self) -> None:
        """The state is as it is to be copied; called by the thread that trains."""
        self._free.clear()

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]) -> None:
        """Every source is in its place in `memory`, that of `buffer`; called by the copying thread."""
        copy_here(pairs)

    def finish(self) -> None:
        """Nothing is copied any more, whether it went well or not; called by the copying thread."""
        self._free.set()

    def gate(self) -> None:
        """What was marked is copied, or will be before anything queued from now on; called by the thread that trains."""
        self._free.wait()


class BlockingCopier(Copier):
    """For state on the CPU, where no core is spare: nothing is ever waited for."""

    overlaps = False

    def mark(self) -> None:
        """Nothing will change before it is copied."""

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]) -> None:
        if torch.get_num_threads() == 1:
            copy_here(pairs)
        elif pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


class CudaCopier(Copier):
    """For state that lies, at least in part, on this rank's CUDA device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        cuda: Any = torch.cuda
        self._side = cuda.Stream(device)
        self._ready, self._done = cuda.Event(), cuda.Event()
        self._registered: set[int] = set()

    def mark(self) -> None:
        super().mark()
        self._ready.record(torch.cuda.current_stream(self._device))

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]) -> None:
        self._register(buffer, memory)
        on_device = [pair for pair in pairs if pair[1].is_cuda]
        with torch.cuda.device(self._device), torch.cuda.stream(self._side):
            self._side.wait_event(self._ready)
            if on_device:
                torch._foreach_copy_([t for t, _ in on_device], [s for _, s in on_device], non_blocking=True)
            self._done.record(self._side)
        copy_here([pair for pair in pairs if not pair[1].is_cuda])
        # From here on the compute stream waits for `done`, and the thread that trains for nothing.
        self._free.set()
        self._done.synchronize()

    def gate(self) -> None:
        super().gate()
        torch.cuda.current_stream(self._device).wait_event(self._done)

    def _register(self, buffer: Buffer, memory: torch.Tensor) -> None:
        if buffer.serial in self._registered:
            return
        self._registered.add(buffer.serial)
        # Pinned: from pageable memory a copy is neither asynchronous nor fast. Refused, it still works, only slower.
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = memory.data_ptr()
        if int(runtime.cudaHostRegister(address, memory.numel(), 0)) == 0:
            buffer.releases.append(lambda: runtime.cudaHostUnregister(address))


def spare_cores(world_size: int) -> bool:
    """Whether each of the ranks, taken to be on this machine, has a core for a thread that copies."""
    return len(os.sched_getaffinity(0)) >= world_size * (torch.get_num_threads() + 1)


def copier_for(tensors: Iterable[torch.Tensor], spare: bool) -> Copier:
    """The one that fits where `tensors` lie, and whether a core is `spare`."""
    device = next((t.device for t in tensors if t.is_cuda), None)
    if device is not None:
        return CudaCopier(device)
    return Copier() if spare else BlockingCopier()
