"""Whether what is saved on a GPU is right, to the bit. Each check is told by itself, and a wrong one is an error."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.disk.restore import recall
from trainer.checkpoint.memory import snapshots
from trainer.checkpoint.memory.memory import Memory, Place
from trainer.checkpoint.replicas import folded
from trainer.checkpoint.state.marks import PerRank
from trainer.rundir.machine import shm

from . import runs
from .part import Part

SEGMENT = shm.segment_of("bench-gpu-bits")


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list | tuple) else [value]


def same(a: Any, b: Any) -> bool:
    """Whether the nested states are equal to the bit, wherever their tensors lie."""
    ours, theirs = leaves(a), leaves(b)
    return len(ours) == len(theirs) and all(_same(x, y) for x, y in zip(ours, theirs, strict=True))


def _same(x: Any, y: Any) -> bool:
    if not isinstance(x, torch.Tensor):
        return bool(x == y)
    x, y = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(x, y)


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state.detach().clone() if isinstance(state, torch.Tensor) else state


def both(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model": dict(model.state_dict()), "optimizer": optimizer.state_dict()}


class Net(nn.Module):
    """Convolutions (channels last), BatchNorm (changes in forward), dropout (draws on the device), large matrices (a
    copy takes its time)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1))
        self.rest = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(4)))
        self.into = nn.Linear(16 * 8 * 8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.rest(self.into(self.first(x).flatten(1)))
        return made


def job(part: Part, width: int, **more: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = Net(width).to(part.device).to(memory_format=torch.channels_last)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, **more)


def step(part: Part, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, number: int) -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(number)).to(part.device)
    with torch.autocast(part.device.type, dtype=torch.float16 if part.real else torch.bfloat16):
        loss = model(x).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def memory_of(parts: dict[str, Any]) -> Iterator[Memory]:
    shm.remove(SEGMENT)
    memory = Memory(Place(SEGMENT, 0, 1, 0, None), parts, spare=True)
    try:
        yield memory
    finally:
        memory.close()
        shm.remove(SEGMENT)


class Torn:
    """Compares each snapshot, as it was committed, with the state of its step."""

    def __init__(self) -> None:
        self.wanted: dict[int, Any] = {}
        self.equal, self.torn, self.none = 0, list[int](), 0
        self.own: Any = None

    def look(self, number: int) -> None:
        if snapshots.newest_snapshot(SEGMENT) != number:
            self.none += 1
            return
        loaded = recall(SEGMENT, number, None, 0)
        shared = loaded.shared
        self.own = loaded.own
        if same([shared["model"], shared["optimizer"]["state"]], self.wanted[number]):
            self.equal += 1
        else:
            self.torn.append(number)

    def report(self, part: Part, name: str) -> None:
        text = f"{self.equal} equal, {len(self.torn)} torn {self.torn[:5]}, {self.none} not taken"
        part.tell(name, text)
        if self.torn:
            raise AssertionError(f"{name}: torn snapshots: {text}")


def bits(
    part: Part,
    name: str,
    turn: Callable[[nn.Module, Any, int], None],
    optimizer_options: dict[str, Any],
    stream: Any = None,
) -> None:
    """Snapshots of each step, looked at when the next step is issued as well. Training is on `stream`; so is the copy
    of the state that they are compared with, and nothing but the memory tier itself orders the two."""
    last = 6 if part.quick else 8
    model, optimizer = job(part, 3072 if part.real else 64, **optimizer_options)
    seen = Torn()
    with memory_of({"model": model, "optimizer": optimizer}) as memory:
        for number in range(1, last + 1):
            turn(model, optimizer, number)
            memory.wait()
            if number % 2:
                part.cuda.synchronize()
            state = both(model, optimizer)
            with part.cuda.stream(stream) if stream else nullcontext():
                seen.wanted = {number: copied([state["model"], state["optimizer"]["state"]])}
            mine = torch.full((3, 2), float(number), device=part.device).t()
            memory.take(number, {"mine": PerRank(mine)})
            mine.fill_(-1.0)
            turn(model, optimizer, 1000 + number)
            memory.wait()
            if memory.problem:
                part.tell(name, f"refused: {memory.problem}")
                return
            seen.look(number)
            told = [bool(memory._planner.image and memory._planner.image.held), memory._planner.unseen]
    seen.report(part, name)
    part.put(f"{name}: held, unseen", told)
    kept = [leaf for leaf in leaves(seen.own) if isinstance(leaf, torch.Tensor) and leaf.shape == (2, 3)]
    assert len(kept) == 1 and bool((kept[0] == float(last)).all()), f"{name}: a rank's own value is {kept}"


def plain_steps(part: Part) -> Callable[[nn.Module, Any, int], None]:
    scaler = torch.amp.GradScaler(part.device.type, enabled=False)
    return lambda model, optimizer, number: step(part, model, optimizer, scaler, number)


def side_stream(part: Part, side: Any) -> Callable[[nn.Module, Any, int], None]:
    """All training happens on a stream that is not the current one when a snapshot is taken."""
    scaler = torch.amp.GradScaler(part.device.type, enabled=False)

    def turn(model: nn.Module, optimizer: Any, number: int) -> None:
        with part.cuda.stream(side):
            step(part, model, optimizer, scaler, number)

    return turn


