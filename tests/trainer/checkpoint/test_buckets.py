"""DDP's sums after a restore are those of a run that went on: the order of its buckets is part of a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from tests.support.jobs import ROOT, environment
from trainer.checkpoint.errors import StateError
from trainer.checkpoint.state import buckets


def differing(folder: Path, *arguments: str) -> dict[int, dict[str, int]]:
    command = [sys.executable, "-m", "tests.support.ddp_resumed", str(folder), *arguments]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line.pop("ranks"): line for line in lines}


@pytest.mark.parametrize("ranks", [("4",), pytest.param(("2", "3", "8"), marks=pytest.mark.long)])
def test_the_same_bits_on_any_number_of_ranks(tmp_path: Path, ranks: tuple[str, ...]) -> None:
    """Resumed after every step, the first included, with gradients that are accumulated, that are views of buckets, and
    where the Checkpointer was given the model inside DDP."""
    found = differing(tmp_path, "with", *ranks)

    assert set(found) == set(map(int, ranks))
    assert all(not any(ways.values()) for ways in found.values()), found


@pytest.mark.long
def test_without_the_order_they_differ(tmp_path: Path) -> None:
    """What is tested above is needed: otherwise DDP starts with other buckets, and the sums differ, but for the way in
    which DDP never fills its buckets anew."""
    (ways,) = differing(tmp_path, "without", "4").values()

    assert ways.pop("find_unused_parameters") == 0
    assert all(ways.values()), ways


def test_a_loop_without_ddp_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some 50 ms to look at all objects: not at every step."""
    looks: list[object] = []
    monkeypatch.setattr(buckets, "_around", lambda modules, params: looks.append(modules) or {})
    known = buckets.of(nn.Linear(2, 2), 4)
    for _ in range(5):
        assert known.learn() is None
    assert len(looks) == 1


def test_a_static_graph_is_refused() -> None:
    """On three ranks and more; on two the order of a sum does not matter."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ddp = nn.parallel.DistributedDataParallel(nn.Linear(2, 2), static_graph=True)
        with pytest.raises(StateError, match="static_graph"):
            buckets.of(ddp, 3)
        with pytest.raises(StateError, match="static_graph"):
            buckets.of(ddp.module, 3).learn()
        assert buckets.of(ddp, 2).state_dict() == {}
    finally:
        dist.destroy_process_group()
