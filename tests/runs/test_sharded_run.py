"""A sharded run under a supervisor ends with the same bits, killed in both tiers."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.support.supervised import Run
from trainer.checkpoint.disk.restore import load
from trainer.rundir.layout import step_name

FSDP2 = """
import glob, os, time, warnings
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from trainer.checkpoint import Checkpointer

warnings.simplefilter("ignore")
STEPS = 12
dist.init_process_group("gloo")
rank, attempt = dist.get_rank(), int(os.environ["SUPERVISE_ATTEMPT"])


def train(saved):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 21), nn.Dropout(0.1), nn.Linear(21, 5))
    fully_shard(net[0])
    fully_shard(net)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    torch.manual_seed(rank)
    ckpt, start = None, 0
    if saved:
        ckpt = Checkpointer(
            model=net, optimizer=optimizer,
            every=2 if attempt else None, snapshot_every=1 if attempt < 2 else None,
        )
        start = ckpt.restore()
    for step in range(start, STEPS):
        until = time.monotonic() + 180
        while saved and (attempt, step) == (1, 8) and not glob.glob("run/checkpoints/step-*"):
            # The flush of step 6 was announced in step 7: the next attempt has something to read.
            assert time.monotonic() < until
            time.sleep(0.01)
        loss = net(torch.randn(6, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if ckpt:
            ckpt.step(step + 1)
    if ckpt:
        ckpt.close()
    found = {name: value.full_tensor() for name, value in net.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        found.update({f"{number}/{key}": getattr(value, "full_tensor", value.clone)() for key, value in state.items()})
    return {**found, "rng": torch.get_rng_state()}


found, wanted = train(True), train(False)
wrong = [name for name in wanted if not torch.equal(found[name], wanted[name])]
torch.save([wrong, wanted], f"end.{rank}")
"""


def test_fsdp2(tmp_path: Path) -> None:
    """Each rank's end is that of a run without a kill, and what is on disk is that end, whole. The first resume is from
    memory; the second from disk, from a checkpoint that was flushed without torch."""
    run = Run(tmp_path)
    run.script(FSDP2)
    kills = ("--inject", "kill:rank=1@step=5", "--inject", "kill:rank=0@step=9")

    assert run.launch("--nproc", "2", *kills, "script.py") == 0

    for rank in range(2):
        wrong, wanted = torch.load(tmp_path / f"end.{rank}", weights_only=True)
        assert len(wanted) == 17 and wrong == []
    assert [event["source"] for event in run.events("resumed")][-2:] == ["memory", "disk"]
    path = run.dir.checkpoints / step_name(12)
    assert all(len(load(path, 0).manifest.tensors[f"model/{name}"].pieces) == 2 for name in ("0.weight", "2.weight"))
    model = load(path, 0).shared["model"]
    assert all(torch.equal(value, wanted[name]) for name, value in model.items())
