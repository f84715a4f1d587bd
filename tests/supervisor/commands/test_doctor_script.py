"""`supervise doctor train.py` tells what a run of a script will be like, from its source alone."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from supervisor.checkup.script import files, spawning
from supervisor.checkup.script.advice import Imported, findings
from supervisor.checkup.script.source import Source, Unreadable, read
from supervisor.commands import doctor
from tests.support.supervised import ROOT

FINE = Imported({}, {}, 1.0)
SAVE = "torch.save({'model': model.state_dict(), 'step': step}, 'ck.pt')\n"
PARSER = "import argparse, torch\nparser = argparse.ArgumentParser()\n"
NANO = """import torch
out_dir = 'out'
init_from = 'scratch'
exec(open('configurator.py').read())
if init_from == 'resume':
    saved = torch.load('ck.pt')
"""
HYDRA = "import hydra, torch\n@hydra.main(config_path=None)\ndef main(config):\n    torch.load('x')\n    "
SCRIPTS = {
    "Hugging Face": ("from transformers import Trainer\nTrainer(model).train()", "ok", "ok huggingface"),
    "its subclass": ("import trl\nclass Mine(trl.SFTTrainer): pass\nMine(model).train()", "ok", "ok huggingface"),
    "without saves": (
        "import transformers as t\nt.Trainer(m, t.TrainingArguments('o', save_strategy='no'))",
        "warn",
        "ok huggingface",
    ),
    "Lightning": ("import lightning as L\nL.Trainer(max_steps=3).fit(model)", "ok", "ok lightning"),
    "Lightning, off": (
        "import pytorch_lightning as pl\npl.Trainer(enable_checkpointing=False)",
        "warn",
        "ok lightning",
    ),
    "a path": (PARSER + "parser.add_argument('--resume', type=str)\n" + SAVE, "ok", "ok --resume=CHECKPOINT"),
    "a flag": (PARSER + "parser.add_argument('--resume', action='store_true')\n" + SAVE, "ok", "ok by --resume"),
    "a word": (
        PARSER + "parser.add_argument('--resume')\nif parser.parse_args().resume == 'latest': pass\n" + SAVE,
        "ok",
        "ok --resume=latest",
    ),
    "click": (
        "import click, torch\n@click.option('--resume-from')\ndef main(): pass\n" + SAVE,
        "ok",
        "ok --resume-from=",
    ),
    "nanoGPT": (NANO + SAVE, "ok", "ok --init_from=resume"),
    "hydra": (HYDRA + SAVE, "ok", "ok first launch's folder"),
    "accelerate": ("from accelerate import Accelerator\na = Accelerator()\na.save_state('x')", "ok", "warn no option"),
    "it loads": ("from torch import load, save\nload('x')\nsave(1, 'x')", "ok", "ok by itself (train.py:2)"),
    "it does not load": ("import torch as t\nt.save(1, 'x')", "ok", "warn loads nothing"),
    "pickle": ("import pickle\npickle.dump(1, open('x', 'wb'))", "warn", "warn begins at step 0"),
    "nothing": ("import torch", "warn", "warn begins at step 0"),
    "ours": ("from trainer import Checkpointer\nc = Checkpointer()\nc.restore()", "ok", "ok restore()"),
    "ours, not asked": ("import supervise\nc = supervise.Checkpointer()", "ok", "warn restore()"),
    "a byte order mark": (
        "\ufeff" + PARSER + "parser.add_argument('--resume')\n" + SAVE,
        "ok",
        "ok --resume=CHECKPOINT",
    ),
}


@pytest.mark.parametrize(("text", "saves", "resume"), SCRIPTS.values(), ids=SCRIPTS)
def test_what_it_says(text: str, saves: str, resume: str) -> None:
    """Whether it saves, and how it will resume: by the same adapters that act in a run."""
    found = {check.name: check for check in findings(read(text.encode(), "train.py"), (), FINE)}
    assert found["saves"].verdict.value == saves
    verdict, _, words = resume.partition(" ")
    assert found["resume"].verdict.value == verdict
    assert words in found["resume"].text


def test_what_else_it_says() -> None:
    """An option that is given stays; variables that come too late; ranks that are started by the script; harmful and
    missing packages."""
    text = PARSER + "import os\nos.environ['OMP_NUM_THREADS'] = '1'\nparser.add_argument('--resume')\n" + SAVE
    source = read(text.encode() + b"torch.multiprocessing.spawn(print)", "train.py")
    imported = Imported({"absent": "ModuleNotFoundError"}, {"noisy": "its import starts a thread"}, 2.0, 1.0)
    found = {check.name: check for check in findings(source, ("--resume", "mine.pt"), imported)}
    assert {check.verdict.value for name, check in found.items() if name != "saves"} == {"warn"}
    assert "--resume was given" in found["resume"].text
    assert "OMP_NUM_THREADS (train.py:4)" in found["variables"].text
    assert "train.py:7" in found["standby"].text
    assert "without --nproc" in found["standby"].next
    assert "absent" in found["imports"].text and "install absent" in found["imports"].next
    (standby,) = [check for check in findings(Source(), (), imported) if check.name == "standby"]
    assert "noisy: its import starts a thread" in standby.text


def advised(text: bytes) -> None:
    try:
        source = read(text, "train.py")
    except Unreadable as error:
        assert "\n" not in str(error) and str(error).startswith("train.py")
    else:
        assert [check.name for check in findings(source, (), FINE)][:4] == ["imports", "saves", "resume", "standby"]


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(text: bytes) -> None:
    """It is told of, or refused in one line."""
    advised(text)


NAMES = st.sampled_from(["a", "b", "a.b", "torch", "transformers.Trainer", "torch.save", "self.a", "os.environ['A']"])
LINES = st.one_of(
    st.builds("{} = {}(b, c={})".format, NAMES, NAMES, NAMES),
    st.builds("import {} as a".format, st.sampled_from(["a.b", "torch", "a", "b.a"])),
    st.builds("from {} import {}".format, st.sampled_from([".", ".a", "a", "b"]), st.sampled_from(["a", "b", "*"])),
    st.builds("class a({}): pass".format, NAMES),
    st.builds("{}.add_argument('--resume', *{}, **{})".format, NAMES, NAMES, NAMES),
    st.builds(
        "@{}.option('--resume', type={}, default=b'x', choices=[{}, 1])\ndef a(): pass".format, NAMES, NAMES, NAMES
    ),
)


@given(st.lists(LINES, max_size=8))
def test_any_names(lines: list[str]) -> None:
    """Names that stand for each other, and for themselves."""
    advised("\n".join(lines).encode())


@pytest.mark.parametrize(
    "text", [b"(" * 5000, b"-" * 20_000 + b"1", b"a" + b".b" * 5000 + b"()", b"x = " + b"1+" * 9000]
)
def test_deep(text: bytes) -> None:
    advised(text)


def test_real_sources() -> None:
    for path in [*(ROOT / "tests").rglob("*.py")][:60]:
        advised(path.read_bytes())


def test_nothing_of_the_script_runs(tmp_path: Path) -> None:
    """Its local modules are read, and nothing of it runs; a package that is installed is imported."""
    (tmp_path / "loop").mkdir()
    wrote = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "loop/__init__.py").write_text(wrote + "from .saving import keep")
    (tmp_path / "loop/saving.py").write_text(wrote + "import torch\ndef keep(): torch.save(1, 'x')")
    script = tmp_path / "train.py"
    script.write_text(wrote + "import json, loop, msgspec, not_there_at_all\nfrom loop import nothing")
    assert {*files.script(script)[1]} == {"msgspec", "not_there_at_all", "torch", "?torch.save"}
    done = CliRunner().invoke(doctor.command, [str(script), "--json", "--lr", "1"])
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.exit_code == 0
    assert "loop/saving.py:3" in checks["saves"]["text"]
    assert "not_there_at_all (train.py:2)" in checks["imports"]["text"]
    plain = CliRunner().invoke(doctor.command, [str(script)]).stdout
    assert max(map(len, plain.splitlines())) <= 80
    assert not (tmp_path / "ran").exists()


def test_packages_that_misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that starts a thread, ends the process or never ends is named, without a torch too; ours ends after
    its time."""
    there = tmp_path / "site-packages"
    there.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(there))
    (there / "torch.py").write_text("raise ImportError")
    (there / "noisy.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()")
    (there / "deadly.py").write_text("import os\nos._exit(3)")
    (there / "endless.py").write_text("import time\ntime.sleep(99)")
    began = time.monotonic()
    assert [*files.tried(["noisy"]).causes] == ["noisy"]
    took = time.monotonic() - began
    assert "deadly ends the process (exit code 3)" in files.tried(["deadly"]).unknown
    # Long enough to begin with it, however busy the machine is.
    found = (files.tried(["endless"], 1.0 + took * 2**i).unknown for i in range(8))
    assert "endless was being imported" in next(unknown for unknown in found if not unknown.startswith("torch"))


