"""A script that torch.compile compiles: the recovery from a kill is warm, and compiles as a fresh process does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.supervised import Run
from tests.support.waiting import until

pytestmark = pytest.mark.cold
"""Compilers import much, and look at what is there: the ranks find what a user's find."""

COMPILED = """
import json, os, sys, time
attempt, rank = os.environ["SUPERVISE_ATTEMPT"], os.environ["RANK"]
json.dump(sorted(sys.modules), open(f"began.{attempt}.{rank}.json", "w"))
import torch
torch.distributed.init_process_group("gloo")
width = 8 + max(0, int(attempt) - 1)
model = torch.compile(torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.GELU()))
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters())
open(f"compiling.{attempt}.{rank}", "w").write(str(os.getpid()))
for step in range(20 if attempt == "3" else 100_000):
    model(torch.randn(4, width)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.05)
"""
"""Its first two attempts have the same kernels, each of the next has other ones."""


def recovered(run: Run, tried: dict[str, str], name: str) -> None:
    """The newest kill was recovered from by the fork that stood by; how long that took is told."""
    assert {event["kind"] for event in run.events("attempt_started")} == {"fork"}
    assert not run.events("standby_lost")
    failed = [event["failed_mono"] for event in run.events("verdict") if event["cause"] == "killed"][-1]
    tried[f"kill to first step, {name}"] = f"{run.events('first_step')[-1]['at_mono'] - failed:.2f} s"


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: inductor cannot compile")
@pytest.mark.long
def test_compiled(run: Run, tried: dict[str, str]) -> None:
    """The kernels of the attempt before are used; a rank that is a fork compiles as a fresh one does, also the one
    after a rank that was killed while it compiled; and it ends."""
    cache = run.folder / "kernels"
    limits = ("--max-restarts", "9", "--no-progress-limit", "9")
    variables = {"XDG_CACHE_HOME": str(run.folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    run.start("--nproc", "2", *limits, run.script(COMPILED), **variables)
    until(lambda: [e for e in run.events("standby_ready") if "serving_pid" in e], 150)
    run.cli("inject", "run", "kill:rank=0")
    run.until_event("first_step", 2)
    recovered(run, tried, "torch.compile")
    run.cli("inject", "run", "kill:rank=0")
    pid = until(lambda: _text(run.folder / "compiling.2.1"))
    known = {*cache.rglob("*.so")}
    os.kill(int(pid), signal.SIGKILL)
    assert run.wait() == 0

    recovered(run, tried, "torch.compile, other kernels")
    assert [cause for cause, _ in run.verdicts()] == ["killed", "killed", "killed", "finished"]
    assert "torch._inductor.compile_fx" in json.loads((run.folder / "began.1.0.json").read_bytes())
    assert {*cache.rglob("*.so")} - known


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
