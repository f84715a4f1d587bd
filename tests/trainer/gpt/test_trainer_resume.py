"""Killed and resumed equals uninterrupted: weights, optimizer, scaler, generators and metrics, bit for bit."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import Cut
from tests.support.jobs import TINY, final_state, same, trainer
from tests.support.supervised import Run
from trainer.gpt.config import Place, parse
from trainer.gpt.loop import train
from trainer.rank import progress
from trainer.rundir.layout import committed_steps


def _flags(out: Path, amp: str = "off") -> list[str]:
    return [*TINY, "--out", str(out), "--amp", amp, "--checkpoint-every", "4"]


def _assert_same(first: Path, second: Path) -> None:
    for a, b in zip(final_state(first), final_state(second), strict=True):
        assert same(a, b)


class _Dying(progress.Progress):
    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def step(self, done: int, optimizer: Any = None) -> None:
        if done == self._at:
            raise Cut


def _trained(out: Path, amp: str) -> None:
    train(parse(_flags(out, amp)), Place())


@pytest.mark.parametrize("amp", ["off", pytest.param("bf16", marks=pytest.mark.long), "fp16"])
def test_resume_equals_uninterrupted(tmp_path: Path, amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process that dies after any step, fp16 with its GradScaler and dropout included."""
    _trained(tmp_path / "whole", amp)
    for at in range(1, 12):
        out = tmp_path / f"killed-{at}"
        with monkeypatch.context() as patch:
            patch.setattr(progress, "_current", _Dying(at))
            with pytest.raises(Cut):
                _trained(out, amp)
        _trained(out, amp)
        _assert_same(tmp_path / "whole", out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Path]:
    """The folder of a run with so many ranks that nothing interrupted."""

    @functools.cache
    def run(ranks: int, amp: str) -> Path:
        out = tmp_path_factory.mktemp("whole")
        trainer(ranks, *_flags(out, amp))
        return out

    return run


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "amp"), [(2, "off"), (2, "fp16"), (3, "fp16")])
def test_sigkill_of_a_rank(whole: Callable[[int, str], Path], tmp_path: Path, ranks: int, amp: str) -> None:
    """SIGKILL of the last rank under plain torchrun, then the same command again. Three ranks show what DDP's rebuilt
    buckets would change."""
    trainer(ranks, *_flags(tmp_path / "killed", amp), dying=f"KILL 7 {ranks - 1}", check=None)
    assert committed_steps(tmp_path / "killed" / "checkpoints") == [4]
    trainer(ranks, *_flags(tmp_path / "killed", amp))

    _assert_same(whole(ranks, amp), tmp_path / "killed")


@pytest.mark.long
def test_a_stop_of_one_rank_stops_all_at_one_step(whole: Callable[[int, str], Path], tmp_path: Path) -> None:
    """SIGTERM to rank 1 only: both ranks save the same step and exit; the next launch goes on from there."""
    stopped = trainer(2, *_flags(tmp_path / "stopped"), dying="TERM 6 1", check=None)

    assert committed_steps(tmp_path / "stopped" / "checkpoints") == [4, 7]
    # torchrun's own report: it sends a TERM to whoever is still in its teardown when the first one has left with 75.
    codes = re.findall(r"exitcode +: (-?\d+)", stopped.stderr)
    assert "75" in codes and set(codes) <= {"75", "-15"}
    trainer(2, *_flags(tmp_path / "stopped"))
    _assert_same(whole(2, "off"), tmp_path / "stopped")


def test_other_world_sizes(run: Run, tmp_path: Path) -> None:
    """Two ranks, then one, then three: the state goes on, every step has one line, and without dropout the losses are
    those of one rank throughout, but for rounding."""
    flags = [*TINY, *"--dropout 0 --checkpoint-every off --lr 0.01 --min-lr 0.01".split()]
    for ranks, steps in ((2, 4), (1, 8), (3, 12)):
        assert run.launch("--nproc", str(ranks), "--", *flags, "--steps", str(steps)) == 0
    train(parse([*flags, "--out", str(tmp_path / "one")]), Place())

    mixed, alone = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (run.dir.metrics, tmp_path / "one" / "metrics.jsonl")
    )
    assert [len(event["pids"]) for event in run.events("group_ready")] == [2, 1, 3]
    assert [line["step"] for line in mixed] == list(range(1, 13))
    assert [line["loss"] for line in mixed] == pytest.approx([line["loss"] for line in alone], rel=1e-4)


def test_a_finished_run_trains_no_step(tmp_path: Path) -> None:
    """Launched again it exits with 0, and nothing has changed."""
    _trained(tmp_path, "off")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    _trained(tmp_path, "off")

    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_checkpoint_costs_steps_not_the_run(tmp_path: Path) -> None:
    """The newest checkpoint is damaged: the one before it is used, and the end is the same."""
    _trained(tmp_path / "whole", "off")
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    path = tmp_path / "hurt" / "checkpoints" / "step-00000012" / "rank0.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    _trained(tmp_path / "hurt", "off")

    _assert_same(tmp_path / "whole", tmp_path / "hurt")
