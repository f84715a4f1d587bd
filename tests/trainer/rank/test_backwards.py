"""What counts as a step: those of the first optimizer that is there. Where none is torch's, backward passes do, and
only then."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.support.supervised import ROOT

HEAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from trainer.rank.hooks.steps import MOST_ACCUMULATED, watch_torch

class Listener:
    heard = []
    def hooked(self, count, restored, optimizer):
        self.heard.append([count, optimizer is not None, restored])
    def hooked_backward(self, entered):
        pass
    def grouped(self, rank):
        pass
    def now(self, doing):
        pass

listener = Listener()
watch_torch(listener)
import torch

def heard():
    told, listener.heard = listener.heard, []
    return told
"""
SCRIPT = """
from torch.utils.checkpoint import checkpoint

def passes(count):
    for _ in range(count):
        model(torch.ones(1, 2)).sum().backward()

model = torch.nn.Linear(2, 2)
found = {}
passes(3)
found["plain"] = heard()
checkpoint(model, torch.ones(1, 2, requires_grad=True), use_reentrant=True).sum().backward()
found["within"] = heard()
try:
    torch.zeros(1).backward()
except RuntimeError:
    found["failed"] = heard()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
passes(MOST_ACCUMULATED - 10)
found["accumulated"] = heard()
passes(20)
found["never steps"] = [count for count, *_ in heard()]
from torch.distributed.checkpoint.state_dict import get_state_dict
other = torch.nn.Linear(2, 2)
get_state_dict(other, torch.optim.AdamW(other.parameters()))
found["filled for a load"] = heard()
optimizer.step()
passes(2)
optimizer.step()
found["steps"] = heard()
print(json.dumps(found))
"""


STAGES = """
import gc, os, weakref
from torch.distributed.checkpoint.state_dict import get_state_dict

def train(optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        sum(p.sum() for group in optimizer.param_groups for p in group["params"]).backward()
        optimizer.step()

def adam(model):
    return torch.optim.Adam(model.parameters())

found = {}
model = torch.nn.Linear(2, 2)
optimizer = adam(model)
train(optimizer, 3)
found["first"] = heard()
other = adam(second := torch.nn.Linear(2, 2))
train(other, 2)
found["beside it"] = heard()
held = [weakref.ref(each) for each in (optimizer, *model.parameters(), *optimizer.state[model.weight].values())]
place = id(optimizer)
del optimizer, model
gc.collect()
found["held"] = sum(each() is not None for each in held)
third = torch.nn.Linear(2, 2)
tried = []
while len(tried) < 10_000 and (not tried or id(tried[-1]) != place):
    tried.append(adam(third))  # it may get the address of the one that is gone
latest = tried.pop()
del tried
get_state_dict(third, latest)
found["filled for a load"] = heard()
train(other, 2)
train(latest, 2)
train(other, 1)
found["the next one"] = heard()
del other, second
gc.collect()
read, write = os.pipe()
if not (child := os.fork()):
    train(latest, 1)
    os.write(write, json.dumps(heard()).encode())
    os._exit(0)
os.close(write)
found["in a fork"] = json.loads(os.read(read, 1000))
os.waitpid(child, 0)
train(latest, 1)
found["the last one"] = heard()
print(json.dumps(found))
"""


def ran(script: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-c", HEAD + script, str(ROOT)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


@pytest.mark.cold
def test_stages_with_an_optimizer_each() -> None:
    """Nothing of a stage is held when the script has let go of it, and the count goes on with the next optimizer that
    steps. It never counts two, nor goes back, nor takes one at the old address for the old one."""
    assert ran(STAGES) == {
        "first": [[1, True, 0], [2, True, 0], [3, True, 0]],
        "beside it": [],
        "held": 0,
        "filled for a load": [],
        "the next one": [[4, True, 0], [5, True, 0], [6, True, 0]],
        "in a fork": [[7, True, 3]],
        "the last one": [[7, True, 0]],
    }


@pytest.mark.cold
def test_backward_passes_count_where_nothing_else_does() -> None:
    found = ran(SCRIPT)

    assert found == {
        "plain": [[1, False, None], [2, False, None], [3, False, None]],
        "within": [[4, False, None]],
        "failed": [],
        "accumulated": [],
        "never steps": list(range(5, 5 + 14)),
        "filled for a load": [],
        "steps": [[1, True, None], [2, True, None]],
    }
