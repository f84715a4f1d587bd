"""A run with several models and optimizers ends with the same bits, killed in both tiers."""

from __future__ import annotations

from pathlib import Path

from tests.support.supervised import Run
from trainer.checkpoint.disk.restore import load
from trainer.rundir.layout import step_name

GAN = """
import copy, dataclasses, glob, os, time
import torch, torch.distributed as dist
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel as DDP
from trainer.checkpoint import Checkpointer, PerRank

STEPS = 12


@dataclasses.dataclass(frozen=True)
class Config:
    rank: PerRank
    names: tuple = ("g", "d")


dist.init_process_group("gloo")
rank = dist.get_rank()
attempt = int(os.environ["SUPERVISE_ATTEMPT"])


def train(first_attempt, saved):
    torch.manual_seed(0)
    g = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 4))
    d = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 1))
    ema = copy.deepcopy(g).requires_grad_(False)
    torch.manual_seed(rank)
    models = {"g": DDP(g, broadcast_buffers=False), "d": DDP(d, broadcast_buffers=False)}
    # One is given its parameters in another order after each restart.
    order = list(d.parameters())[:: 1 if first_attempt else -1]
    optimizers = {"g": optim.AdamW(g.parameters(), 1e-2), "d": optim.SGD(order, 1e-2, momentum=0.9)}
    schedulers = {name: optim.lr_scheduler.CosineAnnealingLR(one, STEPS) for name, one in optimizers.items()}
    ckpt, start = None, 0
    if saved:
        ckpt = Checkpointer(
            model=models, optimizer=optimizers, scheduler=schedulers, ema=ema, grads=True,
            extra={"config": Config(PerRank(rank))},
            every=None if first_attempt else 2, snapshot_every=1 if attempt < 2 else None,
        )
        start = ckpt.restore()
        assert not start or ckpt.extra["config"] == Config(rank)
    for step in range(start, STEPS):
        until = time.monotonic() + 180
        while saved and (attempt, step) == (1, 8) and not glob.glob("run/checkpoints/step-*"):
            # The flush of step 6 was announced in step 7: the next attempt has something to read.
            assert time.monotonic() < until
            time.sleep(0.01)
        real, noise = torch.randn(6, 4), torch.randn(6, 4)
        fake = models["g"](noise)
        loss = models["d"](torch.cat([real, fake.detach()])).square().mean() + rank * d[0].weight.abs().mean()
        # Steps of three micro-batches: most kills are between them.
        with models["d"].no_sync():
            loss.backward()
        if step % 3 == 2:
            models["d"](real).mean().backward()
            optimizers["d"].step()
            optimizers["d"].zero_grad()
        if step % 2:
            optimizers["g"].zero_grad()
            with models["d"].no_sync():
                (-models["d"](fake).mean()).backward()
            optimizers["g"].step()
        for one in schedulers.values():
            one.step()
        with torch.no_grad():
            for mean, now in zip(ema.state_dict().values(), g.state_dict().values()):
                mean.copy_(now) if not mean.is_floating_point() else mean.lerp_(now, 0.3)
        if ckpt:
            ckpt.step(step + 1)
    if ckpt:
        ckpt.close()
    states = {"g": g.state_dict(), "d": d.state_dict(), "ema": ema.state_dict()}
    for name, one in optimizers.items():
        known = {id(p): n for n, p in [*g.named_parameters(), *d.named_parameters()]}
        for param, values in one.state.items():
            states[f"optimizer {name} {known[id(param)]}"] = values
    states["lr"] = {name: torch.tensor(one.get_last_lr()) for name, one in schedulers.items()}
    states["rng"] = {"torch": torch.get_rng_state()}
    return {f"{a}/{b}": v for a, part in states.items() for b, v in part.items() if isinstance(v, torch.Tensor)}


found, wanted = train(attempt == 0, True), train(True, False)
assert len(found) == len(wanted) > 40
wrong = [name for name in wanted if not torch.equal(found[name], wanted[name])]
with open(f"differ.{rank}", "w") as file:
    file.write(f"{len(wanted)}: {wrong}")
"""


def test_a_gan_with_two_optimizers(tmp_path: Path) -> None:
    """Two models and their average, two optimizers and schedulers, gradients that wait, a dataclass in extra, on two
    ranks: each rank's end is that of a run without a kill. The first resume is from memory, the second from disk."""
    run = Run(tmp_path)
    run.script(GAN)
    kills = ("--inject", "kill:rank=1@step=5", "--inject", "kill:rank=0@step=9")

    assert run.launch("--nproc", "2", *kills, "script.py") == 0

    for rank in range(2):
        number, _, wrong = (tmp_path / f"differ.{rank}").read_text().partition(": ")
        assert (int(number) > 40, wrong) == (True, "[]")
    resumed = [event["source"] for event in run.events("resumed")]
    assert resumed[-2:] == ["memory", "disk"]
    shared = load(run.dir.checkpoints / step_name(12), 0).shared
    assert {"g.0.weight", "d.3.bias", "ema.1.running_mean"} < set(shared["model"])
    assert {"optimizer.g", "optimizer.d", "scheduler.g", "parameters.d"} < set(shared)
