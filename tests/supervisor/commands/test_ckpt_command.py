"""ckpt: what is listed, verified, pruned and exported is what was saved, and a bad checkpoint is never any of it."""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn

from supervisor.commands import ckpt
from supervisor.commands.cli import run
from supervisor.errors import HeldByAnother, NoSuchRun, Refusal
from tests.support.runs_on_disk import Writer
from trainer.checkpoint.disk.commit import tidy
from trainer.checkpoint.disk.save import Order, _write, save
from trainer.checkpoint.format.plan import plan
from trainer.checkpoint.group import Ranks
from trainer.checkpoint.state.state import capture, capture_rank
from trainer.checkpoint.transfer.safetensors_files import export_safetensors
from trainer.rundir.files.durable import DISK
from trainer.rundir.layout import step_name


class Tied(nn.Module):
    """Tied weights, two types of elements, a buffer and an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.head = nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.randn(7, dtype=torch.bfloat16))
        self.register_buffer("counts", torch.arange(5))
        self.register_buffer("nothing", torch.empty(0))


def checkpoint(folder: Path, step: int, model: nn.Module) -> None:
    """A checkpoint of two ranks, as they would have written it together."""
    order = Order(folder, step, capture({"model": model}, step, {}), capture_rank(0))

    class Two(Ranks):
        world_size = 2

        def exchange(self, value: Any) -> list[Any]:
            if "blocks" not in value:
                return [value, value]
            layout = plan(order.shared.specs, 2)
            temporary = next(folder.glob(".step-*"))
            return [value, _write(replace(order, own=capture_rank(1)), temporary, layout, 1, DISK)]

    assert save(order, Two(), DISK).error is None
    assert tidy(folder, step, 99, DISK) is None


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return Tied()


@pytest.fixture
def writer(tmp_path: Path, model: nn.Module) -> Writer:
    """A run with checkpoints of steps 10 to 40."""
    writer = Writer(tmp_path / "run")
    for step in (10, 20, 30, 40):
        checkpoint(writer.run.checkpoints, step, model)
    return writer


def call(name: str, writer: Writer, *args: str) -> Result:
    return CliRunner().invoke(ckpt.command, [name, str(writer.run.path), *args], catch_exceptions=False)


def damage(writer: Writer, step: int, file: str = "rank1.safetensors") -> None:
    """One bit of the file is flipped; its size stays."""
    path = writer.run.checkpoints / step_name(step) / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def steps(writer: Writer) -> list[int]:
    return sorted(int(path.name[5:]) for path in writer.run.checkpoints.glob("step-*"))


def test_ls_says_what_is_there(writer: Writer) -> None:
    """Every checkpoint with its size and ranks, and which is the latest; a missing file shows."""
    (writer.run.checkpoints / step_name(20) / "rank0.safetensors").unlink()
    found = json.loads(call("ls", writer, "--json").stdout)["checkpoints"]
    assert [(one["step"], one["ok"], one["world_size"], one["latest"]) for one in found] == [
        (10, True, 2, False),
        (20, False, None, False),
        (30, True, 2, False),
        (40, True, 2, True),
    ]
    assert found[1]["problem"] == "rank0.safetensors is missing"
    lines = call("ls", writer).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["STEP", "10", "20", "30", "40"]
    assert lines[-1].endswith("ok, latest")


def test_verify_finds_one_flipped_bit(writer: Writer) -> None:
    """A bad checkpoint is exit code 3, with the file and the reason; the others are still verified."""
    good = call("verify", writer)
    damage(writer, 30)
    bad = call("verify", writer, "--json")
    found = json.loads(bad.stdout)["checkpoints"]
    assert (good.exit_code, bad.exit_code) == (0, 3)
    assert [(one["step"], one["problem"]) for one in found] == [
        (10, None),
        (20, None),
        (30, "rank1.safetensors does not match its digest"),
        (40, None),
    ]
    assert call("verify", writer, "--step", "40").exit_code == 0
    assert "BAD  rank1.safetensors does not match its digest" in call("verify", writer, "--step", "30").stdout


def test_the_command_line_gives_the_exit_code(writer: Writer) -> None:
    """Through the whole program a bad checkpoint is 3, and no such run 102."""
    damage(writer, 30)
    assert [run(["ckpt", "verify", str(writer.run.path)]), run(["ckpt", "ls", "nowhere"])] == [3, 102]


def test_prune_keeps_the_newest(writer: Writer) -> None:
    """What is asked for goes, and what stays was verified."""
    result = json.loads(call("prune", writer, "--keep", "3", "--json").stdout)
    assert (result["removed"], result["kept"], steps(writer)) == ([10], [20, 30, 40], [20, 30, 40])


def test_prune_never_goes_below_two(writer: Writer) -> None:
    """One is not enough."""
    assert (call("prune", writer, "--keep", "1").exit_code, steps(writer)) == (2, [10, 20, 30, 40])


def test_prune_removes_nothing_when_what_stays_is_bad(writer: Writer) -> None:
    """A damaged checkpoint of the right size does not count as one of those that stay."""
    damage(writer, 40)
    assert (call("prune", writer, "--keep", "2").exit_code, steps(writer)) == (3, [10, 20, 30, 40])


def test_prune_leaves_a_held_run_alone(writer: Writer) -> None:
    """While a supervisor lives, its trainer prunes."""
    writer.run.lock.touch()
    with writer.run.lock.open() as file, pytest.raises(HeldByAnother):
        fcntl.flock(file, fcntl.LOCK_EX)
        call("prune", writer, "--keep", "2")
    assert steps(writer) == [10, 20, 30, 40]


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_export_gives_the_model(writer: Writer, model: nn.Module, tmp_path: Path, form: str) -> None:
    """The exported file loads into the same model, bit for bit, tied weights and empty tensors included."""
    out = tmp_path / "model.bin"
    result = json.loads(call("export", writer, "--format", form, "-o", str(out), "--json").stdout)
    state = load_file(out) if form == "safetensors" else torch.load(out, weights_only=True)
    expected = model.state_dict()
    assert (result["checkpoint"], list(tmp_path.glob(".*"))) == (str(writer.run.checkpoints / step_name(40)), [])
    assert {key: (value.dtype, value.shape) for key, value in state.items()} == {
        key: (value.dtype, value.shape) for key, value in expected.items()
    }
    assert all(torch.equal(state[key], value) for key, value in expected.items())


def test_export_takes_the_newest_good_one(writer: Writer, tmp_path: Path) -> None:
    """A damaged newest checkpoint is passed over; asked for by its step it is refused, and nothing is written."""
    damage(writer, 40)
    taken = json.loads(call("export", writer, "-o", str(tmp_path / "a"), "--json").stdout)["checkpoint"]
    assert taken.endswith(step_name(30))
    with pytest.raises(Refusal, match="does not match its digest"):
        call("export", writer, "-o", str(tmp_path / "b"), "--step", "40")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "run"]


def test_export_never_overwrites(writer: Writer, tmp_path: Path) -> None:
    """A file that is there stays as it is."""
    (tmp_path / "a").write_text("precious")
    with pytest.raises(Refusal, match="exists"):
        call("export", writer, "-o", str(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "precious"


def _invoke(*args: str) -> Result:
    return CliRunner().invoke(ckpt.command, list(args), catch_exceptions=False)


def test_show_and_diff(writer: Writer, model: nn.Module, tmp_path: Path) -> None:
    """By a step or a path: what is in one, with its loss, and where two differ."""
    writer.run.metrics.write_text('{"step": 30, "loss": 2.5}\n{"step": 40, "loss": 1.25}\n')
    at = ("--run", str(writer.run.path))
    found = json.loads(_invoke("show", "40", *at, "--json").stdout)
    kinds = {one["name"]: (one["dtype"], one["shape"], one["kind"], one["bytes"]) for one in found["tensors"]}
    assert (found["step"], found["world_size"], found["loss"]) == (40, 2, 1.25)
    assert kinds["model/scale"] == ("BF16", [7], "replicated", 14)
    assert kinds["rank1/rng/torch"][2] == "rank 1"
    shown = _invoke("show", str(writer.run.checkpoints / step_name(30)))
    assert ["model/scale", "BF16", "[7]", "14", "B", "replicated"] in [
        line.split() for line in shown.stdout.splitlines()
    ]

    with torch.no_grad():
        model.get_parameter("scale")[2] += 1
    checkpoint(writer.run.checkpoints, 50, model)
    told = json.loads(_invoke("diff", "40", "50", *at, "--json").stdout)
    scale = next(one for one in told["differences"] if one["name"] == "model/scale")
    assert (scale["elements"], scale["of"], told["same"]) == (1, 7, False)
    for name, says in (("41", "there are: 10 20 30 40 50"), (str(tmp_path), "is no checkpoint: give a step")):
        with pytest.raises(Refusal, match=says):
            _invoke("show", name, *at)


def test_import(model: nn.Module, tmp_path: Path) -> None:
    """A file of torch.save is a checkpoint then; what is there stays, and a refusal leaves nothing."""
    torch.save({"model": model.state_dict(), "step": 9}, tmp_path / "a.pt")
    folder = tmp_path / "run" / "checkpoints"
    found = json.loads(_invoke("import", str(tmp_path / "a.pt"), "-o", str(folder), "--json").stdout)
    assert (found["checkpoint"], found["parts"]) == (str(folder / step_name(9)), ["model"])
    export_safetensors(folder / step_name(9), tmp_path / "b")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in load_file(tmp_path / "b").items())
    with pytest.raises(Refusal, match="has a checkpoint of step 9 already"):
        _invoke("import", str(tmp_path / "a.pt"), "-o", str(folder))
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] in (
        [step_name(9)],
        ["latest", step_name(9)],
        [step_name(9), "latest"],
    )


def test_a_folder_of_checkpoints_needs_no_run(writer: Writer) -> None:
    """Checkpoints of a trainer that ran alone are queried by their folder."""
    result = CliRunner().invoke(ckpt.command, ["verify", str(writer.run.checkpoints)], catch_exceptions=False)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 4)


def test_what_is_not_there_is_refused(writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such run and no such step are errors that say what there is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refusal, match="there are: 10 20 30 40"):
        call("verify", writer, "--step", "11")
    with pytest.raises(NoSuchRun):
        CliRunner().invoke(ckpt.command, ["ls", "nowhere"], catch_exceptions=False)
