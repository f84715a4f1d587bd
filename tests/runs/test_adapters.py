"""A program that nobody changed goes on from what it has saved, with nothing typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.supervised import Run

PROGRAM = """
import argparse, os, time, torch
import torch.distributed as dist
parser = argparse.ArgumentParser()
parser.add_argument("data", nargs="?")
parser.add_argument("--resume", default="", metavar="PATH", help="path to latest checkpoint (default: none)")
parser.add_argument("--epochs", default=6, type=int)
args = parser.parse_args()
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
start = 0
if args.resume:
    saved = torch.load(args.resume)
    start = saved["epoch"]
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
for epoch in range(start, args.epochs):
    for batch in range(10):
        data = torch.Generator().manual_seed(1000 * epoch + 10 * batch + dist.get_rank())
        optimizer.zero_grad()
        model(torch.randn(4, 4, generator=data)).square().mean().backward()
        optimizer.step()
    if dist.get_rank() == 0:
        torch.save({"epoch": epoch + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
if dist.get_rank() == 0:
    torch.save(model.module.state_dict(), "end.pt")
dist.destroy_process_group()
"""
NANO = """
import os, torch
out_dir = "out"
init_from = "scratch"
max_iters = 40
config_keys = [k for k, v in globals().items() if not k.startswith("_") and isinstance(v, (int, float, bool, str))]
exec(open("configurator.py").read())
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
start = 0
if init_from == "resume":
    saved = torch.load(os.path.join(out_dir, "ckpt.pt"))
    start = saved["iter_num"]
    optimizer.load_state_dict(saved["optimizer"])
os.makedirs(out_dir, exist_ok=True)
for iter_num in range(start, max_iters):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if (iter_num + 1) % 10 == 0:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": iter_num + 1}
        torch.save(saved, os.path.join(out_dir, "ckpt.pt"))
"""
CONFIGURATOR = """
import sys
from ast import literal_eval
for arg in sys.argv[1:]:
    key, val = arg[2:].split("=")
    if key not in globals():
        raise ValueError(f"Unknown config key: {key}")
    try:
        val = literal_eval(val)
    except (SyntaxError, ValueError):
        pass
    globals()[key] = val
"""
THEIRS = """
import torch
def train(go_on=None):
    start = torch.load(go_on)["epoch"] if go_on else 0
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    for step in range(start, 20):
        optimizer.step()
        torch.save({"epoch": step + 1, "optimizer": optimizer.state_dict()}, f"{step}.their")
"""
ADAPTER = """
from supervise.adapters.protocol import Plan
class Mine:
    name = "mine"
    def knows(self, program):
        return "mine" in program.uses
    def plan(self, case):
        found = [each.path for each in case.checkpoints if each.path.endswith(".their")]
        return Plan(f"train({found[0]})", offers=(found[0],), checkpoint=case.checkpoints[0]) if found else None
    @property
    def hooks(self):
        return {"theirs": self.hook}
    def hook(self, module, orders):
        train = module.train
        def wrapped(go_on=None):
            orders.uses("mine")
            return train(go_on or next(iter(orders.offers), None))
        module.train = wrapped
mine, broken = Mine(), None
"""


def end(run: Run) -> dict[str, torch.Tensor]:
    saved: dict[str, torch.Tensor] = torch.load(run.folder / "end.pt")
    return saved


def test_an_option_is_found_and_used(run: Run) -> None:
    """A relaunch gets `--resume=…/last.pt` right behind the script, and ends with the bits of a run that nobody
    touched; one with --adapter off begins anew, and one whose user has given the option keeps it."""
    script = run.script(PROGRAM)
    assert run.launch("--nproc", "2", "--inject", "kill:rank=1@step=35", script, "folder") == 0
    told = run.events("adapter")
    last = str((run.folder / "last.pt").resolve())
    assert [(event["adapter"], event["path"], event["step"]) for event in told] == [("generic", last, 30)]
    assert [event["from_step"] for event in run.events("first_step")] == [0, 30]
    assert run.events("resumed")[-1]["path"] == last
    recorded = json.loads(run.dir.options.read_bytes())
    assert [option["names"] for option in recorded["parsers"][0]["options"]] == [
        ["-h", "--help"],
        ["--resume"],
        ["--epochs"],
    ]
    killed = end(run)

    undisturbed = Run(run.folder / "undisturbed")
    undisturbed.folder.mkdir()
    undisturbed.script(PROGRAM)
    assert undisturbed.launch("--nproc", "2", script, "folder") == 0
    assert all(torch.equal(tensor, killed[name]) for name, tensor in end(undisturbed).items())

    off = Run(run.folder / "off")
    off.folder.mkdir()
    off.script(PROGRAM)
    assert off.launch("--adapter", "off", "--inject", "kill:rank=0@step=15", script) == 0
    assert [event["from_step"] for event in off.events("first_step")] == [0, 0]
    assert not off.events("adapter")
    missed = str((off.folder / "last.pt").resolve())
    (over,) = off.events("started_over")
    assert (over["path"], over["step"]) == (missed, 10)
    # What it has replaced is kept, and nothing else was done to it.
    kept = Path(over["kept"])
    assert kept == off.dir.kept / "step-00000010" / "last.pt" and kept.stat().st_nlink == 1
    assert torch.load(kept)["epoch"] == 1 < torch.load(missed)["epoch"]
    assert not run.events("started_over") and run.events("resumed")[-1]["saved_step"] == 30
    assert "was not loaded" in (report := off.cli("report", "run").stdout) and str(kept) in report
    missed_save = {"path": missed, "step": 10, "kept": str(kept), "text": over["text"]}
    assert json.loads(off.cli("status", "run", "--json").stdout)["started_over"] == missed_save
    attempts = json.loads(off.cli("report", "run", "--json").stdout)["attempts"]
    assert [attempt["started_over"] for attempt in attempts] == [None, missed_save]
    assert str(kept) in off.cli("status", "run").stdout


OVER = """
import io, os, sys, torch
how, first, rank = sys.argv[1], os.environ["SUPERVISE_ATTEMPT"] == "0", int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
torch.save({"any": 1}, "config.pt")
for step in range(1, 41):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    if step == 2 and not first and how == "late":
        torch.load("last.pt")
    if step == 2 and not first and how == "buffer" and rank == 1:
        torch.load(io.BytesIO(open("last.pt", "rb").read()))
    torch.distributed.barrier()
    if step % 10 == 0 and rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, "last.pt")
    if step == 25 and first and rank == 0:
        os._exit(1)
"""


@pytest.mark.parametrize("how", ["never", "late", "buffer"])
def test_stopped_before_it_saves_over(run: Run, how: str) -> None:
    """With [policy] a script that does not load ends before its first save, and what it had saved is as it was. One
    that loads late, or on another rank in a way that is not wrapped, is left alone."""
    options = ("--nproc", "2", "--adapter", "off", "--policy", "started_over=stop")
    code = run.launch(*options, run.script(OVER), how)
    saved = torch.load(run.folder / "last.pt")["step"]
    causes = [cause for cause, _ in run.verdicts()]
    if how == "never":
        assert (code, saved, causes) == (104, 20, ["exception", "started_over"])
        assert str(run.folder / "last.pt") in run.events("run_ended")[-1]["reason"]
    else:
        assert (code, saved, causes) == (0, 40, ["exception", "finished"])
    assert not list(run.folder.glob(".saving-*"))


@pytest.mark.parametrize(
    ("killed_at", "came_back_at"), [(5, 0), (25, 20)], ids=["before its first save", "after a save"]
)
def test_resume_args_and_configurator(run: Run, killed_at: int, came_back_at: int) -> None:
    """nanoGPT's own way is found, and used only where its file is there. What the user gives for a relaunch wins; where
    it fails before anything was saved, the attempt after that is without it, once."""
    (run.folder / "configurator.py").write_text(CONFIGURATOR)
    script = run.script(NANO)
    kill = f"kill:rank=0@step={killed_at}"
    assert run.launch("--inject", kill, script, "--max_iters=30") == 0
    assert [event["from_step"] for event in run.events("first_step")] == [0, came_back_at]
    assert [event["adapter"] for event in run.events("adapter")] == (["nanogpt"] if came_back_at else [])

    typed = Run(run.folder / "typed")
    typed.folder.mkdir()
    (typed.folder / "configurator.py").write_text(CONFIGURATOR)
    typed.script(NANO)
    assert typed.launch("--inject", kill, "--resume-args", "--init_from=resume", script) == 0
    assert [event["from_step"] for event in typed.events("first_step")] == [0, came_back_at]
    without = ["--resume-args"] if not came_back_at else []
    assert [event["adapter"] for event in typed.events("adapter")] == without
    assert len(typed.verdicts()) == (2 if came_back_at else 3)


def test_placeholders(run: Run) -> None:
    """They are filled, and the words that hold them left out where there is nothing to go on from; `resume` of a run
    that was stopped goes on, too, and a launch with --resume never begins anew."""
    script = run.script(PROGRAM)
    words = ("--resume-args", "--resume {checkpoint}")
    kills = ("--inject", "kill:rank=0@step=5", "--inject", "kill:rank=0@step=25")
    assert run.launch(*words, *kills, script) == 0
    assert [event["from_step"] for event in run.events("first_step")] == [0, 0, 20]
    assert [Path(event["path"]).name for event in run.events("adapter")] == ["last.pt"]

    assert run.launch("--resume", "never", "--inject", "kill:rank=0@step=15", script, "--epochs", "3") == 0
    assert [event["from_step"] for event in run.events("first_step")][3:] == [0, 10]
    assert run.launch("--adapter", "nano", script) == 2


def test_an_adapter_of_somebody_elses(run: Run) -> None:
    """It is found by its entry point, its hook runs in the rank, and what cannot be loaded is told of and costs
    nothing."""
    folder = run.folder / "installed"
    about = folder / "mine-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "mine_adapter.py").write_text(ADAPTER)
    (folder / "theirs.py").write_text(THEIRS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    points = "[supervise.adapters]\nmine = mine_adapter:mine\ngone = mine_gone:x\n"
    (about / "entry_points.txt").write_text(points)
    script = run.script("import theirs; theirs.train()")
    assert run.launch("--adapter", "mine", "--inject", "kill:rank=0@step=12", script, PYTHONPATH=str(folder)) == 0

    assert [(event["adapter"], event["step"]) for event in run.events("adapter")] == [("mine", 11)]
    assert [event["from_step"] for event in run.events("first_step")] == [0, 11]
    assert "mine_gone" in run.warnings()