@pytest.mark.parametrize("kind", ["syntax", "folder", "nothing", "fifo", "huge", "null", "coding", "cut off"])
def test_no_script(tmp_path: Path, kind: str) -> None:
    """One clear line, and exit code 2."""
    path = tmp_path / "train.py"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 32)
    elif kind != "nothing":
        texts = {"syntax": b"x = 1\ndef (", "null": b"x\0", "coding": b"# coding: none\nx", "cut off": b"x = '\xff'"}
        path.write_bytes(texts[kind])
    done = CliRunner().invoke(doctor.command, [str(path)])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    (error,) = [line for line in done.stderr.splitlines() if "train.py" in line]
    assert ("train.py:2: invalid syntax" in error) == (kind == "syntax")


@pytest.mark.parametrize(
    ("text", "nproc", "module", "line"),
    [
        ("import torch.multiprocessing as mp\nmp.spawn(main, nprocs=2)\n", 2, False, "train.py:2"),
        ("from torch.multiprocessing import start_processes as begin\n\nbegin(main)\n", 2, False, "train.py:3"),
        ("import torch.multiprocessing as mp\nmp.spawn(main, nprocs=2)\n", 1, False, ""),
        ("import torch.multiprocessing as mp\nmp.spawn(main, nprocs=2)\n", 2, True, ""),
        ("import torch.multiprocessing as mp\nmp.set_start_method('spawn')\n", 2, False, ""),
        ("mp.spawn(", 2, False, ""),
    ],
)
def test_a_script_that_starts_ranks_is_told_of_at_its_launch(
    tmp_path: Path, text: str, nproc: int, module: bool, line: str
) -> None:
    """Only if it is started more than once. A call of that name alone is none."""
    (tmp_path / "train.py").write_text(text)
    found = spawning.warnings(("train.py", "--lr", "1"), module, str(tmp_path), nproc)
    assert [warning.partition(" ")[0] for warning in found] == ([line] if line else [])
