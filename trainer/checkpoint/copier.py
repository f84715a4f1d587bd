"""How bytes get from live tensors into shared memory while training goes on, and what the optimizer's next step waits for.

On the CPU the copying thread copies, and the optimizer waits until it has committed. On a GPU:

    compute stream   optimizer.step | mark ............ forward, backward ............ gate: waits for `done` | step
    side stream                      '-> wait for mark -> copies to pinned memory -> done
    copying thread                       launches them, copies what lies on the CPU, waits for `done`, commits

The GPU half has not been run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import torch

from trainer.checkpoint.image import Pair, copy_here
from trainer.checkpoint.segment import Buffer


class Copier:
    """For state on the CPU."""

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


def copier_for(tensors: Iterable[torch.Tensor]) -> Copier:
    """The one that fits where `tensors` lie."""
    device = next((t.device for t in tensors if t.is_cuda), None)
    return Copier() if device is None else CudaCopier(device)
