"""Private parts of torch that we replace or read, all of them here; read in pytorch 2.13.

Each says what is lost where torch has it no more: a patch that finds nothing to replace does nothing, and is in `missing`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

missing: list[str] = []
"""What this torch does not have under the name that we know."""


def name_quickly() -> None:
    """The rendezvous learns the name of a calling method from that method's frame.

    torch asks for the whole stack, with lines of source, twice for each of its events: two thirds of what a launcher does
    (`dynamic_rendezvous.get_method_name`). Without it: 40 ms of CPU more for each group.
    """
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous

    if not hasattr(dynamic_rendezvous, "get_method_name"):
        missing.append("dynamic_rendezvous.get_method_name")
        return
    dynamic_rendezvous.get_method_name = lambda depth=2: sys._getframe(depth).f_code.co_name


def replace_forks(context: type[Any]) -> None:
    """The engine's forks are a `context`, not its own (`MultiprocessContext`, looked up by `start_processes`).

    Without it: a forked rank that ends by os._exit, or becomes another program, is never seen to end, and there must be a
    /dev/shm for the semaphores of a queue.
    """
    from torch.distributed.elastic import multiprocessing

    if not hasattr(multiprocessing, "MultiprocessContext"):
        missing.append("elastic.multiprocessing.MultiprocessContext")
        return
    multiprocessing.MultiprocessContext = context  # type: ignore[misc]


def replace_poll(poll: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    """The engine asks `poll(context, its own way of polling)` whether its ranks have ended (`PContext._poll`).

    Without it: the engine ends all ranks as soon as one has failed, and there is no grace for a last save.
    """
    from torch.distributed.elastic import multiprocessing

    for name in ("MultiprocessContext", "SubprocessContext"):
        context = getattr(multiprocessing, name, None)
        if not hasattr(context, "_poll"):
            missing.append(f"{name}._poll")
            continue
        _wrap_poll(context, poll)


def _wrap_poll(context: Any, poll: Callable[[Any, Callable[[Any], Any]], Any]) -> None:
    original = context._poll
    context._poll = lambda self: poll(self, original)


_count_gpus: list[Any] = []


def count_gpus_apart() -> None:
    """Where NVML cannot be asked how many GPUs there are, a fork of this process asks CUDA, not this process itself
    (`torch._C._cuda_getDeviceCount`).

    torch.cuda.is_available() falls back to it. Without it: on a machine without NVML, CUDA works in no fork of this process.
    """
    torch = sys.modules.get("torch")
    # A torch without CUDA has no such function, and that is how it is known.
    if torch is None or _count_gpus or not hasattr(torch._C, "_cuda_getDeviceCount"):
        return
    original = torch._C._cuda_getDeviceCount
    _count_gpus.append(original)
    torch._C._cuda_getDeviceCount = lambda: _asked_apart(original)


def count_gpus_here() -> None:
    """count_gpus_apart() is undone."""
    while _count_gpus:
        sys.modules["torch"]._C._cuda_getDeviceCount = _count_gpus.pop()


def _asked_apart(count: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(min(count(), 255))
        finally:
            os._exit(0)
    return max(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
