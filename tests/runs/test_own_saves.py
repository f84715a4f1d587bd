"""A script's own saves under SIGKILL: at every moment of a save what is at its path is the old content or the new, in a
rank that is a fork and in a fresh interpreter; half a folder is no checkpoint; and nothing is left beside."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.frameworks import IMPORTED, needs
from tests.support.supervised import Run
from trainer.rundir.records.journal import BESIDE, TORN

KILLED = """
import json, os, signal, sys, threading
import numpy, torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
attempt, kills = int(os.environ["SUPERVISE_ATTEMPT"]), json.loads(sys.argv[1])
SIZE = 2_000_000

def full(step):
    return torch.full((SIZE,), float(step))

def load_folder():
    os.stat("folder/.metadata")
    state = {"w": torch.zeros(SIZE)}
    dcp.load(state, checkpoint_id="folder", no_dist=True)
    return state["w"]

writers = {
    "torch": (lambda s: torch.save({"w": full(s)}, "a.pt"), lambda: torch.load("a.pt")["w"]),
    "safetensors": (lambda s: save_file({"w": full(s)}, "b.safetensors"), lambda: load_file("b.safetensors")["w"]),
    "numpy": (lambda s: numpy.save("c", full(s).numpy()), lambda: torch.tensor(numpy.load("c.npy"))),
    "folder": (lambda s: dcp.save({"w": full(s)}, checkpoint_id="folder", no_dist=True), load_folder),
}
if "lightning" in sys.argv:
    from lightning.fabric.plugins.io import TorchCheckpointIO
    writers["lightning"] = (
        lambda s: TorchCheckpointIO().save_checkpoint({"w": full(s)}, "d.ckpt"), lambda: torch.load("d.ckpt")["w"]
    )

def begun():
    hidden = [name for name in os.listdir() if name.startswith(".saving-")]
    files = [os.path.join(root, name) for top in hidden for root, _, names in os.walk(top) for name in names]
    return max((os.path.getsize(file) for file in files), default=-1)

def watch():
    while True:
        try:
            if moment and begun() >= {"early": 0, "middle": SIZE}[moment]:
                os.kill(os.getpid(), signal.SIGKILL)
        except OSError:
            pass

def audit(event, args):
    if moment and event in ("os.rename", "os.remove", "shutil.rmtree") and ".saving-" in str(args[0]):
        os.kill(os.getpid(), signal.SIGKILL)

moment = ""
doomed, when = kills[attempt] if attempt < len(kills) else (None, None)
sys.addaudithook(audit)
if when in ("early", "middle"):
    threading.Thread(target=watch, daemon=True).start()
seen = {}
for name, (_, load) in writers.items():
    try:
        content = load()
        assert (content == content[0]).all()
        seen[name] = int(content[0])
    except FileNotFoundError:
        seen[name] = 0
print("seen", json.dumps(seen), flush=True)
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
start = max(seen.values())
for step in (start + 1, start + 2):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for name, (save, _) in writers.items():
        moment = when if doomed == name and step == start + 2 else ""
        save(step)
        if moment:
            os.kill(os.getpid(), signal.SIGKILL)
"""
"""Arguments: which writer it dies in, and when, attempt by attempt; at the latest when the save has returned."""
MOMENTS = ("early", "middle", "late")
ALL = [(name, moment) for name in ("torch", "safetensors", "numpy", "folder") for moment in MOMENTS]


def seen(run: Run) -> list[dict[str, int]]:
    """What each attempt found at its start: by writer, the step of which the file is."""
    found = []
    for number in run.dir.attempts():
        log = run.dir.attempt(number).rank_log(0).read_text()
        found += [json.loads(line[5:]) for line in log.splitlines() if line.startswith("seen ")]
    return found


def hidden(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(f"{BESIDE}*")]


@pytest.mark.cold
@pytest.mark.parametrize(
    ("options", "kills"),
    [((), ALL), pytest.param(("--no-standby",), [("torch", "middle"), ("folder", "late")], marks=pytest.mark.long)],
    ids=["warm", "cold"],
)
def test_killed_inside_a_save(run: Run, options: tuple[str, ...], kills: list[tuple[str, str]]) -> None:
    """Each file is of the newest step but one, or of the newest, and whole; what is done is durable, says the
    helper."""
    kills = list(kills)
    more = []
    if not options:
        # Its imports came first, as in a standby that knows the script: what they bound are the wrappers.
        run.modules = ("safetensors.torch", "torch.distributed.checkpoint")
        if importlib.util.find_spec("lightning") is not None:
            run.modules += ("lightning.fabric.plugins.io",)
            kills += [("lightning", moment) for moment in MOMENTS]
            more = ["lightning"]
    budget = ("--max-restarts", "99", "--no-progress-limit", "99")
    assert run.launch(*options, *budget, run.script(KILLED), json.dumps(kills), *more) == 0

    found = seen(run)
    assert len(found) == len(kills) + 1
    for before, after in itertools.pairwise(found):
        newest = max(before.values()) + 2
        assert {*after.values()} <= {newest - 1, newest}
    assert hidden(run.folder) == []
    assert {event["kind"] for event in run.events("attempt_started")} == {"exec" if options else "fork"}
    assert {event["path"] for event in run.events("save_undone")} <= {str(run.folder / n) for n in NAMES}
    assert not run.events("checkpoint_torn")
    durable = [line["path"] for line in lines(run.dir.attempt(len(kills)).durable)]
    assert {str(run.folder / "a.pt"), str(run.folder / "folder")} <= {*durable}


NAMES = ("a.pt", "b.safetensors", "c.npy", "d.ckpt")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TRAINER = """
import os, signal, time, torch, transformers
from transformers.trainer_utils import get_last_checkpoint
attempt, rank = int(os.environ["SUPERVISE_ATTEMPT"]), int(os.environ["RANK"])
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 400
    def __getitem__(self, index):
        return {"input_ids": torch.arange(8), "labels": torch.arange(8)}