def graph(part: Part, when: str) -> None:
    """A graph that holds the optimizer's step: no hook sees it replayed. It is recorded `when`: before the snapshots
    begin, or while one is being copied."""
    torch.manual_seed(2)
    model = nn.Sequential(*(nn.Linear(3072, 3072, bias=False) for _ in range(4))).to(part.device)
    # With SGD nothing says beforehand that its steps will be recorded.
    kind = {"before": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9)}.get(
        when, lambda p: torch.optim.AdamW(p, lr=1e-3, capturable=True)
    )
    optimizer = kind(list(model.parameters()))
    name = f"a CUDA graph with the optimizer's step, recorded {when}"
    x = torch.randn(8, 3072, device=part.device)

    def once() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(x).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    if when == "before":
        with torch.cuda.graph(captured):
            once()
    seen = Torn()
    with memory_of({"model": model, "optimizer": optimizer}) as memory:
        if when != "before":
            for number in range(101, 105):
                once()
                memory.take(number, {})
            with torch.cuda.graph(captured):
                once()
            memory.wait()
        for number in range(201, 207 if part.quick else 209):
            captured.replay()
            memory.wait()
            state = both(model, optimizer)
            seen.wanted = {number: copied([state["model"], state["optimizer"]["state"]])}
            memory.take(number, {})
            captured.replay()
            memory.wait()
            if memory.problem:
                part.tell(name, f"refused: {memory.problem}")
                return
            seen.look(number)
        told = [bool(memory._planner.image and memory._planner.image.held), memory._planner.unseen]
    seen.report(part, name)
    part.put(f"{name}: held, unseen", told)


def resumed(part: Part) -> None:
    """Saved at step 5 and gone on from there: the same bits at step 10, with dropout, GradScaler, BatchNorm."""
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        for again in (False, True):
            model, optimizer = job(part, 256)
            scaler = torch.amp.GradScaler(part.device.type, init_scale=2.0**14, growth_interval=3)
            ckpt = Checkpointer(model=model, optimizer=optimizer, scaler=scaler, directory=folder, every=None)
            start = ckpt.restore()
            assert start == (5 if again else 0), start
            for number in range(start, 10):
                step(part, model, optimizer, scaler, number)
                if not again and number == 4:
                    ckpt.step(5)
                    assert ckpt.save()
            drawn = torch.rand(4, device=part.device)
            ends.append(copied([both(model, optimizer), scaler.state_dict(), drawn]))
            ckpt._stop.close()
    assert same(*ends), "the resumed run has other bits"
    part.tell("resumed: fp16 scaler, dropout, BatchNorm, channels_last", f"same bits; scaler {ends[0][1]['scale']}")


def fsdp(part: Part) -> None:
    """FSDP2 over NCCL with one rank."""
    from torch.distributed.fsdp import fully_shard

    ends = []
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if part.real else "gloo", init_method=f"file://{folder}/s", rank=0, world_size=1
        )
        try:
            for again in (False, True):
                torch.manual_seed(3)
                model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3))).to(part.device)
                for layer in model:
                    fully_shard(layer)
                fully_shard(model)
                optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
                ckpt = Checkpointer(model=model, optimizer=optimizer, directory=f"{folder}/c", every=None)
                for number in range(ckpt.restore(), 8):
                    model(
                        torch.randn(4, 256, generator=torch.Generator().manual_seed(number)).to(part.device)
                    ).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if not again and number == 3:
                        ckpt.step(4)
                        assert ckpt.save()
                ends.append([p.detach().full_tensor().clone() for p in model.parameters()])
                ckpt._stop.close()
        finally:
            dist.destroy_process_group()
    assert same(*ends), "the resumed run has other bits"
    part.tell("FSDP2, one rank, NCCL", "same bits")


def digested(part: Part) -> None:
    """The digest on the device is that of the same bytes on the CPU, and sees one bit."""
    generator = torch.Generator().manual_seed(4)
    cases = [torch.randn(n, generator=generator) for n in (0, 1, 3, 1000, 4097, (9 << 20) + 5)]
    cases += [torch.randn(1001, generator=generator).to(d) for d in (torch.bfloat16, torch.float16, torch.float64)]
    cases += [torch.randn(64, 33, generator=generator).t(), torch.arange(13, dtype=torch.uint8)[1:]]
    cases += [torch.randn(4, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last)]
    for number, tensor in enumerate(cases):
        here = tensor.to(part.device)
        assert int(folded(here)) == int(folded(tensor)), (
            f"digest {number} differs: {tuple(tensor.shape)} {tensor.dtype}"
        )
    large = torch.randn((1 << 28) if part.real else (1 << 16), device=part.device)
    first = int(folded(large))
    seconds = min(part.timed(lambda: folded(large)) for _ in range(3))
    large.view(torch.int32)[12345] ^= 1
    assert int(folded(large)) != first
    part.put("digest", {"bytes": large.numel() * 4, "seconds": seconds})
    part.tell("digests", f"equal on both; {large.numel() * 4 / seconds / 1e9:.0f} GB/s")


def measure(part: Part) -> None:
    torch.backends.cudnn.deterministic = True
    os.chdir(tempfile.mkdtemp())
    with part.trying("bits"):
        bits(part, "snapshots of each step", plain_steps(part), {})
    if not part.quick:
        with part.trying("bits, fused"):
            bits(part, "the same, a fused optimizer", plain_steps(part), {"fused": True})
    with part.trying("side stream"):
        side = part.cuda.Stream()
        bits(part, "training on a side stream", side_stream(part, side), {}, side)
    for check in (resumed, digested, fsdp):
        with part.trying(check.__name__):
            check(part)
    if part.real:
        for when in ("before", "beside a copy"):
            with part.trying(f"graph, {when}"):
                graph(part, when)
    if not part.quick:
        with part.trying("two ranks"):
            runs.two_ranks(part, Path.cwd())
