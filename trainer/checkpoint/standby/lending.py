"""Snapshots as they lie in shared memory, lent to a restore that copies them: no copy is made in between.

A standby maps the buffers before they are needed, and registers them with CUDA, so that copies from them are fast. A
tensor is lent only where whoever takes it surely copies it: the parameters and buffers of modules, and the states of
torch's own optimizers, if they lie on a GPU. On the CPU only a large one of a module of torch's own ways is lent: it
is copied to where the parameter lies, whose memory was touched long before. Memory in between is touched for the first
time, which takes longer than both copies.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...rundir.machine.shm import SLOTS, buffer_path, ranks_in
from ..format.plan import Spec
from ..memory.cuda import devices_of, relax
from ..state import several, tensors
from ..state.packing import Packed
from ..state.state import Stateful

_LEAST = 64 << 10
"""Bytes of the smallest tensor that is lent. The counters of optimizers, which stay on the CPU, are smaller."""
_LEAST_ON_CPU = 1 << 20
_KEPT = 10.0
"""Seconds for which buffers stay mapped after the restore. To unmap them takes time that the first steps need."""


class Mapped:
    """The buffers of a run's snapshots in the memory of this process, registered with CUDA."""

    def __init__(self, segment: Path, gpus: Sequence[torch.device]) -> None:
        """`gpus`: those of this rank's state, its own one first. None: the current one is."""
        self._segment, self._device = segment, gpus[0] if gpus else torch.cuda.current_device()
        self._buffers: dict[Path, tuple[os.stat_result, mmap.mmap, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """All buffers that there are now are mapped, and no other: a removed one must not keep its memory."""
        places = (buffer_path(self._segment, rank, slot) for rank in ranks_in(self._segment) for slot in SLOTS)
        paths = [path for path in places if path.exists()]
        for path in [path for path in self._buffers if path not in paths or not self._is_current(path)]:
            self._unmap(path)
        for path in paths:
            if path not in self._buffers:
                with contextlib.suppress(OSError, ValueError):
                    self._map(path)

    def file(self, path: Path, size: int) -> memoryview | None:
        """The first `size` bytes of the file at `path`; None if it is not mapped as it is now."""
        known = self._buffers.get(path)
        if known is None or not self._is_current(path) or len(known[1]) < size:
            return None
        return memoryview(known[1])[:size]

    def close(self) -> None:
        for path in list(self._buffers):
            self._unmap(path)

    def _is_current(self, path: Path) -> bool:
        try:
            now = path.lstat()
        except OSError:
            return False
        then = self._buffers[path][0]
        return (now.st_ino, now.st_dev, now.st_size) == (then.st_ino, then.st_dev, then.st_size)

    def _map(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # Writable, though nobody writes here: CUDA registers no other memory.
            found, memory = os.fstat(fd), mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        address = torch.frombuffer(memory, dtype=torch.uint8).data_ptr()
        registered = self._aside(lambda: _runtime().cudaHostRegister(address, len(memory), 0)) == 0
        self._buffers[path] = (found, memory, address if registered else 0)

    def _unmap(self, path: Path) -> None:
        _, _, address = self._buffers.pop(path)
        if address:
            self._aside(lambda: _runtime().cudaHostUnregister(address))

    def _aside(self, call: Callable[[], Any]) -> int:
        """What CUDA answers to `call`, in a thread for it alone. A refusal would be the last error of this thread, and
        the program's next kernel would raise it. The device is a thread's own, too: on another one than this rank's
        the call would make a context."""

        answers: list[int] = []

        def there() -> None:
            relax()
            with torch.cuda.device(self._device):
                answers.append(int(call()))

        # Not of a pool: this may be asked while the interpreter ends, and may not hold up the end.
        thread = threading.Thread(target=there, daemon=True)
        thread.start()
        thread.join()
        return answers[0] if answers else -1


def give_back_later(mapped: Mapped | None, lent: object) -> None:
    """What is mapped, and what was `lent` of it, is given back once nobody is in a hurry any more."""
    kept = [lent]

    def give_back() -> None:
        kept.clear()
        if mapped is not None:
            mapped.close()

    timer = threading.Timer(_KEPT, give_back)
    timer.daemon = True
    timer.start()


def on_gpu() -> bool:
    """Whether this process uses a GPU."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def gpus_of(parts: Mapping[str, Any]) -> list[torch.device]:
    """The GPUs on which the model and what its optimizers change lie. A program need not have told torch that it uses
    them: the current device may be another one."""
    model = parts.get("model")
    held = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    groups = [group for one in several.values("optimizer", parts) for group in getattr(one, "param_groups", ())]
    return devices_of([*held, *(parameter for group in groups for parameter in group["params"])])


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class Lending:
    """What may be lent to the parts of a restore. `fresh` was captured from them."""

    def __init__(self, parts: Mapping[str, Stateful], fresh: Packed, mapped: Mapped | None = None) -> None:
        self.mapped = mapped
        self._on_gpu = {name for name, tensor in fresh.tensors.items() if tensor.is_cuda}
        self._copies = {name for name, part in parts.items() if _copies(part)} if self._on_gpu else set()
        self._in_place = _in_place(parts.get("model"), fresh) if not self._on_gpu else set()

    def __bool__(self) -> bool:
        """Whether there is anything that may be lent."""
        return bool(self._on_gpu or self._in_place)

    def lends(self, name: str) -> bool:
        """Whether the tensor `name` of a state may be lent."""
        if name in self._in_place:
            return True
        part, _, rest = name.partition("/")
        if part not in self._copies:
            return False
        return name in self._on_gpu if part == "model" else rest.startswith("state/")

    def lent(self, name: str, spec: Spec, content: memoryview) -> torch.Tensor | None:
        """The tensor `name`, whose bytes are `content`, without a copy; None if it must be copied. It must not be
        changed."""
        if spec.bytes < _LEAST or not self.lends(name):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it must not be changed is known
            return torch.frombuffer(content, dtype=tensors.DTYPES[spec.dtype]).view(spec.shape)


def _copies(part: Any) -> bool:
    """Whether all tensors of `part` that are loaded are copied to a GPU."""
    if isinstance(part, several.Models):
        return all(map(_copies, part.by_name.values()))
    if isinstance(part, nn.Module):
        return True
    if not isinstance(part, torch.optim.Optimizer):
        return False
    plain = type(part).load_state_dict is torch.optim.Optimizer.load_state_dict
    return plain and all(p.is_cuda and p.is_floating_point() for group in part.param_groups for p in group["params"])


def _in_place(model: Any, fresh: Packed) -> set[str]:
    """The large tensors in `fresh` of `model` on the CPU, if it surely copies what is loaded to where they lie."""
    models = list(model.by_name.values()) if isinstance(model, several.Models) else [model]
    if torch.__future__.get_swap_module_params_on_conversion() or not all(map(_is_plain, models)):
        return set()
    plain = (torch.Tensor, nn.Parameter)
    held = [tensor for one in models for tensor in (*one.parameters(), *one.buffers()) if type(tensor) in plain]
    places = {tensor.data_ptr() for tensor in held if tensor.is_cpu and tensor.nbytes >= _LEAST_ON_CPU}
    return {n for n, tensor in fresh.tensors.items() if n.startswith("model/") and tensor.data_ptr() in places}


def _is_plain(model: Any) -> bool:
    """Whether it is loaded as torch's own modules are, by copies into its parameters, and nobody else sees them."""
    if not isinstance(model, nn.Module) or type(model).load_state_dict is not nn.Module.load_state_dict:
        return False
    for one in model.modules():
        if one._load_state_dict_pre_hooks or one._load_state_dict_post_hooks:
            return False
        if not type(one)._load_from_state_dict.__module__.startswith("torch.nn.modules."):
            return False
        if "load_state_dict" in vars(one) or "_load_from_state_dict" in vars(one):
            return False
    return True
