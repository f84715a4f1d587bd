"""A training on several nodes in one process: its ranks are threads, and each node has a folder for its memory."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.support.jobs import on_ranks
from tests.support.training import Here
from trainer.checkpoint import Checkpointer, PerRank, Shard
from trainer.checkpoint.memory.tier import Wish
from trainer.rundir.layout import RunDir

TAKE, SAVE = Wish(snapshot=True), Wish(save=True)


class Cluster:
    """Nodes whose ranks are threads. Each node has a folder in place of its shared memory."""

    def __init__(self, here: Here, place: Path) -> None:
        self.here, self.place = here, place
        self.attempt = -1

    def segment(self, machine: str) -> Path:
        return self.place / machine / "supervise-m"

    def lose(self, *machines: str) -> None:
        """What these have in their memory is gone."""
        for machine in machines:
            shutil.rmtree(self.segment(machine).parent)

    def train(
        self,
        on: str,
        until: int,
        agreed: Callable[[int], Wish] | None = lambda step: TAKE,
        **options: Any,
    ) -> list[Any]:
        """An attempt with a rank for each letter of `on`, the name of its machine: from which step each went on, its
        weights and its own part. It has ended as if killed after step `until`, when that was safe. `agreed`: what the
        ranks wish at each step; None: what they wish by themselves. `look` is called after each step."""
        self.attempt += 1
        self.here._patch.setenv("SUPERVISE_ATTEMPT", str(self.attempt))
        run = RunDir(self.here.run)
        run.leaders.mkdir(exist_ok=True)
        run.attempt(self.attempt).path.mkdir(parents=True, exist_ok=True)
        for machine in on:
            self.segment(machine).parent.mkdir(parents=True, exist_ok=True)
        numbers = {machine: number for number, machine in enumerate(dict.fromkeys(on))}
        nodes = tuple(numbers[machine] for machine in on)
        body = lambda ranks: self.rank(ranks, self.segment(on[ranks.rank]), until, agreed, **options)  # noqa: E731
        results = on_ranks(len(on), body, nodes)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return results

    def rank(
        self,
        ranks: Any,
        segment: Path,
        until: int,
        agreed: Callable[[int], Wish] | None = lambda step: TAKE,
        **options: Any,
    ) -> Any:
        """One rank of an attempt. `sharded`: it has a slice of the model."""
        width = slice(None)
        if sharded := options.pop("sharded", False):
            rows = 30 // ranks.world_size
            width = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
            options["shard_spec"] = {"*": Shard(0, ranks.rank, ranks.world_size)}
        numbers = torch.Generator().manual_seed(3)
        model = nn.Linear(30, 30 // ranks.world_size if sharded else 30)
        for p, shape in zip(model.parameters(), ((30, 30), (30,)), strict=True):
            p.data.copy_(torch.rand(shape, generator=numbers)[width])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        own: list[int] = []
        chosen = {"every": None, "snapshot_every": 1, "on_resize": "reset", **options}
        extra = lambda: {"own": PerRank(own), "done": len(own)}  # noqa: E731
        look = chosen.pop("look", None)
        ckpt = Checkpointer(model=model, optimizer=optimizer, extra=extra, directory=self.here.checkpoints, **chosen)
        ckpt._ranks, ckpt._segment = ranks, segment
        # Ranks are threads here: what one has, another would find.
        ckpt._unsaved.due = lambda: False  # type: ignore[method-assign]
        start = ckpt.restore()
        own[:] = ckpt.extra.get("own") or [-1] * start
        for step in range(start, until):
            for p in model.parameters():
                p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()
            own.append(1000 * ranks.rank + step)
            ranks.exchange(None)
            ckpt.step(step + 1, Wish(*ranks.any(*ckpt.wish())) if agreed is None else agreed(step + 1))
            if look is not None:
                if ranks.exchange(None) and ranks.rank == 0:
                    look(step + 1)
                ranks.exchange(None)
            elif ckpt._tier:
                # These steps take no time, so what is beside them would be late.
                ckpt._tier._memory.settle()
                ranks.exchange(None)
        if ckpt._tier:
            ckpt._tier.close()
            assert ckpt._tier._memory.over is None
        return start, model.weight.detach().clone(), list(own)


def undisturbed(cluster: Cluster, until: int) -> Any:
    """The weights after step `until` of one rank that nothing happened to."""
    body = lambda ranks: cluster.rank(ranks, cluster.place, until, snapshot_every=None)  # noqa: E731
    (result,) = on_ranks(1, body)
    if isinstance(result, BaseException):
        raise result
    return result[1]
