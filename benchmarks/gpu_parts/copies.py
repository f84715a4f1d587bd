"""What a snapshot of a large state costs, by the way in which it is copied from the device to shared memory.

A step of 302 M parameters (bf16, AdamW, 3.6 GB of state) ends with loss.item(), as loops do: a copy from the device
itself, which waits if the same engine is busy with a snapshot. So beside the time of steps, the time of such a read is
taken while a snapshot is copied and nothing else is on the device.

    one piece    all copies are issued at once; the next optimizer step waits for the last, on the device
    paced        each chunk is issued by a thread when the one before is done; the next step waits for the thread
    two streams  all chunks are issued at once, in turn on two streams, each after the one before
    staged       a copy on the device first, on the stream that trains; chunks are then taken from it over several steps
"""

from __future__ import annotations

import itertools
import mmap
import os
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.memory.memory import Memory, Place
from trainer.checkpoint.memory.snapshots import newest_snapshot
from trainer.gpt.model import GPT, GPTConfig
from trainer.rundir.machine import shm

from .part import Part, spread

_FILE = Path("/dev/shm/bench-gpu-copies")


class Job:
    """The model, and a step of it."""

    def __init__(self, part: Part) -> None:
        self.part = part
        layers, width, heads, self.batch, self.block = (24, 1024, 16, 16, 512) if part.real else (2, 64, 2, 2, 16)
        torch.manual_seed(0)
        with part.device:
            self.model = GPT(GPTConfig(self.block, layers, heads, width, 0.0))
        self.optimizer = torch.optim.AdamW(self.model.parameter_groups(0.1), lr=1e-4, fused=True)
        self.numbers = itertools.count()
        for _ in range(3):
            self.step()

    def step(self, before: Any = None) -> float:
        """Seconds of one step; `before` is called when its backward pass is issued."""
        began = time.perf_counter()
        generator = torch.Generator(self.part.device).manual_seed(next(self.numbers))
        x = torch.randint(0, 256, (self.batch, self.block), device=self.part.device, generator=generator)
        with torch.autocast(self.part.device.type, dtype=torch.bfloat16):
            loss = self.model(x, x)
        loss.backward()
        if before is not None:
            before()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - began

    def state(self) -> list[torch.Tensor]:
        tensors = [p.detach() for p in self.model.parameters()]
        for p in self.model.parameters():
            tensors += [self.optimizer.state[p]["exp_avg"], self.optimizer.state[p]["exp_avg_sq"]]
        return [tensor.view(-1).view(torch.uint8) for tensor in tensors]


class Host:
    """Registered shared memory for all of the state."""

    def __init__(self, part: Part, size: int) -> None:
        self._real = part.real
        with _FILE.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            self.memory = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        _FILE.unlink()
        if part.real:
            runtime: Any = torch.cuda.cudart()
            part.put("register_s", part.timed(lambda: runtime.cudaHostRegister(self.memory.data_ptr(), size, 0)))

    def close(self) -> None:
        if self._real:
            torch.cuda.cudart().cudaHostUnregister(self.memory.data_ptr())  # type: ignore[no-untyped-call]