class Trainer(transformers.Trainer):
    def _save_optimizer_and_scheduler(self, folder):
        super()._save_optimizer_and_scheduler(folder)
        if (attempt, rank, self.state.global_step) == (0, 0, 10):
            os.kill(os.getpid(), signal.SIGKILL)
    def _save_rng_state(self, folder):
        if (attempt, rank, self.state.global_step) == (1, 1, 15):
            while not os.path.exists(folder + "/trainer_state.json"):
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(folder)
config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
arguments = transformers.TrainingArguments(
    "out", max_steps=20, save_steps=5, per_device_train_batch_size=2, use_cpu=True, report_to="none", disable_tqdm=True
)
last = get_last_checkpoint("out") if os.path.isdir("out") else None
print("from", last, flush=True)
Trainer(transformers.GPT2LMHeadModel(config), arguments, train_dataset=Data()).train(resume_from_checkpoint=last)
"""
ACCELERATED = """
import os, signal, sys, accelerate, torch
attempt = int(os.environ["SUPERVISE_ATTEMPT"])
project = accelerate.utils.ProjectConfiguration(project_dir="out", automatic_checkpoint_naming=True)
accelerator = accelerate.Accelerator(cpu=True, project_config=project)
model, optimizer = accelerator.prepare(torch.nn.Linear(4, 4), torch.optim.AdamW(torch.nn.Linear(4, 4).parameters()))
optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters()))
def audit(event, args):
    if attempt == 0 and event == "os.rename" and "checkpoint_2" in str(args[1]) and "optimizer" in str(args[1]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
if attempt:
    accelerator.load_state()
    print("from", sorted(os.listdir("out/checkpoints")), flush=True)
    sys.exit()
for step in range(10):
    accelerator.backward(model(torch.ones(1, 4)).sum())
    optimizer.step()
    accelerator.save_state()
"""


def froms(run: Run) -> list[str]:
    logs = [run.dir.attempt(number).rank_log(0).read_text().splitlines() for number in run.dir.attempts()]
    return [line[5:] for log in logs for line in log if line.startswith("from ")]


def test_half_a_folder_of_the_trainer(run: Run) -> None:
    """One that rank 0, or rank 1 alone, had not ended is no checkpoint for get_last_checkpoint; a command gives it
    back."""
    needs("transformers", "accelerate")
    run.modules = IMPORTED["transformers"]
    assert run.launch("--nproc", "2", run.script(TRAINER)) == 0

    assert froms(run) == ["None", "out/checkpoint-5", "out/checkpoint-10"]
    out = run.folder / "out"
    torn = [(event["path"], event["moved_to"]) for event in run.events("checkpoint_torn")]
    assert torn == [
        (str(out / f"checkpoint-{n}"), str(out / f"{TORN}checkpoint-{n}-a{a}")) for n, a in ((10, 0), (15, 1))
    ]
    assert hidden(run.folder) == []
    run.cli("ckpt", "restore-torn", "run", check=2)
    inside = sorted(path.name for path in Path(torn[1][1]).iterdir())
    (out / "checkpoint-15").rename(out / "by-itself")
    (out / "checkpoint-10").rename(out / "by-itself-too")
    run.cli("ckpt", "restore-torn", "run")
    assert sorted(path.name for path in (out / "checkpoint-15").iterdir()) == inside
    assert not [*out.glob(f"{TORN}*")]


def test_half_a_folder_of_accelerate(run: Run) -> None:
    """It takes all that is in checkpoints/ for its own: what is half made goes elsewhere."""
    needs("accelerate")
    run.modules = IMPORTED["accelerate"]
    assert run.launch("--nproc", "1", run.script(ACCELERATED)) == 0

    assert froms(run) == ["['checkpoint_0', 'checkpoint_1']"]
    moved = run.events("checkpoint_torn")[0]["moved_to"]
    assert moved == str(run.folder / "out" / f"{TORN}checkpoint_2-a0") and Path(moved).is_dir()
