"""What counts as a step of a script whose optimizer is none of torch's: its backward passes, and only then."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.supervised import ROOT

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from trainer.rank.hooks.steps import MOST_ACCUMULATED, watch_torch

class Listener:
    heard = []
    def hooked(self, count, restored, optimizer):
        self.heard.append([count, optimizer is not None])
    def hooked_backward(self, entered):
        pass
    def grouped(self, rank):
        pass
    def now(self, doing):
        pass

listener = Listener()
watch_torch(listener)
import torch
from torch.utils.checkpoint import checkpoint

def passes(count):
    for _ in range(count):
        model(torch.ones(1, 2)).sum().backward()

def heard():
    told, listener.heard = listener.heard, []
    return told

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
found["never steps"] = [count for count, _ in heard()]
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


@pytest.mark.cold
def test_backward_passes_count_where_nothing_else_does() -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(ROOT)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert found == {
        "plain": [[1, False], [2, False], [3, False]],
        "within": [[4, False]],
        "failed": [],
        "accumulated": [],
        "never steps": list(range(5, 5 + 14)),
        "filled for a load": [],
        "steps": [[1, True], [2, True]],
    }
