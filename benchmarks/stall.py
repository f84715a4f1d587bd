"""What saving costs training: throughput lost over a window of steps, by size of state, how often, and way of saving.

python benchmarks/stall.py [--mb 10,100,1000] [--step-ms 100] [--threads N] [--rounds 5] [--json FILE]

A step is matrix products that take --step-ms, and AdamW over all of the state. A window is 20 steps, with a save at
each or with one. In each round every way has its window, with a window of plain training before it. Lost is what the
window took longer than that one, as a part of it, so work in the background counts as much as blocking. Blocking is the
training thread's time in the call, and for "not overlapped" until it was done. Medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from states import model_of, stepped

from trainer.checkpoint.memory.memory import Memory, Place
from trainer.rundir.machine import shm

WINDOW = 20


class Job:
    """Training that can be stepped."""

    def __init__(self, mb: float, step_ms: float) -> None:
        self.model = model_of(mb)
        self.optimizer = stepped(self.model)
        for p in self.model.parameters():
            p.grad = torch.randn_like(p) * 1e-3
        self._a = torch.randn(512, 512)
        self._products = 1
        self._products = max(1, round(step_ms / 1000 / min(self._timed_compute() for _ in range(20))))
        for _ in range(3):
            self.step()

    def _timed_compute(self) -> float:
        began = time.perf_counter()
        self._compute()
        return time.perf_counter() - began

    def _compute(self) -> None:
        for _ in range(self._products):
            self._a @ self._a

    def step(self) -> None:
        self._compute()
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def tensors(self) -> list[torch.Tensor]:
        values = [p.detach() for p in self.model.parameters()]
        return values + [t for s in self.optimizer.state.values() for t in s.values()]


@dataclass(slots=True)
class Way:
    """A way of saving: `save` is called between steps; `settle` waits for what goes on in the background."""

    name: str
    save: Callable[[int], object]
    settle: Callable[[], object] = lambda: None


def _ways(job: Job, folder: Path, memory: Memory) -> list[Way]:
    copies = [t.clone() for t in job.tensors()]
    pending: list[Any] = []

    def memcpy(step: int) -> None:
        for copy, tensor in zip(copies, job.tensors(), strict=True):
            copy.copy_(tensor)

    def fresh() -> Path:
        shutil.rmtree(folder / "out", ignore_errors=True)
        (folder / "out").mkdir()
        return folder / "out"

    def settle() -> None:
        while pending:
            pending.pop().result()

    def dcp_async(step: int) -> None:
        settle()
        pending.append(dcp.async_save(job.state(), checkpoint_id=fresh()))

    return [
        Way("snapshot", lambda step: memory.take(step, {}), memory.wait),
        Way("memcpy, blocking", memcpy),
        Way("torch.save", lambda step: torch.save(job.state(), fresh() / "file")),
        Way("DCP save", lambda step: dcp.save(job.state(), checkpoint_id=fresh())),
        Way("DCP async_save", dcp_async, settle),
    ]


def _window(job: Job, every: int, save: Callable[[int], object] | None) -> tuple[float, list[float]]:
    """Seconds of the window, and of each call."""
    calls = []
    began = time.perf_counter()
    for step in range(1, WINDOW + 1):
        job.step()
        if save is not None and step % every == every // 2:
            at = time.perf_counter()
            save(step)
            calls.append(time.perf_counter() - at)
    return time.perf_counter() - began, calls


def _not_overlapped(job: Job, ways: list[Way], rounds: int) -> dict[str, list[float]]:
    """Seconds until a snapshot is committed, and of the memcpy, with nothing else going on."""
    times: dict[str, list[float]] = {}
    for number in range(2 * rounds + 1):
        for way in ways[:2]:
            began = time.perf_counter()
            way.save(1000 + number)
            way.settle()
            if number:
                times.setdefault(way.name, []).append(time.perf_counter() - began)
    return times


def measure(mb: int, step_ms: float, rounds: int, folder: Path) -> dict[str, Any]:
    job = Job(mb, step_ms)
    memory = Memory(
        Place(shm.segment_of("benchmark-stall"), 0, 1, 0, None), {"model": job.model, "optimizer": job.optimizer}
    )
    ways = _ways(job, folder, memory)
    for step in range(3):
        memory.take(step, {})
    alone = _not_overlapped(job, ways, rounds)
    rows: dict[str, dict[str, list[float]]] = {}
    plain = []
    for _ in range(rounds):
        for every in (1, 20):
            # A save to disk at every step is a question of the disk; only what stays in memory is asked that.
            for way in ways if every > 1 else ways[:2]:
                base, _ = _window(job, every, None)
                took, calls = _window(job, every, way.save)
                way.settle()
                plain.append(base / WINDOW)
                row = rows.setdefault(f"{way.name}, every {every}", {"lost": [], "lost_s": [], "blocking_s": []})
                row["lost"].append((took - base) / base)
                row["lost_s"].append((took - base) / len(calls))
                row["blocking_s"].append(statistics.median(calls))
    memory.close()
    return {"mb": mb, "step_s": statistics.median(plain), "not_overlapped_s": alone, "ways": rows}


def _print(found: dict[str, Any]) -> None:
    print(f"{found['mb']} MB of state, a step takes {1000 * found['step_s']:.0f} ms")
    snapshot, memcpy = (statistics.median(found["not_overlapped_s"][n]) for n in ("snapshot", "memcpy, blocking"))
    print(
        f"  not overlapped: snapshot {1000 * snapshot:.1f} ms, memcpy {1000 * memcpy:.1f} ms: {snapshot / memcpy:.2f} x"
    )
    for name, row in found["ways"].items():
        lost, per_save, blocking = (statistics.median(row[key]) for key in ("lost", "lost_s", "blocking_s"))
        print(
            f"  {name:28}{100 * lost:6.1f} % lost   {1000 * per_save:8.1f} ms a save   "
            f"blocking {1000 * blocking:8.2f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", default="10,100,1000")
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        # DCP's async save wants a process group.
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        for mb in map(int, options.mb.split(",")):
            try:
                results.append(measure(mb, options.step_ms, options.rounds, Path(folder)))
            finally:
                shm.remove(shm.segment_of("benchmark-stall"))
            _print(results[-1])
        dist.destroy_process_group()
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "sizes": results}, indent=1))


if __name__ == "__main__":
    main()
