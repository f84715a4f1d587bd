"""From saved state to tensors in memory, seconds: a snapshot, a verified checkpoint, torch.load, DCP load, and a
memcpy.

python benchmarks/restore.py [--mb 1024] [--ranks 2] [--rounds 5] [--json FILE]

What is read was written by as many ranks as asked for and is read whole by one, warm in the page cache. Every
measurement is in a freshly forked process with one thread, as a restore is: its memory has never been touched. "memcpy"
clones the same tensors, "target touched" copies them where they had been copied before. "and put back" adds
load_state_dict of a model and its optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from states import model_of, snapshot_of, stepped

from trainer.checkpoint.disk.flush import flush
from trainer.checkpoint.disk.restore import load, recall
from trainer.checkpoint.state.state import apply
from trainer.rundir.layout import step_name
from trainer.rundir.machine import shm


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for child in children for leaf in _leaves(child)]


def _forked(action: Callable[[], Any]) -> Any:
    """What `action` returned in a child of this process: as a rank does, it begins with no memory of its own to
    reuse."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(theirs, json.dumps(action()).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)


class Bench:
    """The same state in every form, in `folder` and in shared memory."""

    def __init__(self, mb: int, ranks: int, folder: Path) -> None:
        self.mb, self.ranks, self.folder = mb, ranks, folder
        self.segment = shm.segment_of("benchmark-restore")
        self.ways: dict[str, Callable[[], Callable[[], Any]]] = {
            "memcpy": self._memcpy,
            "memcpy, target touched": self._memcpy_again,
            "snapshot": lambda: lambda: recall(self.segment, 1, None, 0),
            "snapshot and put back": self._put_back,
            "checkpoint, verified": lambda: lambda: load(self.folder / "c" / step_name(1), 0),
            "torch.load": lambda: lambda: torch.load(self.folder / "file", weights_only=True),
            "DCP load": self._dcp,
        }

    def write(self) -> None:
        torch.set_num_threads(1)
        model = model_of(self.mb)
        state = {"model": model.state_dict(), "optimizer": stepped(model).state_dict()}
        snapshot_of(state, self.segment, self.ranks)
        assert "error" not in flush(self.segment, self.folder / "c", 1, 3, None)
        torch.save(state, self.folder / "file")
        named = {str(number): leaf for number, leaf in enumerate(_leaves(state))}
        dcp.save(named, checkpoint_id=self.folder / "dcp", no_dist=True)

    def time(self, way: str) -> float:
        """Seconds of that way in this process."""
        torch.set_num_threads(1)
        action = self.ways[way]()
        began = time.perf_counter()
        kept = action()
        took = time.perf_counter() - began
        del kept
        return took

    def _memcpy(self) -> Callable[[], Any]:
        leaves = _leaves(torch.load(self.folder / "file", weights_only=True))
        return lambda: [leaf.clone() for leaf in leaves]

    def _memcpy_again(self) -> Callable[[], Any]:
        leaves = _leaves(torch.load(self.folder / "file", weights_only=True))
        copies = [leaf.clone() for leaf in leaves]
        return lambda: [copy.copy_(leaf) for copy, leaf in zip(copies, leaves, strict=True)]

    def _put_back(self) -> Callable[[], Any]:
        model = model_of(self.mb)
        parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-4)}
        return lambda: apply(parts, recall(self.segment, 1, None, 0).shared, "")

    def _dcp(self) -> Callable[[], Any]:
        leaves = _leaves(torch.load(self.folder / "file", weights_only=True, mmap=True))
        shapes = {str(number): (leaf.shape, leaf.dtype) for number, leaf in enumerate(leaves)}
        del leaves

        def read() -> dict[str, torch.Tensor]:
            into = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
            dcp.load(into, checkpoint_id=self.folder / "dcp", no_dist=True)
            return into

        return read


def measure(mb: int, ranks: int, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each way, by round; each in a process of its own."""
    bench = Bench(mb, ranks, folder)
    try:
        _forked(bench.write)
        times: dict[str, list[float]] = {name: [] for name in bench.ways}
        for _ in range(rounds):
            for name in bench.ways:
                times[name].append(_forked(lambda n=name: bench.time(n)))  # type: ignore[misc]
    finally:
        shm.remove(bench.segment)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        times = measure(options.mb, options.ranks, options.rounds, Path(folder))
    print(f"{options.mb} MB of state, {options.ranks} ranks, {options.rounds} rounds: median (worst)")
    memcpy, load_ = (statistics.median(times[name]) for name in ("memcpy", "torch.load"))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        ratios = f"{median / memcpy:5.2f} x memcpy   {median / load_:5.2f} x torch.load"
        print(f"  {name:24}{median:7.3f} s ({max(seconds):.3f})   {ratios}")
    if options.json:
        options.json.write_text(json.dumps({"mb": options.mb, "ranks": options.ranks, "ways": times}, indent=1))


if __name__ == "__main__":
    main()
