"""A training loop in which everything that a snapshot must hold changes, in a run that no supervisor watches."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainer.checkpoint import Checkpointer
from trainer.checkpoint.memory.tier import Wish
from trainer.rank import progress
from trainer.rundir.machine import shm

TAKE = Wish(snapshot=True)
SAVE = Wish(save=True)


class Notes(progress.Progress):
    """Keeps what a rank has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, dict[str, Any]]] = []
        self.steps: list[int] = []
        self.numbers: list[tuple[int | None, float | None, int | None]] = []
        self.note = lambda kind, **fields: self.kept.append((kind, fields))  # type: ignore[assignment]

    def step(self, done: int, optimizer: Any = None) -> None:
        self.steps.append(done)

    def told(self, total: int | None = None, loss: float | None = None, step: int | None = None) -> None:
        self.numbers.append((total, loss, step))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.kept]

    def warnings(self) -> list[str]:
        """The texts of all warnings, but for those of costs, which say how busy the machine is."""
        return uncosted(fields["text"] for kind, fields in self.kept if kind == "warning")


def uncosted(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if "% of the time" not in text]


class Here:
    """A run under a supervisor that does nothing, its shared memory in a folder of the test's own."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.run = place / "run"
        self.run.mkdir()
        self.checkpoints = self.run / "checkpoints"
        self.attempt(0, place / "shm")

    def attempt(self, number: int, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self._patch.setattr(shm, "ROOT", root)
        self.segment = root / "supervise-m"
        for name, value in (("MARK", f"m.{number}"), ("RUN_DIR", str(self.run)), ("ATTEMPT", str(number))):
            self._patch.setenv(f"SUPERVISE_{name}", value)


class Training:
    """Everything that changes at another time than the optimizer's step: BatchNorm's statistics, dropout, three
    generators, a scaler that grows and skips, a scheduler, a list in `extra`, a tensor there too."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
        self.model = nn.Sequential(
            nn.Linear(4, 40), nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Linear(40, 250), nn.Linear(250, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 50)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
        self.seen: list[float] = []
        self.mean = torch.zeros(3)
        self.ckpt = Checkpointer(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            extra=lambda: {"seen": self.seen, "mean": self.mean},
            **{"every": None, "snapshot_every": 1, **options},
        )
        self.start = self.ckpt.restore()
        self.seen = list(self.ckpt.extra.get("seen", []))
        self.mean = self.ckpt.extra.get("mean", self.mean)

    def backward(self) -> None:
        x = torch.randn(6, 4) * random.random() + np.random.rand()
        with torch.autocast("cpu", torch.float16):
            loss = self.model(x).float().square().mean()
        self.scaler.scale(loss).backward()
        self.seen.append(loss.item())
        self.mean += 1

    def update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.scheduler.step()

    def run(self, until: int, agreed: Wish = TAKE) -> None:
        for step in range(self.start, until):
            self.backward()
            self.update()
            self.ckpt.step(step + 1, agreed)
        self.start = until

    def state(self) -> dict[str, Any]:
        generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        parts = (self.model, self.optimizer, self.scheduler, self.scaler)
        return {"parts": [p.state_dict() for p in parts], "extra": (self.seen, self.mean), "rng": generators}

    def copied(self) -> None:
        memory = self.memory()
        memory.wait()
        assert memory.problem is None

    def memory(self) -> Any:
        assert self.ckpt._tier is not None
        return self.ckpt._tier._memory

    def end(self) -> None:
        self.ckpt._stop.close()
        if self.ckpt._tier:
            self.ckpt._tier.close()


@contextlib.contextmanager
def training(**options: Any) -> Iterator[Training]:
    made = Training(**options)
    try:
        yield made
    finally:
        made.end()


def train(ranks: Any, steps: range, agreed: Callable[[int], Wish] = lambda step: TAKE, **options: Any) -> Any:
    """A rank that trains those steps on its own copy of the same model; its last weights and where it began."""
    # Ranks are threads here: torch's own generator, seeded by each of them, would give them what the others leave of
    # it.
    numbers = torch.Generator().manual_seed(3)
    model = nn.Linear(30, 30)
    for p in model.parameters():
        p.data.copy_(torch.rand(p.shape, generator=numbers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    ckpt = Checkpointer(model=model, optimizer=optimizer, **{"every": None, "snapshot_every": 1, **options})
    ckpt._ranks = ranks
    # Ranks are threads here: what one has, another would find.
    ckpt._unsaved.due = lambda: False  # type: ignore[method-assign]
    start = ckpt.restore()
    for step in range(max(start, steps.start), steps.stop):
        for p in model.parameters():
            p.grad = torch.full_like(p, step + 1.0)
        optimizer.step()
        ranks.exchange(None)
        ckpt.step(step + 1, agreed(step + 1))
    if ckpt._tier:
        ckpt._tier.close()
        assert ckpt._tier._memory.problem is None
    return start, model.weight.detach().clone()
