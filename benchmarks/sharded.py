"""A sharded state (FSDP2, AdamW) saved and loaded, against torch.distributed.checkpoint (DCP) in the same run.

python benchmarks/sharded.py [--mb 576] [--ranks 2] [--others 1,4] [--rounds 5] [--folder DIR] [--json FILE]

Ours is written with a digest of each block and proved at the load; DCP has no digests. Both sync their files. In each
round every way runs once, one after another. Wall and CPU seconds are those of the slowest rank; medians over rounds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from common import machine, options, write
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.memory.memory import Memory, Place
from trainer.rundir.files.durable import DISK

WIDTH = 2000
WARM = 2
"""Rounds that are not counted: they make buffers and files."""
Times = dict[str, list[tuple[float, float]]]
"""By way: (wall, CPU) seconds of this rank, by round."""


def _made(mb: int, stepped: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer, `mb` MB together, after one step; without that the optimizer has no states yet."""
    net = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(round(mb * 1e6 / WIDTH**2 / 12))])
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters())
    for param in net.parameters() if stepped else ():
        param.grad = torch.ones_like(param)
    if stepped:
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def _timed(times: Times, way: str, action: Callable[[], Any]) -> None:
    dist.barrier()
    wall, cpu = time.monotonic(), time.process_time()
    action()
    times.setdefault(way, []).append((time.monotonic() - wall, time.process_time() - cpu))


def _checkpointer(net: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> Checkpointer:
    return Checkpointer(model=net, optimizer=optimizer, directory=folder, every=None)


def _removed(folder: Path, rank: int) -> None:
    """`folder` is gone for good, so that the next fsync does not pay for it."""
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        DISK.sync_dir(folder.parent)


def _load(times: Times, way: str, mb: int, folder: Path) -> None:
    """As after a restart: the optimizer has no states yet."""
    net, optimizer = _made(mb, stepped=False)
    ckpt = _checkpointer(net, optimizer, folder / "ours")

    def ours() -> None:
        assert ckpt.restore() > 0

    _timed(times, f"{way}: ours, proved", ours)
    net, optimizer = _made(mb, stepped=False)

    def theirs() -> None:
        model, state = get_state_dict(net, optimizer)
        dcp.load({"model": model, "optimizer": state}, checkpoint_id=folder / "dcp")
        set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=state)

    _timed(times, f"{way}: DCP", theirs)


def _dcp(times: Times, net: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, rank: int) -> None:
    model, state = get_state_dict(net, optimizer)
    both, made = {"model": model, "optimizer": state}, []
    _removed(folder / "dcp", rank)
    _timed(times, "save: DCP", lambda: dcp.save(both, checkpoint_id=folder / "dcp"))
    later = folder / "async"
    _removed(later, rank)
    _timed(times, "save: DCP async, blocked", lambda: made.append(dcp.async_save(both, checkpoint_id=later)))
    made[0].result()


def _save(times: Times, given: Any, folder: Path, rank: int) -> None:
    net, optimizer = _made(given.mb)
    ckpt = _checkpointer(net, optimizer, folder / "ours")
    ckpt.restore()
    place = Place(folder / "shm" / "supervise-b", rank, given.ranks, 0, None)
    memory = Memory(place, ckpt._parts, spare=False, led=ckpt._source.led, layouts=ckpt._source.layouts)
    parts = [p.to_local() for p in net.parameters()]  # type: ignore[operator]
    parts += [v.to_local() for s in optimizer.state.values() for v in s.values() if hasattr(v, "to_local")]
    copies = [torch.empty_like(part) for part in parts]
    ckpt.step(1)
    for number in range(-WARM, given.rounds):
        mine = times if number >= 0 else {}
        _timed(mine, "copy in memory: memcpy", lambda: torch._foreach_copy_(copies, parts))
        step = number + WARM + 1
        _timed(mine, "copy in memory: a snapshot", lambda step=step: memory.take(step, {}, owed=True))
        _removed(folder / "ours", rank)
        ckpt._saved, ckpt._done = -1, step
        _timed(mine, "save: ours, with digests", ckpt.save)
        _dcp(mine, net, optimizer, folder, rank)
        _load(mine, "load, as many ranks", given.mb, folder)
    assert memory.problem is None and memory.left_out is None
    memory.close()


def _rank(rank: int, world: int, folder: Path, given: Any) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store-{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    times: Times = {}
    if world == given.ranks:
        _save(times, given, folder, rank)
    else:
        for number in range(-WARM, given.rounds):
            _load(times if number >= 0 else {}, f"load, {given.ranks} -> {world} ranks", given.mb, folder)
    (folder / f"times-{world}-{rank}.json").write_text(json.dumps(times))
    dist.barrier()


def _run(world: int, folder: Path, given: Any) -> Times:
    """The slowest rank's times, by way."""
    children = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                _rank(rank, world, folder, given)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        raise SystemExit(f"{world} ranks ended with {codes}")
    found = [json.loads((folder / f"times-{world}-{rank}.json").read_text()) for rank in range(world)]
    return {
        way: [
            (max(w for w, _ in each), max(c for _, c in each))
            for each in zip(*(one[way] for one in found), strict=True)
        ]
        for way in found[0]
    }


def main() -> None:
    given = options(
        __doc__,
        ("--mb", {"type": int, "default": 576}),
        ("--ranks", {"type": int, "default": 2}),
        ("--others", {"default": "1,4"}),
        ("--rounds", {"type": int, "default": 5}),
        ("--folder", {"type": Path, "default": None}),
    )
    here = machine()
    times: Times = {}
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
    ):
        (Path(folder) / "shm").symlink_to(memory)
        for world in (given.ranks, *map(int, filter(None, given.others.split(",")))):
            times.update(_run(world, Path(folder), given))
    print(f"{given.mb} MB, FSDP2 on {given.ranks} ranks, {given.rounds} rounds: medians of the slowest rank")
    rows = {}
    for way, samples in times.items():
        wall, cpu = (statistics.median(sample[n] for sample in samples) for n in (0, 1))
        rows[way] = {"wall_s": wall, "cpu_s": cpu, "samples": samples}
        print(f"  {way:36}{wall:8.3f} s wall{cpu:8.3f} s CPU")
    write(given.json, "sharded", here, given, {"ways": rows})


if __name__ == "__main__":
    main()