class Way:
    """One way of copying. `chunk` is in bytes, None: tensors as they are."""

    def __init__(
        self, part: Part, state: list[torch.Tensor], host: Host, how: str, chunk: int | None, staged: bool
    ) -> None:
        self.cuda, self.how, self.staged = part.cuda, how, staged
        self.state = state
        self.stage = [torch.empty_like(tensor) for tensor in state] if staged else state
        self.pairs = []
        at = 0
        for tensor in self.stage:
            size = tensor.numel()
            for start in range(0, size, chunk or size):
                end = min(size, start + (chunk or size))
                self.pairs.append((host.memory[at + start : at + end], tensor[start:end]))
            at += size
        self.sides = [part.cuda.Stream(), part.cuda.Stream()]
        self.ready, self.done = part.cuda.Event(), part.cuda.Event(blocking=True)
        self.links = [part.cuda.Event(blocking=True) for _ in range(2)]
        self.taken, self.seconds = 0, list[float]()
        self._idle, self._issued = threading.Event(), threading.Event()
        self._idle.set()
        self._issued.set()
        self._jobs: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def take(self) -> bool:
        """Whether a snapshot is begun: the last one must be over."""
        if not self._idle.is_set():
            return False
        self._idle.clear()
        self._issued.clear()
        if self.staged:
            torch._foreach_copy_(self.stage, self.state)
        self.ready.record(self.cuda.current_stream())
        self.taken += 1
        self._jobs.put(time.perf_counter())
        return True

    def gate(self) -> None:
        """Called before an optimizer's step."""
        if not self.staged and not self._idle.is_set():
            self._issued.wait()
            self.cuda.current_stream().wait_event(self.done)

    def wait(self) -> None:
        self._idle.wait()

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (began := self._jobs.get()) is not None:
            for side in self.sides:
                side.wait_event(self.ready)
            {"one piece": self._at_once, "paced": self._paced, "two streams": self._in_turn}[self.how]()
            self._issued.set()
            self.done.synchronize()
            self.seconds.append(time.perf_counter() - began)
            self._idle.set()

    def _at_once(self) -> None:
        with self.cuda.stream(self.sides[0]):
            torch._foreach_copy_([to for to, _ in self.pairs], [of for _, of in self.pairs], non_blocking=True)
        self.done.record(self.sides[0])

    def _paced(self) -> None:
        with self.cuda.stream(self.sides[0]):
            for to, of in self.pairs:
                to.copy_(of, non_blocking=True)
                self.links[0].record(self.sides[0])
                self.links[0].synchronize()
        self.done.record(self.sides[0])

    def _in_turn(self) -> None:
        for number, (to, of) in enumerate(self.pairs):
            here, other = self.sides[number % 2], self.sides[1 - number % 2]
            with self.cuda.stream(here):
                to.copy_(of, non_blocking=True)
                self.links[number % 2].record(here)
            other.wait_event(self.links[number % 2])
        for side in self.sides:
            self.sides[0].wait_stream(side)
        self.done.record(self.sides[0])


def _reads(part: Part, way: Way) -> list[float]:
    """Seconds of reading one number while a snapshot is copied."""
    one, times = torch.ones(1, device=part.device), []
    part.cuda.synchronize()
    for _ in range(3):
        way.take()
        while not way._idle.is_set() and len(times) < 3000:
            began = time.perf_counter()
            (one + 1).item()
            times.append(time.perf_counter() - began)
        way.wait()
    return times


def _window(job: Job, steps: int, every: int, way: Way | None) -> list[float]:
    times = []
    for number in range(steps):
        times.append(job.step(way.gate if way else None))
        if way and number % every == 0:
            way.take()
    if way:
        way.wait()
    job.part.cuda.synchronize()
    return times[4:]


def _ways() -> list[tuple[str, int | None, bool, tuple[int, ...]]]:
    """(how, MB a chunk, staged, at every so many steps)."""
    return [
        ("one piece", None, False, (1, 4)),
        ("paced", 16, False, (4,)),
        *(("two streams", mb, False, (4,)) for mb in (4, 16, 64)),
        ("one piece", None, True, (2, 4)),
        ("paced", 16, True, (2, 4)),
        *(("two streams", mb, True, (2, 4)) for mb in (4, 16)),
    ]


def measure(part: Part) -> None:
    job = Job(part)
    steps = (22 if part.quick else 44) if part.real else 6
    state = job.state()
    size = sum(tensor.numel() for tensor in state)
    part.put("state_bytes", size)
    part.put("stage_on_device_s", _staging(part, state))
    part.put("off", [spread(_window(job, steps, 1, None))])
    part.tell("step, no snapshots", f"{part.found['off'][0]['p50']} ms (mean {part.found['off'][0]['mean']})")
    with part.trying("the product"):
        _product(part, job, steps)
    part.put("off", [*part.found["off"], spread(_window(job, steps, 1, None))])
    if not part.quick:
        _all_ways(part, job, state, size, steps)
        part.put("off", [*part.found["off"], spread(_window(job, steps, 1, None))])


