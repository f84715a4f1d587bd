"""How bytes are copied from live tensors into shared memory, and when the optimizer's next step must wait.

On the CPU without a spare core, the training thread copies at once, with all threads that it computes with. A copying
thread beside them would delay all of them at their barriers (see DESIGN.md). With a spare core, the copying thread
copies while training goes on, and the optimizer waits until it has committed. For GPUs see cuda.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable

import torch

from .image import Pair, copy_here, device_of, is_on_gpu
from .segment import Buffer


def bring(pairs: Iterable[Pair]) -> None:
    """Each destination holds the bytes of its source, wherever that lies."""
    for target, source in pairs:
        if is_on_gpu(source):
            torch.cuda.synchronize(device_of(source))  # it may have been made on any stream
        target.copy_(source)


class Copier:
    """For state on the CPU, with a spare core."""

    overlaps = True
    """Whether a separate thread copies while the training thread goes on."""
    by_steps = False
    """Whether the cost of a snapshot is seen in the time of steps only."""
    registers = False
    """Whether new memory must be registered, which takes long."""
    making = False
    """Whether no step waits for this snapshot, because its memory is being made."""
    late_s = 0.0
    """Seconds for which the optimizer's last step waited for the copy, on its device."""

    def __init__(self) -> None:
        self._free = threading.Event()

    def is_for(self, devices: list[torch.device]) -> bool:
        """Whether it is the copier for state on these GPUs."""
        return not devices

    def stepping(self) -> None:
        """An optimizer is about to step."""

    def join(self) -> None:
        """What the training thread copies from now on is what the optimizers have left."""

    def mark(self) -> None:
        """Called by the training thread: the state is now as it must be copied."""
        self._free.clear()

    def holds(self, needed: Callable[[], dict[torch.device, int]], unseen: bool) -> bool:
        """Whether the state is first copied aside where it lies. `needed()`: its bytes by device. `unseen`: optimizers
        step without gate()."""
        return False

    def cannot_hold(self) -> None:
        """The memory to hold the state was not there."""

    def forget(self) -> None:
        """Nothing that was copied is held here any more. Called by the training thread, while nothing is copied."""

    def open(self) -> None:
        """No step waits for this snapshot any more: its memory is yet to be made."""

    def is_making(self) -> bool:
        """Whether the memory of the last snapshot is still being made. Called by the training thread."""
        return False

    def register(self, buffer: Buffer) -> None:
        """The memory of `buffer` can be copied into at full speed."""

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair], own: list[Pair]) -> None:
        """Every source is in its place in `memory`, which belongs to `buffer`. `pairs` is the same list while nothing
        moves. Called by the copying thread."""
        copy_here(pairs)
        bring(own)

    def tick(self, busy: bool) -> list[tuple[float, bool]]:
        """Called once a step; `busy`: a snapshot is being copied. (seconds, busy) of steps that have ended on the
        device since the last call."""
        return []

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

    def copy(self, buffer: Buffer, memory: torch.Tensor, pairs: list[Pair], own: list[Pair]) -> None:
        bring(own)
        if torch.get_num_threads() == 1:
            copy_here(pairs)
        elif pairs:
            torch._foreach_copy_([target for target, _ in pairs], [source for _, source in pairs])


def spare_cores(world_size: int) -> bool:
    """Whether each rank has a spare core for a copying thread. All ranks are taken to be on this machine."""
    return len(os.sched_getaffinity(0)) >= world_size * (torch.get_num_threads() + 1)
