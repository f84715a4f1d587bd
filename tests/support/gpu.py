"""A stand-in for GPUs that is as late as a GPU may be.

Tensors stay on the CPU, and what a test puts on a device counts as being there. A stream that trains does everything at
once. Any other stream does nothing before it must: its copies are made when an event behind them is waited for, and the
thread that sleeps for one is let go only after the next step of training. So a copy that nothing waits for has values
of a later step.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator

import pytest
import torch

from trainer.checkpoint.memory import copier, cuda, image
from trainer.checkpoint.standby import lending

GPU = torch.device("cuda", 0)
GB = 1 << 30


class Stream:
    def __init__(self, machine: Gpus, device: torch.device, trains: bool = False) -> None:
        self.machine, self.device, self.trains = machine, device, trains
        self.work: deque[Callable[[], object]] = deque()

    def does(self, action: Callable[[], object]) -> None:
        with self.machine.lock:
            if self.trains:
                action()
            else:
                self.work.append(action)

    def wait_event(self, event: Event) -> None:
        mark = event.mark
        self.does(lambda: mark is None or mark.reach())

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.machine)
        event.record(other)
        self.wait_event(event)


class Mark:
    """A place in the work of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.at = stream, -1.0

    def pass_by(self) -> None:
        self.at = float(next(self.stream.machine.clock))

    def reach(self) -> None:
        while self.at < 0:
            self.stream.work.popleft()()


class Event:
    def __init__(self, machine: Gpus) -> None:
        self.machine = machine
        self.mark: Mark | None = None

    def record(self, stream: Stream) -> None:
        self.mark = Mark(stream)
        stream.does(self.mark.pass_by)

    def query(self) -> bool:
        return self.mark is None or self.mark.at >= 0

    def synchronize(self) -> None:
        self.machine.let_go.wait(60)
        with self.machine.lock:
            if self.mark is not None:
                self.mark.reach()

    def elapsed_time(self, later: Event) -> float:
        assert self.mark is not None and later.mark is not None
        return later.mark.at - self.mark.at


class Gpus:
    """In place of torch.cuda."""

    def __init__(self, patch: pytest.MonkeyPatch, devices: int = 1, free: int = 60 * GB) -> None:
        self.lock, self.clock, self.let_go = threading.RLock(), itertools.count(), threading.Event()
        self.capturing, self.free = False, free
        self.registered: dict[int, int] = {}
        self.by: set[torch.device | None] = set()
        self.may_register = threading.Event()
        self.may_register.set()
        self._places: dict[int, torch.device] = {}
        self._kept: list[torch.Tensor] = []
        self._own = [Stream(self, torch.device("cuda", n), trains=True) for n in range(devices)]
        self._here = threading.local()
        self._replace(patch)

    def _replace(self, patch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "Stream": lambda device=GPU: Stream(self, device),
            "Event": lambda **options: Event(self),
            "current_stream": self.current_stream,
            "stream": self.stream,
            "device": self.device,
            "synchronize": lambda device=None: None,
            "cudart": lambda: self,
            "mem_get_info": lambda device=None: (self.free, 80 * GB),
            "max_memory_reserved": lambda device=None: 10 * GB,
            "is_initialized": lambda: True,
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():
            patch.setattr(torch.cuda, name, value)
        for module in (copier, cuda, image):
            patch.setattr(module, "device_of", self.device_of)
        patch.setattr(image, "_piece", lambda size, device: self.put(torch.empty(size, dtype=torch.uint8), device))
        patch.setattr(cuda, "_copy", self.copy)
        patch.setattr(cuda, "_PIECE", 1 << 16)
        patch.setattr(cuda, "_CHUNK", 1 << 14)
        patch.setattr(cuda, "_REST_S", 0.0)

    def put(self, tensor: torch.Tensor, device: torch.device = GPU) -> torch.Tensor:
        """`tensor` counts as being on `device`."""
        self._kept.append(tensor)
        self._places[tensor.untyped_storage().data_ptr()] = device
        return tensor

    def lend(self, tensor: torch.Tensor, device: torch.device = GPU) -> torch.Tensor:
        """As put(), but it may be gone as soon as nobody else keeps it."""
        self._places[tensor.untyped_storage().data_ptr()] = device
        return tensor

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        return self._places.get(tensor.untyped_storage().data_ptr(), tensor.device)

    def current_stream(self, device: torch.device = GPU) -> Stream:
        chosen = getattr(self._here, "stream", None)
        return chosen if chosen is not None and chosen.device == device else self._own[device.index or 0]

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = getattr(self._here, "stream", None)
        self._here.stream = stream
        try:
            yield
        finally:
            self._here.stream = before

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self._here.device = device
        yield
        self._here.device = None

    def copy(self, targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        stream = self._here.stream
        assert {self.device_of(source) for source in sources} == {stream.device}
        for target in targets:
            start, size = target.data_ptr(), target.numel()
            assert any(at <= start and start + size <= at + length for at, length in self.registered.items())
        stream.does(lambda: torch._foreach_copy_(targets, sources))

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.may_register.wait(60)
        self.by.add(self._here.device)
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.by.add(getattr(self._here, "device", None))
        del self.registered[address]
        return 0


class Runtime:
    """In place of CUDA's: what is registered, on which devices, and in which threads it was asked. The device is each
    thread's own, 0 at first."""

    def __init__(self, patch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        self.registered: dict[int, int] = {}
        self.devices: set[int | torch.device] = set()
        self.failed: set[int] = set()
        self.refuses = refuses
        self._here = threading.local()
        patch.setattr(lending, "_runtime", lambda: self)
        patch.setattr(torch.cuda, "current_device", self.current_device)
        patch.setattr(torch.cuda, "device", self.device)

    def current_device(self) -> int | torch.device:
        found: int | torch.device = getattr(self._here, "device", 0)
        return found

    @contextlib.contextmanager
    def device(self, device: int | torch.device) -> Iterator[None]:
        before, self._here.device = self.current_device(), device
        try:
            yield
        finally:
            self._here.device = before

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.devices.add(self.current_device())
        if self.refuses:
            self.failed.add(threading.get_ident())
            return 1
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        self.devices.add(self.current_device())
        del self.registered[address]
        return 0
