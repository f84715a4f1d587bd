"""The journal of a script's own saves and loads: what is in it, and what it says of the step that a rank goes on
from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.supervised import ROOT, environment
from trainer.rank.journal.journal import Journal
from trainer.rank.journal.went_on import NEAR, Known, went_on_from
from trainer.rundir.environment import Supervised
from trainer.rundir.layout import RunDir
from trainer.rundir.records.journal import Saved, find, identity_of, journals_of, place_of, saved_of

WRAPPED = """
import io, json, os, sys, threading, time, timeit
from trainer.rank.journal import saves, targets, wrapping
saves.install()
saves.install()
import torch
from torch import load, save
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import async_save, save as dcp_save
import safetensors, safetensors.torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trainer.checkpoint import load_checkpoint, save_checkpoint

class Listener:
    def __init__(self): self.heard = []
    def save_begun(self, path, by, about): self.heard.append(["begun", path, by]); return path
    def save_ended(self, begun, error): self.heard.append(["ended", begun, error and type(error).__name__])
    def beside(self, folder): pass
    def staged(self, path, still): pass
    def torn(self, path, why, begun): self.heard.append(["torn", path, why])
    def loaded(self, path, error): self.heard.append(["loaded", path, error and type(error).__name__])

os.chdir(sys.argv[1])
state = {"w": torch.ones(3)}
save(state, "asleep.pt")
calls = 20_000
quick = lambda value: value
wrapped = wrapping.save(wrapping.Writer(quick, targets.Argument(0)), "x")
# Of the CPU, which others want, too.
cost = lambda call: 1e6 * min(timeit.repeat(lambda: call(1), timer=time.thread_time, number=calls, repeat=5)) / calls
heard = {"asleep_us": cost(wrapped) - cost(quick)}
listener = Listener()
saves.wake(listener, os.environ.get("TAG", ""))

def told(name, body):
    listener.heard = []
    try:
        body()
    except Exception:
        pass
    heard[name] = listener.heard

def through_a_file():
    with open("file.pt", "wb") as file:
        save(state, file)

def in_a_thread():
    thread = threading.Thread(target=save, args=(state, "thread.pt"))
    thread.start()
    thread.join()

def in_a_child():
    if os.fork() == 0:
        save(state, "child.pt")
        os._exit(0)
    os.wait()

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.parameters())
os.symlink("torch.pt", "link.pt")
told("torch", lambda: save(state, "torch.pt"))
told("keyword", lambda: torch.save(obj=state, f="keyword.pt"))
told("load", lambda: load("link.pt"))
told("buffer", lambda: save(state, io.BytesIO()))
told("null", lambda: save(state, "/dev/null"))
told("file", through_a_file)
told("failed", lambda: save(state, "no/such/folder.pt"))
told("torn", lambda: (os.truncate("keyword.pt", 100), load("keyword.pt")))
told("thread", in_a_thread)
told("child", in_a_child)
told("safetensors", lambda: save_file(state, "a.safetensors"))
told("load_file", lambda: load_file("a.safetensors"))
told("safe_open", lambda: safe_open("a.safetensors", framework="pt").keys())
told("dcp", lambda: dcp_save(state, checkpoint_id="dcp", no_dist=True))
told("dcp_load", lambda: dcp.load(dict(state), checkpoint_id="dcp", no_dist=True))
told("async", lambda: async_save(state, checkpoint_id="later", no_dist=True).result())
told("plain", lambda: save_checkpoint("plain.pt", model, optimizer, 3))
told("plain_load", lambda: load_checkpoint("plain.pt", model, optimizer))
listener.heard = []
with safe_open("a.safetensors", framework="pt") as opened:
    heard["isinstance"] = isinstance(opened, safe_open)
