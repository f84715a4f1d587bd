"""How bytes are copied from live tensors into shared memory, and when the optimizer's next step must wait.

On the CPU without a spare core, the training thread copies at once, with all threads that it computes with. A copying
thread beside them would delay all of them at their barriers (see DESIGN.md). With a spare core, the copying thread
copies while training goes on, and the optimizer waits until it has committed. On a GPU:

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
    """For state on the CPU, with a spare core."""

    overlaps = True
    """Whether a separate thread copies while the training thread goes on."""

    def __init__(self) -> None:
        self._free = threading.Event()

    def mark(self) -> None:
        """Called by the training thread: the state is now as it must be copied."""
        self._free.clear()

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]) -> None:
        """Every source is in its place in `memory`, which belongs to `buffer`. Called by the copying thread."""
        copy_here(pairs)

    def finish(self) -> None:
        """Copying has ended, well or not. Called by the copying thread."""
        self._free.set()

    def gate(self) -> None:
        """The marked state is copied, or will be before any work that is queued from now on. Called by the training
        thread."""
        self._free.wait()


class BlockingCopier(Copier):
    """For state on the CPU, without a spare core: nothing waits."""

    overlaps = False

    def mark(self) -> None:
        """Nothing will change before it is copied."""

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair]) -> None:
        if torch.get_num_threads() == 1:
            copy_here(pairs)
        elif pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


class CudaCopier(Copier):
    """For state of which at least a part lies on this rank's CUDA device."""

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
        # From here on the compute stream waits for `done`. The training thread does not wait.
        self._free.set()
        self._done.synchronize()

    def gate(self) -> None:
        super().gate()
        torch.cuda.current_stream(self._device).wait_event(self._done)

    def _register(self, buffer: Buffer, memory: torch.Tensor) -> None:
        if buffer.serial in self._registered:
            return
        self._registered.add(buffer.serial)
        # Pinned: a copy to pageable memory is neither asynchronous nor fast. If pinning is refused, it works, but
        # slower.
        runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address = memory.data_ptr()
        if int(runtime.cudaHostRegister(address, memory.numel(), 0)) == 0:
            buffer.releases.append(lambda: runtime.cudaHostUnregister(address))


def spare_cores(world_size: int) -> bool:
    """Whether each rank has a spare core for a copying thread. All ranks are taken to be on this machine."""
    return len(os.sched_getaffinity(0)) >= world_size * (torch.get_num_threads() + 1)


def copier_for(tensors: Iterable[torch.Tensor], spare: bool) -> Copier:
    """The copier for the devices of `tensors`; `spare`: whether a core is spare."""
    device = next((t.device for t in tensors if t.is_cuda), None)
    if device is not None:
        return CudaCopier(device)
    return Copier() if spare else BlockingCopier()
