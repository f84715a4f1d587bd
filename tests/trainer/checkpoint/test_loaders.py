"""A StatefulDataLoader as `data=`: each batch after a restore is the one that was due."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.support.frameworks import needs
from tests.support.jobs import ROOT, environment
from trainer.checkpoint import Seeded, StateError
from trainer.checkpoint.state.per_rank import as_loader

SCRIPT = """
import gc, json, random, sys, torch
import numpy as np
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader
from trainer.checkpoint import Checkpointer, Seeded

# Each Checkpointer looks among all objects for what it was not given.
gc.freeze()

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 23
    def __getitem__(self, index):
        return float(index) + torch.randn(4) + random.random() + np.random.rand()

def run(folder, steps, every, workers, own):
    # 23 samples are six batches: 14 steps are more than two epochs.
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2))
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(5) if own else None
    options = {"batch_size": 4, "shuffle": True, "num_workers": workers, "generator": generator}
    loader = StatefulDataLoader(Seeded(Numbers()), **options)
    ckpt = Checkpointer(model=model, optimizer=optimizer, data=loader, directory=folder, every=every)
    step, seen = ckpt.restore(), []
    while step < steps:
        for batch in loader:
            seen.append(batch[:, 0].tolist())
            model(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            ckpt.step(step)
            if step >= steps:
                break
    ckpt._stop.close()
    return seen, [value.tolist() for value in model.state_dict().values()], torch.get_rng_state().tolist()

wholes = {}
for workers, own, kill in json.loads(sys.argv[1]):
    case = workers, own
    if case not in wholes:
        # It saves at its end alone: what a save does to the loader shows, too.
        wholes[case] = run(f"whole{case}", 14, 14, *case)
    before = run(f"{case}-{kill}", kill, 1, *case)
    after = run(f"{case}-{kill}", 14, 4, *case)
    same = before[0] + after[0] == wholes[case][0], after[1:] == wholes[case][1:]
    print(json.dumps([*case, kill, *same]))
"""
ALL = [(workers, own, kill) for workers in (0, 2) for own in (True, False) for kill in (2, 6, 7)]
PAIRS = [case for number, case in enumerate(ALL) if number % 2 == number // 6]
"""Any number of workers is there with any generator and any kill, and any generator with any kill."""


@pytest.mark.parametrize("cases", [PAIRS, pytest.param(ALL, marks=pytest.mark.long)], ids=["pairs", "all"])
def test_a_stateful_loader(tmp_path: Path, cases: list[tuple[int, bool, int]]) -> None:
    """With workers and without, its samples draw in either, with its own generator or without, stopped inside an epoch
    and at its end: batches, weights and generators are those of a run that was not stopped."""
    needs("torchdata")
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(cases)]
    env = {**environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[*case, True, True] for case in cases]


def test_what_seeded_is_not_for() -> None:
    numbers = Seeded(torch.arange(4))
    assert [int(numbers[index]) for index in range(len(numbers))] == [0, 1, 2, 3]
    loader: Any = DataLoader(numbers, num_workers=1, persistent_workers=True)
    with pytest.raises(StateError, match="keep the seed of the first epoch: leave persistent_workers out"):
        as_loader(loader)
    with pytest.raises(StateError, match="with an index for each sample"):
        Seeded(object())