print(json.dumps(heard))
"""


def test_wrappers(tmp_path: Path) -> None:
    """Names that were bound while they slept tell of each save and load once, the outermost, with the file's real path;
    what goes to no file is said to go nowhere; asleep they cost nothing to speak of; in a forked child they sleep."""
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", WRAPPED, str(tmp_path)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    heard = json.loads(done.stdout.splitlines()[-1])

    def saved(name: str, by: str, error: str | None = None) -> list[Any]:
        return [["begun", str(tmp_path / name), by], ["ended", str(tmp_path / name), error]]

    def loaded(name: str, error: str | None = None) -> list[Any]:
        return [["loaded", str(tmp_path / name), error]]

    assert heard["asleep_us"] < 1.0
    assert heard["torch"] == saved("torch.pt", "torch.save")
    assert heard["keyword"] == saved("keyword.pt", "torch.save")
    assert heard["load"] == loaded("torch.pt")
    assert heard["buffer"] == heard["null"] == [["begun", None, "torch.save"], ["ended", None, None]]
    assert heard["file"] == saved("file.pt", "torch.save")
    assert heard["failed"] == saved("no/such/folder.pt", "torch.save", "RuntimeError")
    assert heard["torn"][0][:2] == loaded("keyword.pt")[0][:2] and heard["torn"][0][2] is not None
    assert heard["thread"] == saved("thread.pt", "torch.save")
    assert heard["child"] == [] and (tmp_path / "child.pt").exists()
    assert heard["safetensors"] == saved("a.safetensors", "safetensors")
    assert heard["load_file"] == heard["safe_open"] == loaded("a.safetensors")
    assert heard["dcp"] == saved("dcp", "dcp.save")
    assert heard["dcp_load"] == loaded("dcp")
    assert heard["async"] == saved("later", "dcp.async_save")
    assert heard["plain"] == saved("plain.pt", "save_checkpoint")
    assert heard["plain_load"] == loaded("plain.pt")
    assert heard["isinstance"] is True


class Rank:
    """The journal of a rank in one attempt of a run, at a step that is set by hand."""

    def __init__(self, run: RunDir, attempt: int, rank: int = 0) -> None:
        self.step = -1
        folder = run.attempt(attempt)
        folder.path.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(Supervised(run, attempt, folder, "auto", 0), rank, lambda: (self.step, 1))

    def save(self, path: Path, step: int, content: bytes | None = None) -> None:
        self.step = step
        begun = self.journal.begin(str(path), "test", {})
        path.write_bytes(content if content is not None else bytes(100_000) + str(step).encode())
        self.journal.end(begun, None)

    def load(self, path: Path) -> list[int]:
        self.journal.load(str(path), None)
        return [saved.step for saved in self.journal.loaded]


@pytest.fixture
def tale(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.events.write_text('{"ts": "2000-01-01T00:00:00Z", "msg": "run_started"}\n')
    return run


def test_a_save_is_known_again(tale: RunDir, tmp_path: Path) -> None:
    """By what is in it: renamed, copied, overwritten in place, an older one, saved by another rank."""
    one, kept, link = tmp_path / "one.pt", tmp_path / "kept.pt", tmp_path / "link.pt"
    writer = Rank(tale, 0, rank=1)
    writer.save(one, 20)
    shutil.copyfile(one, kept)
    writer.save(one, 40)
    writer.save(tmp_path / "new.tmp", 60)
    (tmp_path / "new.tmp").rename(tmp_path / "new.pt")

    assert Rank(tale, 1).load(one) == [40]
    assert Rank(tale, 1).load(kept) == [20]
    assert Rank(tale, 1).load(tmp_path / "new.pt") == [60]
    link.symlink_to(kept)
    assert Rank(tale, 1).load(link) == [20]


def test_saves_that_look_alike_are_told_apart(tale: RunDir, tmp_path: Path) -> None:
    """Frozen layers at both ends, of one size: the very file counts first, then its path, then the newest."""
    alike = b"the same at both ends"
    writer = Rank(tale, 0)
    for step in (20, 40, 60):
        writer.save(tmp_path / f"{step}.pt", step, alike)
    shutil.copyfile(tmp_path / "20.pt", tmp_path / "other.pt")

    assert Rank(tale, 1).load(tmp_path / "40.pt") == [40]
    (tmp_path / "40.pt").rename(tmp_path / "moved.pt")
    assert Rank(tale, 1).load(tmp_path / "moved.pt") == [40]
    assert Rank(tale, 1).load(tmp_path / "other.pt") == [60]


def test_what_no_save_has_made(tale: RunDir, tmp_path: Path) -> None:
    """Weights from elsewhere shift nothing; a file from the time of the run, by nobody we know, says that we do not
    know."""
    ours, old, strange = tmp_path / "ours.pt", tmp_path / "old.pt", tmp_path / "strange.pt"
    Rank(tale, 0).save(ours, 20)
    ours.write_bytes(b"written over by something else")
    old.write_bytes(b"pretrained")
    os.utime(old, (1, 1))
    strange.write_bytes(b"of this run")
    second = Rank(tale, 1)

    assert second.load(old) == [] and not second.journal.strange
    assert second.load(ours) == [] and second.journal.strange
    third = Rank(tale, 1)
    assert third.load(strange) == [] and third.journal.strange
    assert not Rank(tale, 0).journal.load(str(strange), None)


def test_a_save_whose_end_was_not_told(tale: RunDir, tmp_path: Path) -> None:
    """Killed after the last byte and before the word: a file that can be loaded is that save."""
    path = tmp_path / "ck.pt"
    writer = Rank(tale, 0)
    writer.save(path, 20)
    writer.step = 40
    writer.journal.begin(str(path), "test", {})
    path.write_bytes(b"all of step 40")

    assert Rank(tale, 1).load(path) == [40]


def test_folders_of_distributed_checkpoints(tale: RunDir, tmp_path: Path) -> None:
    """Known by the file that is written last, also when the folder is renamed."""
    writer = Rank(tale, 0)
    for step in (20, 40):
        folder = tmp_path / f"step-{step}.tmp"
        writer.step = step
        begun = writer.journal.begin(str(folder), "dcp.save", {})
        folder.mkdir()
        (folder / ".metadata").write_bytes(b"the same tensors")
        writer.journal.end(begun, None)
        folder.rename(tmp_path / f"step-{step}")

    assert Rank(tale, 1).load(tmp_path / "step-20") == [20]
    assert Rank(tale, 1).load(tmp_path / "step-40") == [40]


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b'{"kind":"save_done","path":3}', b'{"kind":"save_done"}', b"[]"])
    )
)
def test_a_garbled_journal(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    """Whatever lies in it, a save beside it is found, and nothing else is."""
    folder = tmp_path_factory.mktemp("garbled")
    run = RunDir(folder / "run")
    Rank(run, 0).save(folder / "one.pt", 20)
    (rank, path), *_ = journals_of(run.attempt(0))
    good = path.read_bytes()
    path.write_bytes(b"\n".join([*lines, good, *lines]))
    (run.attempt(0).path / "saves.rankx.jsonl").write_bytes(good)
    here = identity_of(str(folder / "one.pt"))
    assert here is not None

    found = find(run, str(folder / "one.pt"), here)

    assert rank == 0 and found is not None and found.step == 20
    (folder / "two.pt").write_bytes(b"another")
    other = identity_of(str(folder / "two.pt"))
    assert other is not None and find(run, str(folder / "two.pt"), other) is None


def test_where_a_save_is_now(tale: RunDir, tmp_path: Path) -> None:
    """At its path, renamed beside it, or with its folder; nowhere once it was written over."""
    folder = tmp_path / "out.tmp"
    folder.mkdir()
    path = folder / "ck.tmp"
    Rank(tale, 0).save(path, 20)
    line = json.loads(tale.attempt(0).saves(0).read_text().splitlines()[-1])
    saved = saved_of(line, 0, 0)
    assert isinstance(saved, Saved) and place_of(saved) == str(path)

    path.rename(folder / "ck.pt")
    assert place_of(saved) == str(folder / "ck.pt")
    (folder / "ck.pt").rename(path)
    folder.rename(tmp_path / "out")
    assert place_of(saved) == str(tmp_path / "out" / "ck.tmp")
    (tmp_path / "out" / "ck.tmp").write_bytes(b"torn")
    assert place_of(saved) is None


def test_the_step_a_rank_goes_on_from() -> None:
    """What a loaded save says, else the optimizer's count, else what another rank has loaded; unknown is not zero."""
    assert went_on_from(Known(first=False)) == 0
    assert went_on_from(Known(loaded=[60], first=False)) == 60
    assert went_on_from(Known(loaded=[60, 40], first=False)) == 60
    assert went_on_from(Known(loaded=[60, 40], counted=40, first=False)) == 40
    assert went_on_from(Known(loaded=[61], counted=60, first=False)) == 60
    # The weights were loaded, the optimizer began anew.
    assert went_on_from(Known(loaded=[60], counted=0, first=False)) == 60
    assert went_on_from(Known(counted=60, first=False)) == 60
    assert went_on_from(Known(others=[60, -1], first=False)) == 60
    assert went_on_from(Known(loaded=[-1], first=False)) is None
    assert went_on_from(Known(loaded=[-1], counted=30, first=False)) == 30
    assert went_on_from(Known(strange=True, first=False)) is None
    assert went_on_from(Known(strange=True, counted=0, first=False)) == 0
    assert went_on_from(Known(strange=True)) == 0


@given(
    st.lists(st.integers(-1, 200), max_size=4),
    st.none() | st.integers(0, 200),
    st.lists(st.integers(-2, 200), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_no_step_is_made_up(
    loaded: list[int], counted: int | None, others: list[int], strange: bool, first: bool
) -> None:
    """It is always one that something tells; a save that was loaded is never passed over for less."""
    step = went_on_from(Known(loaded, counted, others, strange, first))

    assert step in {*loaded, *others, counted, 0, None}
    if any(one >= 0 for one in loaded):
        assert step is not None and any(abs(step - one) <= NEAR for one in loaded if one >= 0)
    if counted and not any(one >= 0 for one in loaded):
        assert step == counted
