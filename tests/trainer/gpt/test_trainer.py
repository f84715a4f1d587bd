"""`python -m trainer`: its flags, its exit codes, and that a user's mistake is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, TINY, environment
from trainer.__main__ import main
from trainer.gpt.config import TrainConfig, parse
from trainer.gpt.schedule import learning_rate
from trainer.rundir.layout import committed_steps

FLAGS = (
    "--steps --data --batch-size --block-size --n-layer --n-head --n-embd --lr --amp --seed --checkpoint-every "
    "--snapshot-every --keep --log-every --device"
)


def _main(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trainer", *flags])
    try:
        return main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def test_help_names_every_flag_and_loads_no_torch() -> None:
    """--help works in an interpreter that may not import torch."""
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['trainer', '--help']\n"
    code += "import trainer.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert [flag for flag in FLAGS.split() if flag not in done.stdout] == []


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--stepz", "3"], "did you mean '--steps'?"),
        (["--out", __file__], "--out"),
        (["--steps", "many"], "many"),
        (["--steps", "-1"], "-1"),
        (["--lr", "nan"], "nan"),
        (["--amp", "fp8"], "fp8"),
        (["--checkpoint-every", "0"], "auto"),
        (["--keep", "1"], "--keep"),
        (["--dropout", "1"], "--dropout"),
        (["--n-head", "3"], "--n-embd 16"),
        (["--data", "/no/such/file"], "/no/such/file"),
        (["--device", "cuda"], "--device cpu"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    flags: list[str],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unknown flags and bad values: what is wrong, in one line, without a traceback."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _main(monkeypatch, *TINY, "--out", str(tmp_path), *flags) == 2

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert word in lines[0]


@pytest.mark.parametrize("content", [b"", b"short"])
def test_data_too_small_is_one_line(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty file, or one shorter than a sequence."""
    (tmp_path / "data").write_bytes(content)
    code = _main(monkeypatch, *TINY, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data"))

    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_another_models_checkpoint_is_exit_78(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first tensor that differs is named with both shapes; nothing is moved, changed or lost."""
    flags = [*TINY, "--out", str(tmp_path), "--steps", "2"]
    assert _main(monkeypatch, *flags) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    code = _main(monkeypatch, *flags, "--n-embd", "32")
    line = capsys.readouterr().err.splitlines()

    assert code == 78
    assert len(line) == 1
    assert "wte.weight is [256, 16] float32 in the checkpoint and [256, 32] float32 in the model" in line[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_usable_checkpoint_is_exit_78(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All checkpoints are damaged: never step 0, until the user says so; then what there was lies aside."""
    flags = [*TINY, "--out", str(tmp_path), "--steps", "2"]
    assert _main(monkeypatch, *flags) == 0
    (tmp_path / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    assert _main(monkeypatch, *flags) == 78
    assert "Traceback" not in capsys.readouterr().err
    assert _main(monkeypatch, *flags, "--resume", "never") == 0
    assert committed_steps(tmp_path / "checkpoints") == [2]
    assert (tmp_path / "checkpoints" / "superseded-1" / "quarantine" / "step-00000002-1").is_dir()
    assert len((tmp_path / "metrics-superseded-1.jsonl").read_text().splitlines()) == 2


def test_it_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss over Python's own sources falls, and metrics say so."""
    flags = [*TINY, "--data", "stdlib", "--steps", "60", "--lr", "0.01", "--dropout", "0", "--out", str(tmp_path)]
    assert _main(monkeypatch, *flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["loss"] > 5.4
    assert lines[-1]["loss"] < 4.0
    assert lines[-1]["tokens"] == 60 * 12 * 16


def test_learning_rate() -> None:
    """Up to lr over the warm-up, down to min_lr at the end, a function of the step alone."""
    config = TrainConfig(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(step, config) for step in range(101)]

    assert rates[:10] == [pytest.approx((n + 1) / 10) for n in range(10)]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[100]) == (1.0, pytest.approx(0.1))


def test_flags_and_defaults_are_one_list() -> None:
    """No flags give the defaults of TrainConfig, with --data checked only where it is a path."""
    assert parse([]) == TrainConfig()
    assert parse(["--checkpoint-every", "off", "--snapshot-every", "7"]) == TrainConfig(
        checkpoint_every=None, snapshot_every=7
    )