def _all_ways(part: Part, job: Job, state: list[torch.Tensor], size: int, steps: int) -> None:
    host = Host(part, size)
    for how, mb, staged, intervals in _ways():
        name = f"{'staged, ' if staged else ''}{how}{f', {mb} MB' if mb else ''}"
        with part.trying(name):
            way = Way(part, state, host, how, mb and (mb << 20), staged)
            try:
                found: dict[str, Any] = {"read": spread(_reads(part, way)), "copy": spread(way.seconds)}
                for every in intervals:
                    way.taken = 0
                    times = spread(_window(job, steps, every, way))
                    found[f"every {every}"] = {**times, "snapshots": way.taken, "steps": steps}
            finally:
                way.close()
            part.put("ways", {**part.found.get("ways", {}), name: found})
            told = [f"{k}: {v['mean']} ms ({v['snapshots']})" for k, v in found.items() if k.startswith("every")]
            part.tell(name, f"copy {found['copy']['p50']}, read {found['read']}; step mean {', '.join(told)}")
            del way
            part.cuda.empty_cache()
    host.close()


def _staging(part: Part, state: list[torch.Tensor]) -> float:
    stage = [torch.empty_like(tensor) for tensor in state]
    return min(part.timed(lambda: torch._foreach_copy_(stage, state)) for _ in range(4))


def _product(part: Part, job: Job, steps: int) -> None:
    """The memory tier as it is: from its first snapshot on, as `auto` asks for them; then at every so many steps."""
    segment = shm.segment_of("bench-gpu-copies")
    memory = Memory(Place(segment, 0, 1, 0, None), {"model": job.model, "optimizer": job.optimizer}, spare=True)
    found: dict[str, Any] = {}
    try:
        first, numbers = list[Any](), itertools.count(1)
        for _ in range(3 * steps):
            took = job.step()
            began = time.perf_counter()
            number, free = next(numbers), not memory.busy
            if free:
                memory.take(number, {})
            first.append([round(1000 * (took + time.perf_counter() - began), 1), free, newest_snapshot(segment)])
        memory.wait()
        found["from the start"] = first
        found["held"] = bool(memory._planner.image and memory._planner.image.held)
        for every in (1, 2, 4, 8):
            found[f"every {every}"] = _asked(job, memory, numbers, 2 * steps, every)
            told = found[f"every {every}"]
            part.tell(
                f"product, every {every}", f"step mean {told['mean']} ms, median {told['p50']}, cost {told['cost_s']}"
            )
        found["read"] = spread(_beside(part, memory, numbers))
        part.tell("product, a read beside the copy", found["read"])
    finally:
        found["problem"] = memory.problem
        part.put("product", found)
        memory.close()
        shm.remove(segment)


def _asked(job: Job, memory: Memory, numbers: Iterator[int], steps: int, every: int) -> dict[str, Any]:
    times, costs, taken = [], [], 0
    memory.wait()
    for turn in range(steps):
        took = job.step()
        began = time.perf_counter()
        number = next(numbers)
        if turn % every == 0:
            memory.take(number, {})
            costs.append(round(1000 * memory.cost_s, 2))
            taken += 1
        times.append(took + time.perf_counter() - began)
    memory.wait()
    return {**spread(times[4:]), "taken": taken, "cost_s": statistics.median(costs)}


def _beside(part: Part, memory: Memory, numbers: Iterator[int]) -> list[float]:
    one, times = torch.ones(1, device=part.device), []
    for _ in range(3):
        memory.take(next(numbers), {})
        while memory.busy and len(times) < 3000:
            began = time.perf_counter()
            (one + 1).item()
            times.append(time.perf_counter() - began)
    return times
